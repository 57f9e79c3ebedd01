"Rooms 07 and 80: values change picture and words, frames are whole, nothing is made twice."
import json, re, sys
from html.parser import HTMLParser
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from dh_nb import cli, data, explore as e, explorers as x
from dh_nb.countermeasures.suite import register_countermeasure
from dh_nb.data import BadInput, ImageSet
from dh_nb.methods import register_method
from dh_nb.publishing import protect
from dh_nb.registry import REGISTERED, TABLES

VOID = {"img", "input", "br", "meta"}


class Page(HTMLParser):
    "Tags with their attributes; fails where one is not closed, or a control has no label."

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag in ("input", "select"): assert "label" in self.open
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open: self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag): return [a for t, a in self.tags if t == tag]


def shades(fig, level, name, dark, calls=None):
    "One flat field."
    if calls is not None: calls.append(level)
    ax = fig.add_axes([0, 0, 1, 1])
    ax.imshow(np.full((2, 2), level / (2 if dark else 1)), vmin=0, vmax=9)
    fig.alt = f"{name} <{level}>{' & dark' * dark}"


def toy(calls=None, **kw):
    return e.Explorer(lambda fig, **v: shades(fig, calls=calls, **v), 2, 1, "A toy", layout="none", **kw,
                      level=e.slider([1, 2, 5], 2, unit=" dB"),
                      name=e.choice(["a", "b"]), dark=e.check(label="in the dark"))


