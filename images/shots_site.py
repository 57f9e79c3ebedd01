"""Photograph the built site: its home page for README.md, or any pages to look at.

python images/shots_site.py                      # images/site.png
python images/shots_site.py DIR index 01_data    # both widths, light and dark, into DIR
"""
import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
DOCS = HERE.parent / "_docs"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def shot(browser, name, width, height, theme, whole=False):
    "PNG bytes of a page."
    page = browser.new_page(viewport=dict(width=width, height=height), color_scheme=theme)
    page.route("http*://**", lambda route: route.abort())
    page.goto((DOCS / f"{name}.html").as_uri())
    page.wait_for_timeout(400)
    data = page.screenshot(full_page=whole)
    page.close()
    return data


def small(data, path):
    "Save with the 256 colours that serve best: fewer are wrong ones."
    Image.open(BytesIO(data)).convert("RGB").quantize(256, kmeans=1).save(path, optimize=True)


if __name__ == "__main__":
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        if len(sys.argv) == 1:
            small(shot(chrome, "index", 1280, 1700, "light"), HERE / "site.png")
        for name in sys.argv[2:]:
            for width in (1280, 390):
                for theme in ("light", "dark"):
                    path = Path(sys.argv[1]) / f"{name.replace('/', '_')}_{width}_{theme}.png"
                    path.write_bytes(shot(chrome, name, width, 1700, theme))
