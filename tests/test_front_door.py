"What `dh_nb` exports: a few lines that work, help with examples that run, one behaviour."
import ast, contextlib, doctest, inspect, io, json, pkgutil, re, subprocess, sys, textwrap
from importlib import import_module
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest
import torch

import dh_nb as dh
from dh_nb import cli
from dh_nb.data import BadInput, read_image
from dh_nb.publishing import PIXELS, hide_all, open_source
from dh_nb.results import key, read
from dh_nb.revealing import expected, hider_of, read_manifest, reveal_image, secret_distance
from dh_nb.verification import match_pairs

import house

OLD = Path(__file__).parent / "fixtures/600f1ef"  # written by that revision
FACTS = json.loads((OLD / "facts.json").read_text())


def python(code, *flags):
    "What a fresh Python prints."
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- loaded late ----

def test_nothing_is_loaded_before_it_is_used():
    code = ("import sys, dh_nb; heavy = {'torch', 'numpy', 'pandas', 'matplotlib'} & sys.modules.keys();"
            "print(heavy, len(dir(dh_nb)) > 17, dh_nb.BadInput.__name__, 'torch' in sys.modules)")
    assert python(code) == "set() True BadInput True"


@pytest.mark.parametrize("words", [["protect"], ["train"], ["verify"], ["reveal"], ["keygen"],
                                   ["demo"], ["student"], ["explore"], ["bench", "run"],
                                   ["bench", "speed"]])
def test_help_comes_without_loading_anything_heavy(words):
    code = (f"import sys; from dh_nb.cli import {words[0]} as command\n"
            f"try: command({words[1:]} + ['--help'])\nexcept SystemExit: pass\n"
            "print({'torch', 'numpy', 'PIL'} & sys.modules.keys())")
    assert python(code).endswith("set()")


def test_no_public_name_is_the_name_of_a_module():
    modules = {m.name.rpartition(".")[2] for m in pkgutil.walk_packages(dh.__path__, "dh_nb.")}
    assert set(dh.__all__) == set(dh.PUBLIC) and not set(dh.__all__) & modules
    before = {name: getattr(dh, name) for name in dh.__all__}
    for m in pkgutil.walk_packages(dh.__path__, "dh_nb."): import_module(m.name)
    assert before == {name: getattr(dh, name) for name in dh.__all__}
    with pytest.raises(AttributeError, match="no attribute 'protection'"):
        getattr(dh, "protection")  # noqa: B009


# ---- help ----

