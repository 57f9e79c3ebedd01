"Draw every explorer 1280 pixels wide, and its page as a phone shows it (needs chromium)."
import shutil
import tempfile
from pathlib import Path

from dh_nb.explorers import PAGES
from dh_nb.show import png_bytes

HERE = Path(__file__).parent
PHONE = dict(cls=[2, 6], what=["changes"], after=["none"])  # two frames are enough
PAGE = ('<!doctype html><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width"><style>body{font:16px sans-serif;margin:8px}</style>')


def wide(explorer):
    "The picture as a file of 1280 pixels."
    w, h = explorer.size
    sheet = explorer.sheet((12.8, 12.8 * h / w), {})
    sheet.colours = 128  # a heat map with few colours has wrong ones
    return png_bytes(sheet, tight=False)


def phone(html, path):
    "A page in a window of 390 pixels."
    from playwright.sync_api import sync_playwright
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as pw:
        file = Path(tmp) / "page.html"
        file.write_text(PAGE + html, encoding="utf-8")
        browser = pw.chromium.launch(executable_path=shutil.which("chromium"),
                                     args=["--no-sandbox"])
        page = browser.new_page(viewport=dict(width=390, height=844))
        page.goto(file.as_uri())
        page.screenshot(path=path, full_page=True)
        browser.close()


if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / f"explore_{name}.png").write_bytes(wide(make()))
    phone(PAGES["distances"]().frames(**PHONE), HERE / "explore_phone.png")
