"Photograph every explorer in JupyterLab, its controls above it (needs chromium)."
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import test_browser as tests  # noqa: E402  it knows how to serve and to run a notebook
from shots_site import small  # noqa: E402

from dh_nb.explorers import PAGES  # noqa: E402


if __name__ == "__main__":
    cells = [f"from dh_nb.explorers import PAGES\nPAGES[{name!r}]()" for name in PAGES]
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as play:
        home = tests.alone(Path(tmp))
        with tests.laboratory(home, explorers=cells) as lab:
            browser = play.chromium.launch(executable_path=tests.house.CHROME, args=tests.FLAGS)
            page = tests.run_all(browser, lab, "explorers.ipynb")
            page.evaluate("jupyterapp.shell.collapseLeft()")
            page.add_style_tag(content=".dh-explorer { padding: 12px }")
            page.set_viewport_size(dict(width=1280, height=1100))
            found = page.locator(".dh-explorer")
            expect(found).to_have_count(len(PAGES))
            for name, explorer in zip(PAGES, found.all()):
                explorer.scroll_into_view_if_needed()
                page.wait_for_timeout(500)
                small(explorer.screenshot(), HERE / f"explore_{name}.png")
            browser.close()
