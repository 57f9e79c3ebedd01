"The explorers as a reader meets them: room 80 in JupyterLab and the page of Voila, in a browser."
import json, os, signal, socket, subprocess, sys, time, urllib.request
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import house
from dh_nb.data import WNIDS
from dh_nb.explorers import PAGES
from dh_nb.publishing import protect

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
pytestmark = [pytest.mark.skipif(not house.CHROME, reason="there is no chromium here"),
              pytest.mark.xdist_group("browser")]

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False}}
RUN_ALL = """async () => {
    const w = jupyterapp.shell.currentWidget;
    await w.context.ready; await w.sessionContext.ready;
    await w.sessionContext.session.kernel.info;
    return await jupyterapp.commands.execute('notebook:run-all-cells'); }"""


def room():
    "The code of room 80 as a reader runs it, without slow cells and solutions."
    return [c.source for c in house.read(house.ROOT / "nbs/80_explorers.ipynb").cells
            if c.runs and not {"slow", "solution"} & {*c.directives, *c.tags}]


def write_notebook(path, cells):
    "A notebook of code cells."
    kernel = dict(name="python3", display_name="Python 3", language="python")
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, source=s.strip(), outputs=[],
                  execution_count=None) for i, s in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel),
                                    nbformat=4, nbformat_minor=5)))


def alone(tmp):
    "A folder, and an environment that knows no settings of this machine's user."
    return tmp, os.environ | {
        "JUPYTER_CONFIG_DIR": f"{tmp}/conf", "JUPYTER_DATA_DIR": f"{tmp}/data",
        "JUPYTER_RUNTIME_DIR": f"{tmp}/run", "JUPYTERLAB_SETTINGS_DIR": f"{tmp}/settings",
        "JUPYTERLAB_WORKSPACES_DIR": f"{tmp}/ws", "IPYTHONDIR": f"{tmp}/ipy",
        "DH_CACHE": f"{tmp}/kept", "DH_DATA": f"{tmp}", "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1", "PYTHONPATH": os.pathsep.join(filter(None, (
            str(house.ROOT), os.environ.get("PYTHONPATH"))))}


@pytest.fixture(scope="module")
def home(tmp_path_factory): return alone(tmp_path_factory.mktemp("home"))


def free_port():
    "A port on which nobody listens."
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def answers(url, seconds=2):
    "Whether somebody serves a page there."
    with suppress(OSError):
        urllib.request.urlopen(url, timeout=seconds).close()
        return True