@pytest.fixture
def home(monkeypatch, tmp_path):
    "An empty cache, no results, no data sets but the embedded one."
    monkeypatch.setenv("DH_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("DH_DATA", str(tmp_path))
    monkeypatch.setattr(x, "MEMORY", {})
    return tmp_path / "kept"


# the explorer

def test_values_change_picture_and_words():
    t = toy()
    png, words = t.now()
    assert words == "a <2>" and Image.open(BytesIO(png)).size == (200, 100)
    assert Image.open(BytesIO(png)).text["Description"] == words
    for name, value in (("level", 5), ("name", "b"), ("dark", True)):
        t.set(name, value)
        assert t.now()[0] != png or name == "name"
        assert t.caption != words
        png, words = t.now()
    assert words == "b <5> & dark" and t.draw(level=1) != png and t.now()[0] == png


def test_the_same_values_are_drawn_once():
    calls = []
    t = toy(calls)
    t.now(), t.caption, t.now()
    assert calls == [2]
    t.set("level", 5), t.set("level", 2), t.caption
    assert calls == [2]


@pytest.mark.parametrize("do", [
    lambda t: t.set("level", 3), lambda t: t.set("size", 1), lambda t: t.draw(name="c"),
    lambda t: t.frames(level=[1, 3]), lambda t: t.frames(level=[]),
    lambda t: t.frames(size=[1]), lambda t: e.Explorer(shades),
    lambda t: e.slider([]), lambda t: e.choice(["a", "a"]), lambda t: e.slider([1], 2)])
def test_bad_values_are_refused(do):
    with pytest.raises(BadInput): do(toy())


def test_a_view_follows_and_reports():
    t = toy()
    view = t.widget = e.View(t)
    before = view.image.value
    view.inputs["level"].value = 5
    assert t.values["level"] == 5 and view.image.value != before
    assert "a &lt;5&gt;" in view.words.value
    t.set("dark", True)
    assert view.inputs["dark"].value is True and "dark" in view.words.value
    kinds = [type(w).__name__ for w in view.inputs.values()]
    assert kinds == ["SelectionSlider", "Dropdown", "Checkbox"]
    assert view.inputs["level"].continuous_update is False


def test_a_stored_picture_keeps_pale_colours_apart():
    fig, noise = e.Sheet(1, 1, dpi=100), np.random.default_rng(0).random((60, 60, 3))
    flat = [np.full((60, 9, 3), c) / 255 for c in ((232, 198, 192), (219, 221, 223))]
    fig.figimage(np.concatenate([noise, *flat], 1))
    full, few = (np.asarray(Image.open(BytesIO(e.quick_png(fig, small))).convert("RGB"))
                 for small in (False, True))
    assert len(np.unique(few.reshape(-1, 3), axis=0)) <= 128
    for column in (64, 73):
        assert np.abs(few[80, column].astype(int) - full[80, column]).max() < 6


def test_a_failing_drawing_is_said_and_the_picture_stays():
    def moody(fig, n):
        if n == 2: raise BadInput("two is too many.")
        if n == 3: raise ZeroDivisionError("by three")
        fig.alt = "fine"
    view = e.View(e.Explorer(moody, 1, 1, n=e.slider([1, 2, 3])))
    png = view.image.value
    view.inputs["n"].value = 2
    assert "two is too many" in view.words.value and view.image.value == png
    with pytest.raises(ZeroDivisionError): view.inputs["n"].value = 3
    assert "by three" in view.words.value and view.bar.layout.display == "none"


def test_progress_reaches_the_view():
    def slow(fig, n, progress):
        progress(0.5, "half")
        if view: seen.append((view.bar.value, view.bar.layout.display, view.words.value))
        fig.alt = "done"
    view, seen = None, []
    t = e.Explorer(slow, 1, 1, n=e.slider([1, 2]))
    t.draw()  # nobody is watching
    view = e.View(t)
    view.inputs["n"].value = 2
    assert seen[-1][:2] == (0.5, None) and "half" in seen[-1][2]


def test_a_stored_notebook_holds_a_picture_and_no_widget():
    bundle = toy()._repr_mimebundle_()
    assert bundle.keys() == {"image/png", "text/plain"} and bundle["text/plain"] == "a <2>"


# frames

def test_frames_are_a_whole_page():
    html = toy().frames()
    page = Page(html)
    data = json.loads("".join(page.text["script"][:1]))
    assert len(data["frames"]) == len(data["captions"]) == 3 * 2 * 2
    assert data["texts"] == [["1 dB", "2 dB", "5 dB"], ["a", "b"], ["no", "yes"]]
    assert data["captions"][1 * 4 + 1 * 2 + 1] == "b <2> & dark"
    picture, = page.all("img")
    assert picture["alt"] == "a <2>" and picture["src"] == data["frames"][4]
    assert "max-width:100%" in picture["style"]
    assert [i["type"] for i in page.all("input")] == ["range", "checkbox"]
    assert page.all("input")[0]["value"] == "1" and len(page.all("option")) == 2
    assert "aria-live" in page.all("figcaption")[0] and "://" not in html
    assert not re.search(r"\b(src|href)=\"(?!data:)", html)


def test_what_is_not_named_stays():
    t = toy().set("name", "b")
    page = Page(t.frames(level=[1, 5]))
    assert page.all("select") == [] and page.all("img")[0]["alt"] == "b <1>"
    assert len(page.all("input")) == 1


def test_the_grid_of_the_maker_is_the_default():
    t = toy(grid=dict(level=[1, 2]))
    assert t.frames().count("data:image") == 3 == t.frames(level=[2, 5]).count("data:image")


def test_limits(monkeypatch):
    many = e.Explorer(shades, 1, 1, level=e.slider(range(61)), name=e.choice("a"),
                      dark=e.check())
    with pytest.raises(BadInput, match="122 frames"): many.frames()
    with pytest.raises(BadInput, match="61 frames"): many.frames(level=range(61))
    monkeypatch.setattr(e, "BYTES", 1000)
    with pytest.raises(BadInput, match="bytes"): toy().frames()


def test_frames_may_have_another_shape():
    wide, tall = toy(), toy(page=(1, 2))
    assert Page(wide.frames()).all("img")[0]["width"] == "200"
    assert 'width="150" height="300"' in tall.frames()


# what is kept

TOY = dict(data="toy", method="toy")


def test_a_second_look_computes_nothing(home, monkeypatch):
    look = x.Look(per_class=4)
    first = x.arrays(look)
    monkeypatch.setattr(x, "compute", lambda *a: pytest.fail("computed again"))
    assert x.arrays(look) is first
    monkeypatch.setattr(x, "MEMORY", {})
    again = x.arrays(look)  # from the disk
    assert again.keys() == first.keys()
    assert all(torch.equal(again[k], first[k]) for k in first)
    assert {p.suffix for p in home.iterdir()} == {".safetensors"}


def test_other_weights_are_not_served_old_arrays(home, monkeypatch):
    for name in "aab":
        monkeypatch.setattr(x, "edition", lambda n=name: n)
        x.kept(TOY, lambda n=name: {n: torch.ones(1)})
    assert len(list(home.iterdir())) == 2 and x.kept(TOY, dict).keys() == {"b"}


def test_a_cache_that_cannot_be_written_is_no_obstacle(home, monkeypatch):
    home.parent.joinpath("file").write_text("")
    monkeypatch.setenv("DH_CACHE", str(home.parent / "file"))
    assert x.kept(TOY, lambda: {"a": torch.ones(1)})["a"].item() == 1


def test_the_memory_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(x, "MEMORY", {})
    for i in range(30): x.remembered((i,), lambda i=i: i)
    assert len(x.MEMORY) == 24 and (29,) in x.MEMORY and (0,) not in x.MEMORY


# the four

@pytest.fixture
def four(home, monkeypatch, tmp_path):
    "The explorers, small; without packages that are optional."
    monkeypatch.setattr(x, "deep", lambda: False)
    treat = x.treat
    def quick(name, *about):
        if name in ("dvae", "diffusion_purify"): raise BadInput("not here")
        return treat(name, *about)
    monkeypatch.setattr(x, "treat", quick)
    return dict(distances=x.explore_distances(per_class=4), hiding=x.explore_hiding(),
                countermeasures=x.explore_countermeasures(), results=x.explore_results())


@pytest.mark.parametrize("name, moves", [
    ("distances", dict(cls=5, view="tsne", what="pictures", method="class DCT",
                       after="jpeg", strength=5)),
    ("countermeasures", dict(after="cutout", strength=5, method="class DCT", picture=4)),
    ("hiding", dict(preset="robust", bands=1, db=40, damage="jpeg", secret="bee",
                    cover="flower")),
    ("results", dict(part="10 to 18", table="cifar10, small, first 1000 a class, quick48",
                     by="PSNR", full=True))])
def test_each_control_changes_the_picture(name, moves, four):
    t = four[name]
    for control, value in moves.items():
        png, words = t.now()
        t.set(control, value)
        assert t.now()[0] != png and t.caption != words, control


def test_clean_pictures_have_no_changes(four):
    with pytest.raises(BadInput, match="no changes"):
        four["distances"].draw(method="clean")


def test_the_step_matters_only_to_who_adapts(four, monkeypatch):
    t = four["distances"]
    assert t.draw(step=0) == t.draw(step=40)
    weights = x.load_hider("fast").state_dict()
    both = {f"{n}/{k}": v + (n > 0) * 1e-3 for n in x.MOMENTS for k, v in weights.items()}
    monkeypatch.setattr(x, "adapt", lambda *a: both)
    monkeypatch.setattr(x, "deep", lambda: True)
    monkeypatch.setattr(x, "network", lambda layer: x.Extractor(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8)), "0", 0.5, pooled=False))
    t = x.explore_distances(per_class=4).set("method", "adapting, without LFC")
    assert "after 0 steps" in t.caption and t.draw(step=0) != t.draw(step=40)


