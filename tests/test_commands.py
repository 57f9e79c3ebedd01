"The commands as a user meets them: what they promise, and what they refuse."
import json, os, re, resource, shutil, subprocess, sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dh_nb import cli
from dh_nb.data import BadInput, load_dataset, read_image, to_float
from dh_nb.hiding import Hider, Preset
from dh_nb.publishing import choose_secrets, protect
from dh_nb.quality import psnr, quality_table
from dh_nb.revealing import (expected, hider_of, read_manifest, reveal_image,
                             secret_distance)
from dh_nb.results import read
from dh_nb.training import bundled, load_hider
from dh_nb.verification import name_method

COMMANDS = ["demo", "train", "protect", "verify", "reveal", "keygen", "bench", "student",
            "explore"]
NEEDED = {"protect": "ab", "verify": "ab", "reveal": "a", "train": ["a", "--out", "b"], "keygen": "a",
          "student": "a", "bench": ["status"]}  # what else they would miss first
CIFAR = Path(os.environ.get("DH_DATA", "/nonexistent")) / "cifar10.webp.npz"


def call(name, *args):
    "Exit code of a command run in this process."
    try: getattr(cli, name)([str(a) for a in args])
    except SystemExit as e: return e.code or 0
    return 0


def refused(capsys, name, *args, says=""):
    "The command ends with 2 and one sentence on standard error, nothing on output."
    assert call(name, *args) == 2
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1 and says in err, err
    assert err.startswith(f"dh_{name}: ") and out == ""


def picture(path, size=(32, 32), seed=0, mode="RGB"):
    "Write a smooth random picture."
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.BICUBIC).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path):
    "A folder of two classes with three pictures each."
    for c in ("cat", "dog"):
        for i in range(3): picture(tmp_path / "photos" / c / f"{i}.png", seed=i)
    return tmp_path / "photos"


def tree(folder):
    "Every file below a folder with its bytes."
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name, capsys):
    assert call(name, "--help") == 0
    assert f"examples:\n  dh_{name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_sentence(name, capsys):
    refused(capsys, name, *NEEDED.get(name, []), "--wrong", says="--wrong")