@contextmanager
def served(line, url, home):
    "A server while it is needed; what it said where it does not start."
    log = home[0] / f"{urlsplit(url).port}.log"
    with open(log, "w") as out:
        server = subprocess.Popen([sys.executable, *line], env=home[1], cwd=home[0], stdout=out,
                                  stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            if answers(url): break
            time.sleep(0.5)
        yield server
    finally:
        with suppress(ProcessLookupError): os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@contextmanager
def laboratory(home, **notebooks):
    "Address of a JupyterLab with notebooks, each a list of cells."
    tmp, port = home[0], free_port()
    for name, value in SETTINGS.items():
        f = tmp / "settings" / f"{name}.jupyterlab-settings"
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(json.dumps(value))
    (tmp / "work").mkdir()
    for name, cells in notebooks.items():
        write_notebook(tmp / "work" / f"{name}.ipynb", cells)
    line = ["-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
            f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
            "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={tmp}/work",
            "--LabApp.expose_app_in_browser=True"]
    url = f"http://127.0.0.1:{port}"
    with served(line, url + "/api/status", home): yield url


@pytest.fixture(scope="module")
def lab(home):
    "The room, a notebook that fails, and a second data set, of noise."
    noise = np.random.default_rng(0)
    for wnid in WNIDS:
        folder = home[0] / "imagenette224" / "train" / wnid
        folder.mkdir(parents=True)
        for i in range(40):
            pixels = noise.integers(0, 256, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    with laboratory(home, room=room(), bad=["1 + 1", "1 / 0"]) as url: yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as pw:
        made = pw.chromium.launch(executable_path=house.CHROME, headless=True, args=FLAGS)
        yield made
        made.close()


def run_all(browser, lab, name):
    "Open a notebook and run all of it; the page, or AssertionError with what went wrong."
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.set_default_timeout(120_000)
    page.goto(f"{lab}/lab/tree/{name}?reset", wait_until="domcontentloaded")
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext")
    fine = page.evaluate(RUN_ALL)
    said = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"],'
                        '.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]')
    words = " ".join(said.all_inner_texts())
    assert fine and "Error" not in words, words or "a cell failed"
    return page


@pytest.fixture(scope="module")
def four(browser, lab):
    "The room, in which all four explorers are alive."
    page = run_all(browser, lab, "room.ipynb")
    sync_api.expect(page.locator(".dh-explorer")).to_have_count(4)
    yield page
    if folder := os.environ.get("DH_SHOTS"): page.screenshot(path=f"{folder}/lab.png")
    page.close()


def state(explorer):
    "What a reader sees: the address of the picture, and the words."
    return (explorer.locator("img").get_attribute("src"),
            explorer.locator(".dh-caption").inner_text())


def moved(explorer, move, says="", seconds=60):
    "Make a move and wait for another picture with these words; progress comes first."
    before = state(explorer)
    move()
    end = time.time() + seconds
    while time.time() < end:
        now = state(explorer)
        if now[0] != before[0] and now[1] != before[1] and says in now[1]:
            assert not now[1].startswith(("Error", "Not possible")), now[1]
            return now[1]
        time.sleep(0.05)
    raise AssertionError(f"nothing has changed: {before[1]}")


def named(explorer, label, inside):
    "A part of the control with this label."
    words = explorer.page.get_by_text(label, exact=True)
    return explorer.locator(".widget-inline-hbox", has=words).locator(inside)


def slide(explorer, label):
    "Focus a slider and press an arrow key."
    def move():
        named(explorer, label, ".noUi-handle").focus()
        explorer.page.keyboard.press("ArrowRight")
    return move


def pick(explorer, label, value):
    "Choose from a list."
    return lambda: named(explorer, label, "select").select_option(label=value)


MOVES = dict(  # name -> label, what to choose (None: the next stop of a slider), what is said
    distances=[("class", None, "Class 3"), ("countermeasure", "jpeg", "jpeg (quality=10)"),
               ("strength", None, "jpeg (quality=5)"), ("map", "tsne", "Map: tsne"),
               ("what is embedded", "pictures", ": pictures seen"),
               ("what is embedded", "changes", ": changes seen"),
               ("seen by", "pixels, 8 x 8", "seen by pixels"),
               ("data set", "imagenette", "imagenette, dh"),
               ("data set", "embedded", "embedded, dh"),
               ("method", "adapting, without LFC", "after 0 steps"),
               ("step of adaptation", None, "after 5 steps")],
    hiding=[("bands of 64", None, "64 of 64 bands"), ("budget", None, "33.0 dB"),
            ("damage", "jpeg", "Damage: jpeg"), ("preset", "robust", "by robust"),
            ("secret", "bee", "bee in"), ("cover", "flower", "in flower")],
    countermeasures=[("strength", None, "quality=5"), ("picture", None, "dress of"),
                     ("countermeasure", "cutout", "hole=0.75"),
                     ("method", "class DCT", "published by class DCT"),
                     ("data set", "imagenette", "of imagenette")],
    results=[("sorted by", "PSNR", "sorted by PSNR"), ("lines", None, "shown: "),
             ("table", "cifar10, small, first 1000 a class, quick48", "quick48: ")])


@pytest.mark.parametrize("at, name", list(enumerate(MOVES)), ids=MOVES)
def test_an_explorer_answers_to_its_controls(at, name, four):
    explorer = four.locator(".dh-explorer").nth(at)
    explorer.scroll_into_view_if_needed()
    for label, value, says in MOVES[name]:
        move = pick(explorer, label, value) if value else slide(explorer, label)
        moved(explorer, move, says, 300)
    if folder := os.environ.get("DH_SHOTS"):
        explorer.screenshot(path=f"{folder}/live_{at}.png")


def test_no_control_is_forgotten():
    for name, make in PAGES.items():
        labels = {c.label or key for key, c in make().controls.items() if c.kind != "check"}
        assert {label for label, *_ in MOVES[name]} == labels


def test_a_check_box_answers(four):
    explorer = four.locator(".dh-explorer").nth(3)
    gaps = "cifar10, small, first 1000 a class, quick"  # not every line has every column
    pick(explorer, "table", gaps)()
    box = explorer.locator("input[type=checkbox]")
    moved(explorer, box.check, "all lines share")
    assert "all lines share" not in moved(explorer, box.uncheck)


def test_a_complaint_is_said_and_the_picture_stays(four):
    explorer = four.locator(".dh-explorer").nth(0)
    before = state(explorer)[0]
    pick(explorer, "method", "clean")()
    sync_api.expect(explorer.locator(".dh-caption")).to_contain_text("no changes")
    assert state(explorer)[0] == before
    assert "clean" in moved(explorer, pick(explorer, "what is embedded", "pictures"))


def test_a_failing_cell_is_seen(browser, lab):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_all(browser, lab, "bad.ipynb")


def test_voila_serves_the_explorers_and_stops(browser, home):
    pytest.importorskip("voila", reason="voila is not installed")
    protect("embedded", home[0] / "mine", per_class=40)
    url = f"http://127.0.0.1:{(port := free_port())}"
    line = ["-c", "from dh_nb.cli import explore; explore()", "--voila", "--no-browser",
            f"--port={port}", "--files", "mine"]
    with served(line, url + "/voila/static/voila.js", home) as server:
        page = browser.new_page()
        page.route(lambda u: not u.startswith(url), lambda r: r.abort())  # fonts of icons
        page.goto(url, timeout=240_000)
        explorers = page.locator(".dh-explorer")
        sync_api.expect(explorers).to_have_count(4, timeout=60_000)
        assert "Class 3" in moved(explorers.nth(0), slide(explorers.nth(0), "class"))
        name = f"files:{home[0] / 'mine'}"
        assert name in moved(explorers.nth(0), pick(explorers.nth(0), "method", name))
        assert page.locator("pre").count() == 0  # no code, no error
        page.close()
        os.killpg(server.pid, signal.SIGTERM)  # SIGINT is deaf where a shell started us with &
        server.wait(60)
    assert not answers(url)


FRAMES = """
import numpy as np
from dh_nb.explore import Explorer, check, choice, slider

def draw(fig, n, name, lines):
    ax = fig.add_subplot()
    ax.bar(range(n), range(n), color=name)
    ax.grid(lines)
    fig.alt = f"{n} bars in {name}{' on a grid' * lines}"

e = Explorer(draw, 6, 3, "Bars", n=slider([2, 3, 4]), name=choice(["navy", "brown"]), lines=check())
"""


def test_frames_work_by_keyboard_without_a_kernel_on_a_phone(browser, tmp_path):
    names = {}
    exec(FRAMES, names)
    page_file = tmp_path / "page.html"
    page_file.write_text('<!doctype html><meta charset="utf-8"><title>x</title><meta name='
                         f'"viewport" content="width=device-width">{names["e"].frames()}',
                         encoding="utf-8")
    page = browser.new_page(viewport=dict(width=390, height=800))
    asked, said = [], []
    page.on("request", lambda r: asked.append(r.url))
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(page_file.as_uri())
    words, image = page.locator("figcaption"), page.locator("img")
    sync_api.expect(words).to_have_text("2 bars in navy")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    sync_api.expect(words).to_have_text("3 bars in navy")
    sync_api.expect(image).to_have_attribute("alt", "3 bars in navy")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    sync_api.expect(words).to_have_text("3 bars in brown on a grid")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == [] and said == []
    page.close()