@pytest.mark.parametrize("after", ["randaugment", "orthogonal_projection", "diffusion_purify",
                                   "dvae"])
def test_distances_after_what_is_no_filter(after, home):
    "Each is drawn, differs from the published pictures, and says its strength."
    if after == "diffusion_purify": pytest.importorskip("diffusers")
    t = x.explore_distances(per_class=4).set("layer", "pixels, 8 x 8").set("method", "class DCT")
    plain = t.draw()
    assert t.draw(after=after) != plain
    assert f"{after} ({x.setting(after)})" in t.set("after", after).caption


def test_a_folder_of_ones_own(home, tmp_path):
    protect("embedded", tmp_path / "mine", hider="fast", per_class=4)
    t = x.explore_distances(per_class=4, folders=[str(tmp_path / "mine")])
    name = f"files:{tmp_path / 'mine'}"
    a, b = (x.published("embedded", 4, m)[0] for m in (name, "dh"))
    assert x.decibel(a, b).min() > 45 and name in t.controls["method"].values
    assert t.set("method", name).now() and f"embedded, {name}: changes" in t.caption
    assert len(list(home.iterdir())) == 1  # of dh; a folder may change, so it is not kept


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Published pictures: enough of each class, and too few."
    tmp = tmp_path_factory.mktemp("published")
    for name, n in (("mine", 40), ("few", 1)): protect("embedded", tmp / name, per_class=n)
    return tmp