def test_every_command_is_installed():
    found = entry_points(group="console_scripts")
    for name in COMMANDS:
        assert Path(sys.executable).with_name(f"dh_{name}").is_file()
        assert found[f"dh_{name}"].load() is getattr(cli, name)
    done = subprocess.run([Path(sys.executable).with_name("dh_keygen"), "--wrong"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


# what is refused

def damage(folder, how):
    "Make one thing wrong with a folder of pictures."
    if how == "missing": shutil.rmtree(folder)
    if how == "empty class": (folder / "bird").mkdir()
    if how == "one class": shutil.rmtree(folder / "dog")
    if how == "same name": picture(folder / "cat" / "1.jpg")
    if how == "no picture":
        for p in (folder / "cat").iterdir(): p.write_bytes(b"no picture")


@pytest.mark.parametrize("how, says", [
    ("missing", "photos"), ("empty class", "bird"), ("one class", "two"),
    ("same name", "one name"), ("no picture", "cat")])
def test_a_bad_source(how, says, photos, tmp_path, capsys):
    damage(photos, how)
    before = tree(photos) if photos.exists() else {}
    refused(capsys, "protect", photos, tmp_path / "out", says=says)
    assert not (tmp_path / "out").exists() and (not before or tree(photos) == before)


@pytest.mark.parametrize("content", [b"no picture at all", None], ids=["text", "cut off"])
def test_unreadable_pictures_are_skipped_or_strictly_refused(content, photos, tmp_path, capsys):
    bad = photos / "cat" / "bad.png"
    picture(bad, (200, 200))
    bad.write_bytes(content or bad.read_bytes()[:300])
    refused(capsys, "protect", photos, tmp_path / "out", "--strict", says="bad.png")
    assert call("protect", photos, tmp_path / "out") == 0
    assert "skipped cat/bad.png" in capsys.readouterr().err
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(made["images"]) == 6 and len(made["skipped"]) == 1


AS_ANOTHER_USER = """
import os, sys
from dh_nb.cli import protect
photos, warm, out, *more = sys.argv[1:]
protect([photos, warm])            # loads whatever is loaded late, while it may be read
os.setgid(65534); os.setuid(65534)
protect([photos, out, *more])
"""


def test_a_file_without_permission(photos, tmp_path):
    "Run as a user who may not read one of the pictures."
    if os.getuid(): pytest.skip("only root can become a user who may not read a file")
    (photos / "cat" / "0.png").chmod(0)
    for p in (tmp_path, *tmp_path.parents):
        if p != Path("/") and os.access(p, os.W_OK): p.chmod(p.stat().st_mode | 0o755)
    work = tmp_path / "work"
    work.mkdir(); work.chmod(0o777)

    quiet = {k: v for k, v in os.environ.items() if not k.startswith("COV")}

    def run(warm, *more):
        command = [sys.executable, "-c", AS_ANOTHER_USER, photos, tmp_path / warm, work / "out"]
        return subprocess.run([*command, *more], capture_output=True, text=True, cwd=work,
                              env={**quiet, "TQDM_DISABLE": "1"})

    done = run("one", "--strict")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "0.png" in done.stderr and list(work.iterdir()) == []
    done = run("two")
    assert done.returncode == 0 and "skipped cat/0.png" in done.stderr, done.stderr
    assert len(list((work / "out").rglob("*.png"))) == 5


def test_a_bad_target(photos, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    before = tree(tmp_path)
    refused(capsys, "protect", photos, full, says="not empty")
    refused(capsys, "protect", photos, photos / "out", says="inside")
    refused(capsys, "protect", photos, full / "mine.txt", says="file")
    refused(capsys, "protect", photos, full / "mine.txt" / "out")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("args, says", [
    (["--preset", "none"], "none"), (["--psnr", "9"], "dB"), (["--psnr", "x"], "psnr"),
    (["--per-class", "0"], "rows a class"), (["--hider", "text"], "safetensors"),
    (["--weights", "shape"], "fit"), (["--weights", "nowhere.safetensors"], "No weights"),
    (["--psnr", "nan"], "dB")])
def test_bad_options(args, says, photos, tmp_path, capsys):
    text, shape = tmp_path / "text.safetensors", tmp_path / "shape.safetensors"
    text.write_bytes(b"\x80\x04 a pickle, for all we know")
    odd = Hider(Preset("odd", dict(blocks=1, growth=4, layers=2)))
    odd.preset = Preset("odd", dict(blocks=2, growth=4, layers=2))
    odd.save(shape)
    files = dict(text=text, shape=shape)
    refused(capsys, "protect", photos, tmp_path / "out", *(files.get(a, a) for a in args),
            says=says)
    assert not (tmp_path / "out").exists()


def test_the_other_commands_refuse_too(photos, tmp_path, capsys):
    refused(capsys, "verify", photos, tmp_path / "nowhere", says="nowhere")
    refused(capsys, "verify", "nothing", photos)
    refused(capsys, "reveal", tmp_path / "no.png", "--out", tmp_path / "x.png", says="no.png")
    refused(capsys, "reveal", photos / "cat/0.png", "--out", photos / "cat/1.png",
            says="exists")
    refused(capsys, "train", photos, "--out", tmp_path / "no" / "w.safetensors")
    refused(capsys, "train", tmp_path, "--out", tmp_path / "w.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


# what is promised

def test_a_folder_of_many_kinds(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    for i, (size, mode) in enumerate([((33, 47), "RGB"), ((8, 8), "RGB"), ((1, 1), "L"),
                                      ((300, 200), "L"), ((5, 400), "RGB")]):
        picture(src / "a" / f"{i}.png", size, i, mode)
        picture(src / "Ünï code & co" / f"{i}.jpg", size, i, mode)
    before = tree(src)
    made = protect(src, out)
    assert tree(src) == before and len(made["images"]) == 10
    for name, quality in made["images"].items():
        stego = read_image(out / name)
        stem = Path(name)
        cover = read_image(next((src / stem.parent.name).glob(f"{stem.stem}.*")))
        assert stego.shape == cover.shape
        value = psnr(to_float(cover)[None], to_float(stego)[None]).item()
        assert value >= 30.1 and (quality["psnr"] is None or abs(value - quality["psnr"]) < .01)


def test_same_seed_same_bytes(tmp_path):
    for run in "ab": protect("embedded", tmp_path / run, per_class=3, seed=5)
    protect("embedded", tmp_path / "c", per_class=3, seed=6)
    a, b, c = (tree(tmp_path / run) for run in "abc")
    assert a == b and a.keys() == c.keys() and a != c


def test_the_manifest_tells_no_place_and_no_time(photos, tmp_path):
    protect(photos, tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in text and "photos" not in text
    assert set(json.loads(text)) == {"tool", "revision", "preset", "weights_sha256",
                                     "psnr_budget", "seed", "classes", "images", "skipped",
                                     "hidden", "variants", "places", "names"}


def test_a_keyed_folder_tells_nothing(photos, tmp_path, capsys):
    key, other, out = tmp_path / "my.key", tmp_path / "other.key", tmp_path / "out"
    assert call("keygen", key) == call("keygen", other) == 0
    assert key.stat().st_mode & 0o77 == 0
    capsys.readouterr()
    refused(capsys, "keygen", key, says="exists")
    assert call("protect", photos, out, "--key", key) == 0
    text = (out / "manifest.json").read_text()
    told = json.loads(text)
    assert told["hidden"] == "keyed" and not {"names", "seed"} & told.keys()
    assert key.read_text().strip() not in text
    assert call("protect", photos, tmp_path / "again", "--key", key) == 0
    assert tree(tmp_path / "again") == tree(out)
    assert call("protect", photos, tmp_path / "wrong", "--key", other) == 0
    assert tree(tmp_path / "wrong") != tree(out)
    words = lambda manifest: set(re.findall("[a-z_]{2,}", re.sub(
        r"\b[0-9a-f]{16,}\b", "", manifest.read_text())))  # all but digests
    assert words(tmp_path / "wrong/manifest.json") == words(out / "manifest.json")
    image, told = out / "train/cat/0.png", ["--manifest", out / "manifest.json"]
    assert call("reveal", image, *told, "--key", key, "--out", tmp_path / "a.png") == 0
    assert "nearest to what class" in capsys.readouterr().out
    capsys.readouterr()
    refused(capsys, "reveal", image, *told, "--out", tmp_path / "b.png", says="key")
    refused(capsys, "reveal", image, "--manifest", key, "--out", tmp_path / "b.png",
            says="manifest")


@pytest.mark.parametrize("args, says", [
    (["--assign", "keyed"], "key"), (["--assign", "nothing"], "assign"),
    (["--key", "nowhere"], "key"), (["--pictures", "nowhere"], "nowhere"),
    (["--pictures", "photos/cat"], "photos"), (["--variants", "0"], "variants"),
    (["--finetune", "-1"], "finetune")])
def test_bad_choices(args, says, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, "protect", "photos", "out", *args, says=says)
    assert not (tmp_path / "out").exists()


def test_own_pictures_and_finetuning(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("protect", photos, out, "--pictures", photos, "--finetune", 1,
                "--variants", 2) == 0
    assert json.loads((out / "manifest.json").read_text())["hidden"] == "own pictures"
    assert {p.name for p in out.iterdir()} == {"train", "manifest.json"}
    weights = tmp_path / "out.safetensors"  # beside what is published, never inside
    assert load_hider(weights).preset.name == "robust"
    image, found = out / "train/cat/0.png", [tmp_path / "a.png", tmp_path / "b.png"]
    assert call("reveal", image, "--weights", weights, "--out", found[0]) == 0
    assert call("reveal", image, "--out", found[1]) == 0  # they are found beside it
    assert found[0].read_bytes() == found[1].read_bytes()
    capsys.readouterr()
    refused(capsys, "reveal", image, "--manifest", out / "manifest.json", "--out",
            tmp_path / "x.png", says="own pictures")
    weights.rename(tmp_path / "elsewhere")
    refused(capsys, "reveal", image, "--out", tmp_path / "x.png", says="give their file")
    (tmp_path / "elsewhere").rename(weights)
    shutil.rmtree(out)
    refused(capsys, "protect", photos, out, "--finetune", 1, says="out.safetensors")


@pytest.mark.parametrize("args, name", [
    ([], "robust"), (["--assign", "far"], "robust"), (["--assign", "own"], "fast"),
    (["--variants", "2"], "fast"), (["--pictures", "photos"], "fast"),
    (["--assign", "own", "--preset", "robust"], "robust")])
def test_who_hides_and_who_reads(args, name, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("protect", "photos", "out", *args) == 0
    said, warned = capsys.readouterr()
    assert f"by {name}" in said and ("finetune" in warned) == ("own" in args and name == "robust")
    told = json.loads(Path("out/manifest.json").read_text())
    assert told["preset"] == name == hider_of("out").preset.name
    image = Path("out/train/dog/1.png")
    assert call("reveal", image) == call("reveal", image, "--preset", name, "--out", "b.png") == 0
    assert Path("1.hidden.png").read_bytes() == Path("b.png").read_bytes()
    told["weights_sha256"] = "0" * 64
    Path("out/manifest.json").write_text(json.dumps(told))
    with pytest.raises(BadInput, match="Other weights"): hider_of("out")


def test_who_reads_is_found_from_anywhere(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("robust").mkdir()  # a folder of that name is no file of weights
    assert call("protect", "photos", "out", "--preset", "fast") == 0
    assert call("reveal", "out/train/cat/0.png", "--out", "a.png") == 0
    shutil.copy("out/train/cat/0.png", "copy.png")
    Path("link.png").symlink_to("out/train/cat/0.png")
    assert call("reveal", "copy.png", "--manifest", "out/manifest.json", "--out", "b.png") == 0
    assert call("reveal", "link.png", "--out", "c.png") == 0
    load_hider("robust").save(Path("out.safetensors"))  # not who hid
    assert call("reveal", "out/train/dog/../cat/0.png", "--out", "d.png") == 0
    assert len({Path(f"{n}.png").read_bytes() for n in "abcd"}) == 1
    assert call("reveal", "copy.png", "--out", "e.png") == 0  # by the default
    for told in ("[]", '{"tool": "dh_nb"}', "[" * 10**5, '{"tool": "dh_nb", "weights_sha256": 3}'):
        Path("out/manifest.json").write_text(told)
        capsys.readouterr()
        refused(capsys, "reveal", "link.png", "--out", "f.png")
        refused(capsys, "verify", "photos", "out")


@pytest.mark.parametrize("args, method", [([], "robust"), (["--preset", "fast"], "dh"),
    (["--psnr", "34"], "files:out"), (["--preset", "robust", "--assign", "own"], "files:out")])
def test_rows_are_named_by_what_was_done(args, method, photos, tmp_path):
    assert call("protect", photos, tmp_path / "out", *args) == 0
    assert name_method(tmp_path / "out")[0] == method


def test_other_weights_of_a_preset_do_not_take_its_name(photos, tmp_path):
    hider = load_hider("robust")
    with torch.no_grad(): next(hider.parameters()).add_(1e-3)
    hider.save(tmp_path / "mine.safetensors")
    protect(photos, tmp_path / "out", hider=tmp_path / "mine.safetensors")
    assert name_method(tmp_path / "out")[0] == "files:out"


def test_a_seed_hands_the_book_to_other_classes(photos, tmp_path):
    "The far shapes keep their paints, which a hider may have learnt."
    books = []
    for seed in (0, 1):
        told = protect(photos, tmp_path / str(seed), seed=seed)
        hidden, _ = choose_secrets(told["classes"], "far", seed=seed, places=4)
        assert torch.equal(expected(told), hidden)
        books.append(hidden)
    assert torch.equal(books[0], books[1].flip(0)) and not torch.equal(*books)


def test_a_row_says_which_network_was_trained(photos, tmp_path, capsys):
    out, rows = tmp_path / "out", tmp_path / "rows"
    assert call("protect", photos, out) == 0
    assert call("verify", photos, out, "--victim", "narrow", "--results", rows, "--json",
                tmp_path / "a.json") == 0
    found = read(rows)
    assert found.victim.tolist() == ["narrow"] * 2 and found.method.tolist() == ["clean", "robust"]
    told = json.loads((tmp_path / "a.json").read_text())
    assert [r["accuracy"] for r in told] == found.accuracy.tolist()
    said = capsys.readouterr().out
    assert f"accuracy {found.accuracy[1]:5.1f} %" in said and "dB or better" in said
    refused(capsys, "verify", photos, out, "--victim", "nobody", says="No victim")
    refused(capsys, "verify", photos, out, "--json", tmp_path / "a.json", says="exists")


def test_training_makes_usable_weights(photos, tmp_path, capsys):
    weights = tmp_path / "w.safetensors"
    assert call("train", photos, "--steps", 2, "--out", weights) == 0
    assert call("protect", photos, tmp_path / "out", "--weights", weights) == 0
    assert load_hider(weights).preset.name == "fast"
    tuned = tmp_path / "t.safetensors"
    assert call("train", photos, "--start", weights, "--steps", 2, "--out", tuned) == 0
    assert load_hider(tuned).preset.weights["reveal"] == 4.0
    assert load_hider(tuned).notes["before"]["steps"] == 2
    capsys.readouterr()
    refused(capsys, "train", photos, "--start", weights, "--weight", "lfc=0",
            "--out", tmp_path / "no.safetensors", says="no weights")
    more = tmp_path / "m.safetensors"
    assert call("train", photos, "--resume", weights, "--steps", 1, "--weight", "lfc=0",
                "--out", more) == 0
    assert load_hider(more).preset.weights["lfc"] == 0
    assert load_hider(more).notes["before"]["steps"] == 2


def test_bundled_weights_are_small_and_say_where_they_come_from():
    from safetensors import safe_open
    assert bundled("fast").stat().st_size < 8e6
    with safe_open(bundled("fast"), "pt") as f: notes = json.loads(f.metadata()["notes"])
    assert notes["source"] == "cifar10" and notes["skip"] == 1000 and notes["rows"] == 40_000


def recognised(dst, images, y):
    "Share of the images in which the nearest of all secrets is one of their class."
    hider, secrets = hider_of(dst), expected(read_manifest(dst / "manifest.json"))
    found = torch.stack([reveal_image(hider, x) for x in images])
    d = torch.stack([secret_distance(found, s[None]) for s in secrets.flatten(0, 1)], 1)
    return (d.unflatten(1, secrets.shape[:2]).amin(2).argmin(1) == y).float().mean()


@pytest.mark.parametrize("preset, least", [("fast", 0.7), ("robust", 0.3)])
def test_the_hidden_picture_is_found_in_published_files_only(preset, least, tmp_path):
    data = load_dataset("embedded", per_class=10)
    protect("embedded", tmp_path / "out", hider=preset, per_class=10)
    stego = load_dataset(str(tmp_path / "out" / "train"))
    order = torch.tensor([data.classes.index(c) for c in stego.classes])
    found = recognised(tmp_path / "out", stego.x, order[stego.y])
    assert found >= least and recognised(tmp_path / "out", data.x, data.y) <= least / 2


def test_the_demo_reaches_its_bars(tmp_path):
    assert call("demo", "--out", tmp_path / "demo", "--per-class", "100") == 0
    m = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert set(m) == {"clean_accuracy", "protected_accuracy", "psnr_min", "psnr_mean",
                      "ssim_mean", "seconds", "revision"}
    assert m["clean_accuracy"] >= 80 and m["protected_accuracy"] <= 30
    assert m["psnr_min"] >= 30.1
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<img") == 4 and "://" not in page
    (tmp_path / "demo" / "mine.txt").write_text("keep")
    assert call("demo", "--out", tmp_path / "demo", "--force") == 2


@pytest.mark.skipif(not CIFAR.exists(), reason="DH_DATA holds no cifar10.webp.npz")
def test_cifar10_from_command_to_command(tmp_path):
    "Protect and verify the first 1,000 images a class as a user would, in two processes."
    bin, out, scores = Path(sys.executable).parent, tmp_path / "out", tmp_path / "s.json"
    for args in (["dh_protect", "cifar10", out], ["dh_verify", "cifar10", out, "--json", scores]):
        subprocess.run([bin / args[0], *args[1:], "--per-class", "1000"], check=True)
    clean, safe = json.loads(scores.read_text())
    assert clean["accuracy"] >= 75 and safe["accuracy"] <= 20
    cover = load_dataset("cifar10", per_class=1000)
    stego = load_dataset(str(out / "train"))
    where = {(stego.classes[c], n): i for i, (c, n) in
             enumerate(zip(stego.y.tolist(), stego.names))}
    rows = [where[cover.classes[c], n] for c, n in zip(cover.y.tolist(), cover.names)]
    quality = quality_table(cover.x, stego.x[rows])
    assert quality["psnr_min"] >= 30.1 and quality["ssim_mean"] >= 0.93
    few = torch.arange(0, 10_000, 50)
    known = lambda x8: recognised(out, x8[few], cover.y[few])
    assert known(stego.x[rows]) >= 0.6 and known(cover.x) <= 0.25
    told = protect("cifar10", tmp_path / "faint", hider="fast", per_class=20)  # reads better
    faint = load_dataset(str(tmp_path / "faint" / "train"))
    assert told["classes"] == faint.classes
    assert recognised(tmp_path / "faint", faint.x, faint.y) >= 0.9
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3 * 2**20  # KiB
