"""Draw the shapes of `dh_nb/data/icons` again, from the vector files of Noto Emoji.

    npm pack @iconify-json/noto@1.2.9 && tar xzf iconify-json-noto-1.2.9.tgz
    pip install resvg-py
    python images/icons.py package/icons.json [more names, as Noto spells them]

Noto Emoji is Copyright Google Inc., Apache License 2.0 (see NOTICE). What is changed:
the drawings become 64 x 64 pixels of at most 64 colours. The package never runs this.
"""
import io
import json
import sys
from pathlib import Path

import resvg_py
from PIL import Image

OUT = Path(__file__).parent.parent / "dh_nb" / "data" / "icons"
SVG = ('<svg xmlns="http://www.w3.org/2000/svg" '
       'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {} {}">{}</svg>')


def draw(icon, side=64):
    "One icon of the collection as an RGBA picture of few colours."
    svg = SVG.format(icon.get("width", 128), icon.get("height", 128), icon["body"])
    data = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    return image.quantize(64, method=Image.Quantize.FASTOCTREE)


if __name__ == "__main__":
    icons = json.loads(Path(sys.argv[1]).read_text())["icons"]
    names = {p.stem.replace("_", "-") for p in OUT.glob("*.png")} | set(sys.argv[2:])
    for name in sorted(names):
        path = OUT / f"{name.replace('-', '_')}.png"
        draw(icons[name]).save(path, optimize=True)
    print(len(names), "shapes,", sum(p.stat().st_size for p in OUT.glob("*.png")), "bytes")