def test_folders_of_the_environment_are_offered(folders, home, monkeypatch):
    monkeypatch.setenv("DH_FILES", f"{folders / 'mine'}\n{folders / 'few'}\n")
    names = [f"files:{folders / 'mine'}", f"files:{folders / 'few'}"]
    monkeypatch.setattr(x, "treat", lambda name, x8, y, rows: x8[rows])
    for t in (x.explore_distances(per_class=4), x.explore_countermeasures()):
        assert list(t.controls["method"].values[-2:]) == names
    assert names[0] in t.set("method", names[0]).caption
    with pytest.raises(BadInput, match="few lacks 190 of the 200 pictures"):
        t.draw(method=names[1])
    assert names[0] not in x.explore_distances(per_class=4, folders=[]).controls["method"].values


@pytest.mark.parametrize("bad, says", [
    ("nowhere", "is not a folder"), ("file", "is not a folder"), ("empty", "empty"),
    ("few", "few lacks 390 of the 400 pictures"), ("other", "no pictures of the class"),
    ("damaged", "t.png")])
def test_a_folder_that_does_not_fit_is_one_sentence(bad, says, folders, home, tmp_path,
                                                    monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for part in ("other/t", "other/u", "damaged/t", "damaged/u"):
        (tmp_path / part).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / part / "t.png")
    (tmp_path / "damaged/t/t.png").write_text("no picture")
    place = folders if bad == "few" else tmp_path
    monkeypatch.setattr(cli.subprocess, "call", lambda *a, **k: pytest.fail("started"))
    with pytest.raises(SystemExit) as end:
        cli.explore(["--files", str(folders / "mine"), str(place / bad)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("dh_explore: ")
    assert says in said and said.count("\n") == 1


def test_a_folder_may_go_with_any_data_set(home, folders, monkeypatch):
    clean, load = x.opened("embedded", 40), x.from_folder
    monkeypatch.setattr(x, "data_sets", lambda: ["cifar10", "embedded"])
    monkeypatch.setattr(x, "opened", lambda name, n: x.Task(name, name))
    def pair(folder, data):
        if data == "cifar10": raise BadInput("no")
        return load(folder, clean.data)
    monkeypatch.setattr(x, "from_folder", pair)
    assert x.fitting(folders / "mine") == "embedded"
    with pytest.raises(BadInput, match="of any of cifar10, embedded"):
        x.fitting(folders / "few")


def test_no_results_are_said(home, tmp_path):
    t = x.explore_results(tmp_path)
    assert "no folder of results" in t.caption and t.now()[0]
    assert x.accuracies(x.all_rows(tmp_path), "dh") == {}
    assert "no folder of results" in x.said_accuracy(dict(clean={}, dh={}), "jpeg")


def test_every_countermeasure_is_shown_or_missed(home, monkeypatch):
    calls = []
    def treat(name, x8, y, rows):
        calls.append(name)
        if name == "dvae": raise BadInput("not here")
        return x8[rows]
    monkeypatch.setattr(x, "treat", treat)
    t = x.explore_countermeasures()
    assert "quality=10" in t.caption and len(calls) == 19
    assert "not installed" in t.picture(after="dvae").alt and len(calls) == 19
    t.draw(strength=1)
    assert len(calls) == 38


def test_strengths_are_in_order_and_three_is_the_suite():
    for name, (_, values) in x.SWEEPS.items():
        assert len(values) == 5 and x.sweep(name, 3) == name
        known = [v for v in values if v is not None]
        assert known in (sorted(known), sorted(known, reverse=True)), name


PHONE = 314  # pixels of a picture where the window has 390


def letters(fig):
    "Sizes in points of all texts that are seen."
    return [t.get_fontsize() for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize("name", ["distances", "hiding", "countermeasures", "results"])
def test_pages_are_light_and_can_be_read_on_a_phone(name, home, monkeypatch):
    "All frames are counted, some are drawn: first, middle and last."
    if name == "countermeasures":  # what takes long changes no letter and hardly a byte
        treat = lambda name, x8, y, rows: x8[rows]
        monkeypatch.setattr(x, "treat", treat)
    monkeypatch.setattr(x, "deep", lambda: False)
    t = x.PAGES[name]()
    grid = e.frame_grid(t, t.grid)
    rows = [dict(zip(grid, row)) for row in product(*grid.values())]
    assert t.title and 1 < len(rows) <= e.MOST
    some = [t.frame(row) for row in (rows[0], rows[len(rows) // 2], rows[-1])]
    assert sum(len(e.webp(f)) for f in some) / 3 * len(rows) < e.BYTES
    for fig in some:
        wide, high = e.pixels(fig).size
        assert high > wide and min(letters(fig)) / 72 * fig.dpi * PHONE / wide > 9
        for text in fig.findobj(Text):  # nothing is cut off
            if text.get_visible() and text.get_text().strip():
                box = text.get_window_extent()
                if not 0 <= (box.x0 + box.x1) / 2 <= wide: continue  # a tick beyond its axis
                assert -2 <= box.x0 and box.x1 <= wide + 2 and box.y1 <= high + 2, text


def test_parts_of_the_table_are_all_of_it(four):
    t = four["results"]
    lines = x.ordered(x.groups(x.all_rows())["cifar10", "small", "first 1000 a class", "quick"], "worst")
    parts = [t.picture(part=p).alt for p in t.controls["part"].values[1:]]
    assert all(p.endswith("clean.") for p in parts)
    shown = [p.partition("shown: ")[2].removesuffix(", clean.") for p in parts]
    assert ", ".join(shown) == ", ".join(m for m in lines.method if m != "clean")


UMAP_TOY = """
class UMAP:
    "Two numbers a row, and no more."
    def __init__(self, n_neighbors, random_state, n_jobs): assert n_neighbors < 40
    def fit_transform(self, z): return z[:, :2] ** 3
"""


def test_umap_is_a_map_where_it_is_installed(home, monkeypatch, tmp_path):
    monkeypatch.setattr(x, "deep", lambda: False)
    has = x.find_spec
    monkeypatch.setattr(x, "find_spec", lambda name: name != "umap" and has(name))
    before = x.explore_distances(per_class=4)
    assert before.controls["view"].values == ("pca", "tsne") and before.now()
    (tmp_path / "umap.py").write_text(UMAP_TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    monkeypatch.setattr(x, "find_spec", has)
    monkeypatch.setattr(x, "MEMORY", {})  # on the disk lies a look without it
    after = x.explore_distances(per_class=4)
    assert after.controls["view"].values == ("pca", "tsne", "umap")
    pca = after.draw()
    assert after.draw(view="umap") != pca and "Map: umap" in after.set("view", "umap").caption
    sys.modules.pop("umap")


@pytest.mark.parametrize("name", [n for n in x.SWEEPS if n not in (
    "dvae", "diffusion_purify", "cutmix", "mixup")])  # two are slow, two draw a share
def test_a_stronger_countermeasure_changes_more(name, home):
    "Each setting is what it says: from 1 to 5 pictures lose decibels, or are others."
    x8, data = x.published("embedded", 4, "dh")[0], x.opened("embedded", 4).data
    rows = torch.arange(0, 40, 4)
    seen = [x.treat(x.sweep(name, s), x8, data.y, rows) for s in range(1, 6)]
    values = x.SWEEPS[name][1]
    for i in range(4):  # more draws need not find a worse one
        same = torch.equal(seen[i], seen[i + 1])
        assert same == (values[i] == values[i + 1]) or same and name == "ueraser_max"
    assert not torch.equal(seen[0], seen[4])
    lost = [x.decibel(x8[rows], s).mean() for s in seen]
    assert lost[0] > lost[4] or name in ("randaugment", "ueraser_max")


# pictures of one's own

@pytest.fixture
def ours():
    "Three classes of different sizes, not square, as somebody has them in memory."
    g = torch.Generator().manual_seed(0)
    x8 = torch.randint(0, 256, (17, 3, 48, 64), generator=g).byte()
    y = torch.tensor([0] * 8 + [1] * 6 + [2] * 3)
    return ImageSet(x8, y, ["a", "b", "c"], [str(i) for i in range(17)])


def test_ones_own_pictures_are_shown_and_nothing_of_them_is_kept(ours, home):
    safe = protect(ours, "fast")
    t = x.explore_distances(ours, {"mine": safe, "again": ours}, countermeasures=["none", "jpeg"])
    assert t.controls["method"].values == ("mine", "again", "clean")
    assert t.controls["cls"].values == (0, 1, 2) and "dataset" not in t.controls
    plain, words = t.now()
    assert words.startswith("your pictures, mine: changes") and "ratio" in words
    for name, value in dict(cls=0, view="tsne", what="hidden pictures", after="jpeg",
                            method="clean").items():
        t.set(name, value)
        assert t.now()[0] != plain, name
        plain = t.now()[0]
    assert not home.exists()
    name = x.bring(ours, safe)
    assert torch.equal(x.published(name, 99, "fast")[0], safe.x)
    assert x.hider_at(name, 99, "fast", 0, x.quiet) is safe.info["hider"]


@pytest.mark.parametrize("wrong, says", [
    (lambda o: (o, None), "or neither"), (lambda o: (None, o), "or neither"),
    (lambda o: (o, o.subset(torch.arange(5))), "picture by picture"), (lambda o: (o, "magic"), "magic"),
    (lambda o: (o, ImageSet(o.x, o.y, ["u", "v", "w"], o.names)), "other classes"),
    (lambda o: (o.subset(torch.arange(8)), o.subset(torch.arange(8))), "two classes")])
def test_sets_that_do_not_belong_together(wrong, says, ours, home):
    with pytest.raises(BadInput, match=says): x.explore_distances(*wrong(ours))


def test_what_was_registered_is_offered(home):
    register_method("tint")(lambda task, seed: task.data.x // 2)

    @register_countermeasure
    def turned(x, times: int = 1): return x.rot90(times, (2, 3))
    try:
        t = x.explore_distances(per_class=4)
        assert "tint" in t.controls["method"].values and "turned" in t.controls["after"].values
        before = t.set("method", "tint").now()[0]
        assert t.set("after", "turned").now()[0] != before and "turned (times=1)" in t.caption
        assert "turned" in x.explore_countermeasures().controls["after"].values
        spelled = ["none", "turned(times=2)", "jpeg(quality=50)"]
        t = x.explore_distances(per_class=4, countermeasures=spelled)
        assert t.controls["after"].values == tuple(spelled)
        assert "jpeg (quality=50)" in t.set("after", "jpeg(quality=50)").caption
    finally:
        for kind, name in (("method", "tint"), ("countermeasure", "turned")):
            del TABLES[kind][name], REGISTERED[kind, name]


# the command

def test_a_room_is_found_in_the_clone_or_in_the_package(monkeypatch, tmp_path):
    assert data.notebook("80_explorers").parent.name == "nbs"
    with pytest.raises(BadInput): data.notebook("81_nothing")
    home = tmp_path / "site" / "dh_nb"
    (home / "notebooks").mkdir(parents=True)
    (home / "notebooks" / "80_explorers.ipynb").write_text("{}")
    monkeypatch.setattr(data, "files", lambda package: home)
    path = data.notebook("80_explorers")
    assert path.parent.name == "notebooks"
    assert cli.own_copy(path, tmp_path / "out").parent == tmp_path / "out"


@pytest.mark.parametrize("voila", [False, True])
def test_what_is_started(voila, folders, monkeypatch):
    seen = []
    def call(line, env):
        seen.append(line)
        assert env["DH_FILES"].splitlines() == [str(folders / "mine")] * 2
        page = json.loads(open(line[3], encoding="utf-8").read())
        assert page["cells"] and (not voila or len(page["cells"]) == 8)
        return 0
    monkeypatch.setattr(cli.subprocess, "call", call)
    monkeypatch.setattr(cli, "find_spec", lambda name: True)
    with pytest.raises(SystemExit) as end:
        monkeypatch.chdir(folders)
        cli.explore(["--no-browser", "--files", "mine", str(folders / "mine")]
                    + ["--voila"] * voila)
    assert end.value.code == 0
    assert seen[0][2] == ("voila" if voila else "jupyterlab") and "--no-browser" in seen[0]


def test_a_missing_program_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end: cli.explore(["--voila"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("dh_explore: voila is not installed") and said.count("\n") == 1