FUNCTIONS = [n for n in dh.__all__ if inspect.isfunction(getattr(dh, n))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_everything_and_its_example_runs(name, forgetful, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DH_CACHE", str(tmp_path / "cache"))
    function = getattr(dh, name)
    text = io.StringIO()
    with contextlib.redirect_stdout(text): help(function)
    for part in ("Returns:", "Example:", ">>> "): assert part in text.getvalue()
    for p in inspect.signature(function).parameters: assert f"  {p}: " in text.getvalue()
    test, = doctest.DocTestFinder(recurse=False).find(function, name, globs={})
    with contextlib.redirect_stderr(io.StringIO()):
        found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert found.attempted >= 2 and not found.failed


def test_lists():
    assert dh.list_datasets() == ["embedded", "cifar10", "cifar100", "imagenette"]
    assert {"robust", "fast"} <= set(dh.list_presets())
    assert dh.list_countermeasures()[0] == "none" and len(dh.list_countermeasures()) >= 19
    assert dh.list_methods()[0] == "clean"


# ---- the few lines ----

README = (house.ROOT / "README.md").read_text(encoding="utf-8")


def test_the_few_lines_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DH_CACHE", str(tmp_path / "cache"))
    block = re.search(r"```python\n(.*?)```", README, re.S)[1]
    few = {'split="both"': 'split="both", per_class=4', "seeds=3": "seeds=2", "steps=300": "steps=2"}
    for a, b in few.items():
        assert a in block
        block = block.replace(a, b)
    *body, last = ast.parse(block).body
    space = {}
    exec(compile(ast.Module(body, []), "README.md", "exec"), space)
    widget = eval(compile(ast.Expression(last.value), "README.md", "eval"), space)
    assert space["protected"].x.shape == space["train"].x.shape and Path("mine.safetensors").is_file()
    assert dh.load_hider("mine.safetensors").notes["steps"] == 2
    rows = space["rows"]
    assert isinstance(rows, pd.DataFrame) and len(rows) == 2 * 2 * 2
    assert {"recovery", "psnr_min", "ssim", "accuracy", "countermeasure"} <= {*rows}
    assert rows.recovery.notna().all() and "your pictures" in widget.caption
    assert isinstance(widget.picture(), matplotlib.figure.Figure)


# ---- one behaviour ----

@pytest.fixture
def photos(tmp_path):
    "Pictures of two classes and of several sizes."
    from PIL import Image
    g = torch.Generator().manual_seed(0)
    for c in ("cat", "dog"):
        for i, size in enumerate(((32, 32), (32, 32), (60, 44))):
            x = torch.rand(3, 5, 5, generator=g).mul(255).byte()
            path = tmp_path / "photos" / c / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x.permute(1, 2, 0).numpy()).resize(size, Image.BICUBIC).save(path)
    return tmp_path / "photos"


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("options, words", [
    (dict(), []), (dict(hider="fast"), ["--preset", "fast"]), (dict(seed=3), ["--seed", "3"]),
    (dict(key="my.key"), ["--key", "my.key"]), (dict(assign="own"), ["--assign", "own"]),
    (dict(variants=2), ["--variants", "2"]), (dict(psnr=36), ["--psnr", "36"]),
    (dict(finetune=1, hider="fast"), ["--finetune", "1", "--hider", "fast"])])
def test_library_and_command_write_the_same_bytes(options, words, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.keygen(["my.key"])
    made = dh.protect("photos", "library", **options)
    cli.protect(["photos", "command", *words])
    assert tree(tmp_path / "library") == tree(tmp_path / "command")
    assert made == json.loads(Path("library/manifest.json").read_text())
    if "finetune" in options:
        both = [dh.load_hider(f"{name}.safetensors") for name in ("library", "command")]
        assert both[0].notes == both[1].notes and both[0].preset == both[1].preset


def test_pictures_in_memory_come_out_as_the_files_do(tmp_path):
    train = dh.load_dataset("embedded", per_class=3)
    safe = dh.protect(train, seed=2)
    made = dh.protect("embedded", tmp_path / "out", seed=2, per_class=3)
    files = dh.load_dataset(tmp_path / "out" / "train")
    place = {(files.classes[c], n): i for i, (c, n) in enumerate(zip(files.y.tolist(), files.names))}
    rows = [place[train.classes[c], n] for c, n in zip(train.y.tolist(), train.names)]
    assert torch.equal(files.x[rows], safe.x) and torch.equal(safe.y, train.y)
    assert {k: safe.info[k] for k in made.keys() - {"images", "skipped"}} == {
        k: v for k, v in made.items() if k not in ("images", "skipped")}


def test_training_is_the_same_by_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = dh.load_dataset("embedded", per_class=4, size=32)
    for name, more in (("fast", dict(seed=2)), ("fast", dict(weights=dict(colour=0.2)))):
        mine = dh.train_hider(name, data, steps=2, **more)
        words = [f"--{k}={v}" for k, v in more.items() if k != "weights"]
        words += [f"--weights={k}={v}" for k, v in more.get("weights", {}).items()]
        Path("theirs.safetensors").unlink(missing_ok=True)
        cli.train(["embedded", "--per-class", "4", "--steps", "2", "--out", "theirs.safetensors", *words])
        theirs = dh.load_hider("theirs.safetensors")
        for a, b in zip(mine.state_dict().values(), theirs.state_dict().values()): assert torch.equal(a, b)
        assert mine.notes == theirs.notes and mine.preset == theirs.preset


@pytest.mark.parametrize("call, says", [
    (lambda t: dh.protect(t, "out", hider="fast"), "give no target"),
    (lambda t: dh.protect("embedded"), "new folder as the second argument"),
    (lambda t: dh.protect("embedded", dh.load_hider("fast")), "new folder as the second argument"),
    (lambda t: dh.protect(t, "magic"), "magic"), (lambda t: dh.protect(t, psnr=9), "dB"),
    (lambda t: dh.protect(t, variants=0), "variants is 0"), (lambda t: dh.protect(t, finetune=-1), "finetune"),
    (lambda t: dh.protect(t, assign="keyed"), "key"), (lambda t: dh.train_hider("fast"), "ImageSet"),
    (lambda t: dh.train_hider("fast", t, steps=0), "steps is 0"),
    (lambda t: dh.train_hider("fast", t, steps=2.5), "steps is 2.5"),
    (lambda t: dh.train_hider("magic", t), "magic"), (lambda t: dh.evaluate("magic", t, clean=t), "magic"),
    (lambda t: dh.evaluate("EM", t), "as clean="), (lambda t: dh.evaluate(t, t, seeds=0), "seeds is 0"),
    (lambda t: dh.evaluate(t, t, countermeasures=["jpeg(quality=0)"]), "out of range"),
    (lambda t: dh.evaluate(t, t, workers=0), "workers is 0"), (lambda t: dh.evaluate(7, t), "is wanted"),
    (lambda t: dh.evaluate(t, t, victim="magic"), "No victim"), (lambda t: dh.reveal("nowhere.png"), "nowhere"),
    (lambda t: dh.reveal(t.x, "magic"), "magic"), (lambda t: dh.verify("embedded", "nowhere"), "nowhere"),
    (lambda t: dh.load_dataset("embedded", split="val"), "train, test or both"),
    (lambda t: dh.register_method("robust")(lambda task, seed: 0), "already"),
    (lambda t: dh.register_countermeasure("jpeg")(lambda x: x), "already"),
    (lambda t: dh.register_countermeasure("mine")(7), "neither"),
    (lambda t: dh.register_countermeasure("mine")(lambda x, by: x), "default")])
def test_bad_input_says_what_to_do(call, says, forgetful, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=says) as e: call(dh.load_dataset("embedded", per_class=2))
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_methods_and_countermeasures_of_ones_own_go_through_evaluate(forgetful):
    @dh.register_method
    def stamped(task, seed): return task.data.x | 1

    @dh.register_countermeasure
    def dim(x, share: float = 0.5): return x * share

    train, test = dh.load_dataset("embedded", split="both", per_class=3)
    rows = dh.evaluate(["stamped", dh.protect(train, "fast")], test, clean=train,
                       countermeasures=["dim(share=0.7)"])
    assert rows.method.tolist() == ["clean", "stamped", "fast"]
    assert rows.countermeasure.unique().tolist() == ["dim(share=0.7)"]
    own = dict(zip(rows.method, rows.plugin.str.split("+")))
    assert [len(own[m][0]) for m in own] == [0, 8, 0] and len({own[m][1] for m in own}) == 1


# ---- large pictures ----

@pytest.mark.parametrize("side, most", [(32, 256), (64, 256), (1024, 2), (1449, 1), (4000, 1)])
def test_batches_are_counted_in_pixels(side, most):
    x8 = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(300, 3, side, side)
    data = dh.ImageSet(x8, torch.zeros(300, dtype=int), ["a"], ["x"] * 300)
    sizes = [len(rows) for rows, _ in open_source(data).batches()]
    assert sum(sizes) == 300 and max(sizes) == most
    assert most == 1 or most == 256 or most * side**2 <= PIXELS


# ---- what was written by an earlier revision ----

@pytest.mark.parametrize("name", FACTS["reveal"])
def test_folders_of_then_reveal_and_pair_as_then(name):
    folder, then = OLD / name, FACTS["reveal"][name]
    hider, manifest = hider_of(folder), read_manifest(folder / "manifest.json")
    assert hider.preset.name == then["hider"]
    found = reveal_image(hider, read_image(folder / "train/cat/0.png"))
    assert abs(found.mean() - then["mean"]) < 1e-3 and abs(found.std() - then["std"]) < 1e-3
    key = (OLD / "my.key").read_text().strip() if name == "keyed" else None
    secrets = expected(manifest, key and bytes.fromhex(key))
    for own, d in zip(secrets, then["distance"]):
        assert abs(secret_distance(found[None].expand(len(own), -1, -1, -1), own).min() - d) < 2e-3
    assert len(match_pairs(OLD / "photos", folder).clean) == then["pairs"]


def test_the_commands_of_today_take_the_folders_of_then(tmp_path, capsys):
    cli.reveal([str(OLD / "keyed/train/dog/1.png"), "--manifest", str(OLD / "keyed/manifest.json"),
                "--key", str(OLD / "my.key"), "--out", str(tmp_path / "seen.png")])
    assert "class dog hides" in capsys.readouterr().out
    cli.verify([str(OLD / "photos"), str(OLD / "default"), "--results", str(tmp_path / "rows")])
    assert read(tmp_path / "rows").method.tolist() == ["clean", "robust"]


@pytest.mark.parametrize("name, recipe", [("tiny", "standard"), ("adversarial", "adversarial"),
                                          ("tuned", "standard")])
def test_weights_of_then_load_and_train_on(name, recipe):
    hider = dh.load_hider(OLD / f"{name}.safetensors")
    assert hider.preset.recipe == recipe
    data = dh.load_dataset("embedded", per_class=1)
    assert hide_all(hider, data, torch.rand(10, 1, 3, 32, 32)).shape == data.x.shape
    assert dh.train_hider(hider.preset, data, steps=1, resume=OLD / f"{name}.safetensors").notes["before"]


def test_rows_of_then_are_counted_as_then(capsys):
    assert len(read(OLD / "rows")) == len((OLD / "rows/cells.jsonl").read_text().splitlines())
    assert len(read(OLD / "rows", "measures"))
    for words, then in FACTS["status"].items():
        cli.bench(["status", "--results", str(OLD / "rows"), *words.split()])
        now = capsys.readouterr().out
        assert now.splitlines()[1:] == then.splitlines()[1:]
        assert now.split(" cells")[0] == then.split(" cells")[0]


def test_every_stored_row_has_its_key():
    rows = read(house.ROOT / "results").to_dict("records")
    assert len({key(r) for r in rows}) == len(rows) > 400 and {r["plugin"] for r in rows} == {""}
