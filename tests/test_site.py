"The site: built strictly, then read in a browser that may ask for nothing outside."
import functools, html, http.server, importlib, json, os, re, shlex, shutil, subprocess, sys, threading
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from filelock import FileLock

import house

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CDN = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/"  # the one named host, for formulas
FORMULAS = os.environ.get("MATHJAX")  # folder es5 of a copy of it; without, none are drawn
STRICT = ["-q", "-E", "-W", "--keep-going", "-b", "html"]  # as the Makefile has it
SOME = '''
import dh_nb.explorers as x
x.deep = lambda: False  # the same wherever it runs
PAGES = {name: x.PAGES[name] for name in ("distances", "hiding", "results")}
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The pages, built once for all test processes; a warning is an error."
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: place = place.parent
    with FileLock(place / "site.lock"):
        if not (place / "site/_docs/index.html").exists(): build(place / "site")
    return place / "site/_docs"


def build(tmp):
    "As `make docs` does it, from a copy and without the explorer that takes long."
    shutil.rmtree(tmp, ignore_errors=True)
    for name in ("nbs", "images"):
        shutil.copytree(house.ROOT / name, tmp / name, ignore=shutil.ignore_patterns(
            ".*", "__pycache__", "project"))
    for name in ("README.md", "settings.ini", house.LIB, "results"):
        (tmp / name).symlink_to(house.ROOT / name)
    (tmp / "some_explorers.py").write_text(SOME)
    run = [sys.executable, "-m", "sphinx", *STRICT, "-D", "frames_module=some_explorers"]
    done = subprocess.run([*run, "nbs", "_docs"], cwd=tmp, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp), "DOCS_EXEC": "off",
                                            "DH_CACHE": f"{tmp}/kept", "DH_DATA": f"{tmp}"})
    if done.returncode: shutil.rmtree(tmp / "_docs", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]


class Reader(HTMLParser):
    "Pictures, links and landing places of a page."

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs.get("id"), attrs.get("name")}
        if tag == "img": self.images.append(attrs)
        if tag == "a" and attrs.get("href"): self.links.append(attrs["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): Reader(p.read_text(encoding="utf-8"))
            for p in site.rglob("*.html") if "_static" not in p.parts}


def test_every_picture_has_words(pages):
    bare = [(name, i.get("src", "")[:60]) for name, page in pages.items()
            for i in page.images if not (i.get("alt") or "").strip()]
    assert not bare
    assert sum(len(p.images) for p in pages.values()) > 90


def test_every_link_within_the_site_leads_somewhere(pages, site):
    lost = set()
    for name, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or name in ("search.html", "genindex.html", "py-modindex.html"):
                continue
            path = os.path.normpath(Path(name).parent / unquote(to.path)) if to.path else name
            if path in pages:
                if to.fragment and unquote(to.fragment) not in pages[path].ids:
                    lost.add((name, link))
            elif not (site / path).exists(): lost.add((name, link))
    assert not lost


def test_every_room_is_on_the_plan(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    plan = re.search(r'<svg class="plan".*?</svg>', home, re.S)[0]
    assert re.findall(r'href="(\S+?)\.html"', plan) == [
        r.name for f in range(10) for r in house.ALL if r.number // 10 == f]
    assert plan.count("aria-label") == 1 + len(house.ALL)


def entries(page, module):
    "Name -> what stands below it, of every symbol of a page of the reference."
    parts = re.split(rf'<dt [^>]*id="{re.escape(module)}\.([\w.]+)"', page)[1:]
    return dict(zip(parts[::2], parts[1::2]))


@pytest.mark.parametrize("room", [r for r in house.ALL if r.module], ids=lambda r: r.name)
def test_every_public_symbol_has_an_entry_with_words_and_its_room(room, site):
    "Functions, classes with their methods, and constants."
    module = f"{house.LIB}.{room.module}"
    known = entries((site / "api" / f"{room.module}.html").read_text("utf-8"), module)
    index = importlib.import_module(f"{house.LIB}._modidx").d["syms"][module]
    public = {s for s in (full[len(module) + 1:] for full in index)
              if not re.search(r"(^|\.)_", s)}
    for name in public | set(importlib.import_module(module).__all__):
        below, spot = known.get(name, "no entry"), name.split(".")[0]
        assert re.search(r"<dd><p>\S", below), name
        assert f'href="../{room.name}.html#def-{spot}"' in below, name


def test_directives_are_not_shown_and_solutions_are_folded(site):
    for r in house.ALL:
        page = (site / f"{r.name}.html").read_text(encoding="utf-8")
        assert not re.search(r"^\s*#\| ?\w", re.sub(r"<[^>]+>", "", page), re.M), r.name
        solved = sum("solution" in c.tags and c.for_readers for c in r.cells)
        assert page.count("Show a solution") == solved, r.name
        assert "Run this lesson" in page, r.name


def links_to_run(text):
    "Repository, branch and file of the links that open a lesson somewhere else."
    colab = re.findall(r"https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/"
                       r"([\w.-]+)/([\w./-]+)", text)
    binder = re.findall(r"https://mybinder\.org/v2/gh/([\w.-]+/[\w.-]+)/([\w.-]+)\?labpath="
                        r"([\w.%-]+)", text)
    return colab, [(repo, branch, unquote(path)) for repo, branch, path in binder]


def test_every_lesson_opens_in_colab_and_on_binder(site):
    facts = house_facts()
    repo = facts["git_url"].removeprefix("https://github.com/")
    for r in house.ALL:
        page = html.unescape((site / f"{r.name}.html").read_text(encoding="utf-8"))
        for found in links_to_run(page):
            assert found == [(repo, facts["branch"], f"nbs/{r.name}.ipynb")], r.name
        assert (house.ROOT / found[0][2]).is_file()


def house_facts():
    "What settings.ini says."
    ini = ConfigParser(delimiters=["="])
    ini.read(house.ROOT / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def test_binder_installs_what_lessons_need(monkeypatch):
    monkeypatch.syspath_prepend(str(house.ROOT / "nbs/_ext"))
    import pages
    facts, script = house_facts(), house.ROOT / ".binder/postBuild"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    words = shlex.split(script.read_text(encoding="utf-8"), comments=True)
    assert words[-2] == "--editable" and "pip" in words
    extras = set(re.fullmatch(r"\.\[([\w,]+)\]", words[-1])[1].split(","))
    assert extras >= {"explore", *pages.EXTRAS.values()}
    assert all(f"{e}_requirements" in facts for e in extras)
    room = yaml.safe_load((house.ROOT / ".binder/environment.yml").read_text("utf-8"))
    assert {f"python={facts['min_python']}", "pytorch-cpu", "pip"} <= set(room["dependencies"])


def test_parameters_come_with_type_comment_and_default(site):
    page = (site / "api" / "results.html").read_text(encoding="utf-8")
    page = page[page.index("<article"):]
    words = "".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    assert "kind(str)–or“measures”;default\"cells\"" in words
    assert "onerowacell,thelastofeach;seeframe" in words


@pytest.fixture(scope="module")
def base(site):
    "The address of a server of this machine."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    if not house.CHROME: pytest.skip("no chromium on this machine")
    with sync.sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=house.CHROME, args=FLAGS)
        yield chrome
        chrome.close()


@pytest.fixture
def visit(browser, base):
    "Open a page; afterwards nothing was complained about and nobody else was asked."
    said, asked, opened = [], [], []

    def guard(route):
        url = route.request.url
        if url.startswith(base): return route.continue_()
        asked.append(url)
        script = Path(FORMULAS or "", url.rpartition("/es5/")[2])
        route.fulfill(body=script.read_text("utf-8") if FORMULAS else "",
                      content_type="text/javascript")

    def go(name, width=1280, scheme="light"):
        page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        page.route("**/*", guard)
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto(f"{base}/{name}")
        opened.append(page)
        return page

    yield go
    for page in opened: page.close()
    assert not said and all(url.startswith(CDN) for url in asked), (said, asked)


def test_search_finds_a_symbol(visit):
    page = visit("search.html?q=quality_table")
    hit = page.locator("#search-results a", has_text="quality_table").first
    hit.wait_for(timeout=15_000)
    hit.click()
    page.wait_for_url("**/api/quality.html*quality_table*")


WIDE = """() => {
  for (const box of document.querySelectorAll("div.math")) if (!box.querySelector("mjx-container"))
    box.innerHTML = '<mjx-container display="true" style="display: block"><svg width="900" height="9">'
  const over = e => e.getBoundingClientRect().right > innerWidth + 1
  const told = [...document.querySelectorAll("article *")].filter(over).slice(0, 3)
  const cut = [...document.querySelectorAll("mjx-container[display]")].filter(e =>
    over(e) || getComputedStyle(e).overflowX !== "auto")  // it must scroll by itself
  return [document.documentElement.scrollWidth, cut.length,
          told.map(e => e.outerHTML.slice(0, 80))] }"""


def test_no_page_is_wider_than_a_phone(visit, pages, base):
    "With a formula of 900 pixels wherever one is set on a line of its own."
    page, wide = visit("index.html", width=390), {}
    for name in sorted(pages):
        page.goto(f"{base}/{name}")
        if FORMULAS: page.evaluate("window.MathJax?.startup?.promise")
        width, cut, told = page.evaluate(WIDE)
        if width > 390 or cut: wide[name] = width, cut, told
        if name[0].isdigit(): assert page.locator("article h1").first.is_visible()
    assert not wide
    assert len(pages) > len(house.ALL)


def test_light_and_dark(visit):
    shade = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert min(visit("index.html").evaluate(shade)) > 200
    dark = visit("index.html", scheme="dark")
    assert max(dark.evaluate(shade)) < 60
    dark.locator(".theme-switch-button").first.click()  # by hand, too


def test_a_room_on_the_plan_opens(visit):
    "By keyboard, and where the focus is can be seen."
    page = visit("index.html")
    room = page.locator("svg.plan a[href='21_lfc.html']")
    fill = lambda: room.locator(".room").evaluate("e => getComputedStyle(e).fill")
    plain = fill()
    page.locator("svg.plan a[href='20_features.html']").focus()
    page.keyboard.press("Tab")
    assert fill() != plain
    page.keyboard.press("Enter")
    page.wait_for_url("**/21_lfc.html")
    assert page.locator("article h1").first.inner_text().startswith("Latent feature concentration")


def test_a_solution_unfolds(visit):
    page = visit("10_coupling.html")
    fold = page.locator("details", has_text="Show a solution").first
    code = fold.locator("pre").first
    assert not code.is_visible()
    fold.locator("summary").click()
    assert code.is_visible()


KEY = """e => e.type === "checkbox" ? "Space" : e.type === "range" ?
    (e.value === e.max ? "ArrowLeft" : "ArrowRight") :
    (e.selectedIndex === e.length - 1 ? "ArrowUp" : "ArrowDown")"""
DRAWN = "() => { const i = document.querySelector('.frames img'); return i.complete && i.naturalWidth }"


@pytest.mark.parametrize("name, kinds", [
    ("distances", ["range", "select", "select"]), ("hiding", ["range", "select"]),
    ("results", ["select", "range", "checkbox", "select"])])
def test_an_explorer_moves_by_keyboard(name, kinds, visit):
    page = visit(f"explorers/{name}.html")
    box = page.locator(".frames figure")
    controls, image, words = (box.locator(s) for s in ("input, select", "img", "figcaption"))
    assert [c.get_attribute("type") or "select" for c in controls.all()] == kinds
    seen = [(image.get_attribute("src"), words.inner_text())]
    controls.first.focus()
    for control in controls.all():
        assert control.evaluate("e => e === document.activeElement")
        page.keyboard.press(control.evaluate(KEY))
        page.wait_for_function(DRAWN)
        seen.append((image.get_attribute("src"), words.inner_text()))
        assert image.get_attribute("alt") == seen[-1][1]
        page.keyboard.press("Tab")
    for column in zip(*seen): assert len(set(column)) == 1 + len(kinds)


def cell(source, *stored):
    "A code cell, with what it printed the last time."
    out = [dict(output_type="stream", name="stdout", text=t) for t in stored]
    return dict(cell_type="code", metadata={}, source=source, outputs=out, execution_count=None)


@pytest.mark.parametrize("last, fine", [("assert True", True), ("1 / 0", False)])
def test_fresh_pages_run_what_is_not_slow(last, fine, tmp_path):
    "As `make docs-fresh` does it, with one room."
    nbs = tmp_path / "nbs"
    for name in ("_ext", "_static"): shutil.copytree(house.ROOT / "nbs" / name, nbs / name)
    shutil.copy(house.ROOT / "nbs/conf.py", nbs)
    for name in ("settings.ini", house.LIB): (tmp_path / name).symlink_to(house.ROOT / name)
    (nbs / "index.md").write_text("# Home\n\n```{toctree}\n00_toy\n```\n")
    (nbs / "00_toy.ipynb").write_text(json.dumps(dict(
        nbformat=4, nbformat_minor=4, metadata=dict(kernelspec=dict(
            name="python3", display_name="Python 3", language="python")),
        cells=[dict(cell_type="markdown", metadata={}, source="# Toy\n\n> One room."),
               cell("print(6 * 7)", "printed last year"),
               cell("#| slow\n# about an hour, here\nprint('a' * 9)", "kept from then"), cell(last)])))
    done = subprocess.run([sys.executable, "-m", "sphinx", *STRICT, "nbs", "_docs"],
                          cwd=tmp_path, env=os.environ | {"DOCS_EXEC": "force"},
                          capture_output=True, text=True)
    assert (done.returncode == 0) == fine, done.stderr[-3000:]
    if not fine: return
    page = (tmp_path / "_docs/00_toy.html").read_text(encoding="utf-8")
    assert ">42" in page and "printed last year" not in page
    assert "kept from then" in page and "a" * 9 not in page


def test_an_explorer_that_is_missing_says_so(visit):
    page = visit("explorers/countermeasures.html")
    assert "is not in this build" in page.locator(".no-frames").first.inner_text()


def test_two_explorers_on_a_page_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(house.ROOT / "nbs/_ext"))
    import pages
    monkeypatch.setattr(pages, "registry", lambda module: {"toy": lambda: SimpleNamespace(
        frames=lambda: "<figure></figure>")})
    page = SimpleNamespace(config=SimpleNamespace(frames_module=""), arguments=["toy"],
                           env=SimpleNamespace(temp_data={}), error=ValueError)
    assert "figure" in pages.Frames.run(page)[0].astext()
    with pytest.raises(ValueError, match="One explorer"): pages.Frames.run(page)
