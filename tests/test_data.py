"Real data sets where they are at hand; files, folders and results that are broken."
import hashlib, multiprocessing, os, signal, socket, subprocess, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from dh_nb.data import (BadInput, device, first_per_class, holdout, list_folder,
                        load_dataset, photographs, read_image)
from dh_nb.results import (Measure, Row, alone, append, heal, missing, read,
                           revision, to_line)

ROOT = os.environ.get("DH_DATA")
SHA = {("cifar10", "train"): "46a0f2e9c6c9cb34",
       ("cifar10", "test"): "03a75b782363e0ef",
       ("cifar100", "train"): "081d6a67bf892e92",
       ("cifar100", "test"): "6b81136eb2664660"}
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
forking = pytest.mark.skipif(not FORK, reason="this system cannot fork")


def needs(name):
    "Skip, with the reason, when a data set is not at hand."
    if not ROOT: pytest.skip("DH_DATA is not set: no real data to read")
    if not (Path(ROOT) / name).exists(): pytest.skip(f"DH_DATA holds no {name}")


def sentence(f, *args, **kw):
    "What BadInput says: one line, one full stop at its end."
    with pytest.raises(BadInput) as e: f(*args, **kw)
    text = str(e.value)
    assert "\n" not in text and text.endswith(".") and not text.endswith("..")
    return text


# ---- the sets ----

@pytest.mark.parametrize("name,split", SHA)
def test_packed_cifar_is_exact(name, split):
    needs(f"{name}.webp.npz")
    d = load_dataset(name, root=ROOT, split=split)
    pixels = d.x.permute(0, 2, 3, 1).contiguous().numpy()
    assert hashlib.sha256(pixels).hexdigest()[:16] == SHA[name, split]
    counts = d.y.bincount()
    assert len(d.classes) == len(counts) and counts.min() == counts.max()
    assert d.names[7] == f"{7:0{len(str(len(d) - 1))}}"


def test_rows_of_cifar_do_not_depend_on_how_many_are_asked_for():
    needs("cifar10.webp.npz")
    some = load_dataset("cifar10", root=ROOT, split="test", per_class=30, skip=20)
    whole = load_dataset("cifar10", root=ROOT, split="test")
    rows = first_per_class(whole.y, 30, skip=20)
    assert torch.equal(some.x, whole.x[rows]) and some.names == whole.subset(rows).names


@pytest.mark.parametrize("split", ["train", "test"])
def test_imagenette_has_words_for_classes(split):
    needs("imagenette224")
    d = load_dataset("imagenette", root=ROOT, split=split, per_class=3, size=96)
    assert d.x.shape == (30, 3, 96, 96) and d.y.bincount().tolist() == [3] * 10
    assert d.classes[0] == "tench" and d.classes[-1] == "parachute"


def test_torchvision_is_the_way_without_an_archive(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    asked = []

    def cifar10(root, train, download):
        asked.append((root, train, download))
        return SimpleNamespace(data=x, targets=[1, 0, 0, 1], classes=["cat", "dog"])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    d = load_dataset("cifar10", root=tmp_path, split="test")
    assert asked == [(tmp_path, False, True)] and d.y.tolist() == [1, 0, 0, 1]
    assert torch.equal(d.x, torch.from_numpy(x).permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenette"])
def test_no_network_is_one_sentence(name, tmp_path, monkeypatch):
    def refuse(*args, **kw): raise socket.gaierror("no network")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "DH_DATA" in sentence(load_dataset, name, root=tmp_path)


def test_damaged_archive(tmp_path):
    (tmp_path / "cifar10.webp.npz").write_bytes(b"PK\3\4 and no more")
    assert "damaged" in sentence(load_dataset, "cifar10", root=tmp_path)


def test_wishes_that_cannot_be_met():
    assert "neither a folder" in sentence(load_dataset, "cifar11")
    assert "train, test or both" in sentence(load_dataset, split="val")
    assert "skip fewer" in sentence(load_dataset, skip=200)
    for kw in (dict(per_class=0), dict(skip=-1)): sentence(load_dataset, **kw)
    sentence(holdout, torch.tensor([0, 0, 1]))


def test_device_that_is_not_there(monkeypatch):
    for name in ("cuda:99", "toaster"):
        monkeypatch.setenv("DH_DEVICE", name)
        assert name in sentence(device)


# ---- files ----

def picture(path, *, mode="RGB", size=(40, 30), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert(mode).save(path, **kw)
    return path


def cut(path, share=0.5):
    text = path.read_bytes()
    path.write_bytes(text[:int(len(text) * share)])
    return path


@pytest.fixture
def pets(tmp_path):
    "Two classes of two pictures each."
    for name in ("cat/felix.jpg", "cat/tom.png", "dog/lassie.png", "dog/rex.webp"):
        picture(tmp_path / "pets" / name)
    return tmp_path / "pets"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".gif"])
def test_truncated_files_are_refused(suffix, tmp_path):
    path = picture(tmp_path / f"a{suffix}", size=(200, 200))
    assert read_image(path).shape == (3, 200, 200)
    for share in (0.95, 0.5, 0.01, 0):
        assert str(path) in sentence(read_image, cut(path, share))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pictures_of_eight_bits_are_read(mode, tmp_path):
    x = read_image(picture(tmp_path / "a.png", mode=mode))
    assert x.dtype == torch.uint8 and x.shape == (3, 30, 40)


def test_what_is_no_still_of_eight_bits_is_refused(tmp_path):
    deep, cmyk, film = (tmp_path / n for n in ("a.png", "a.jpg", "a.gif"))
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(deep)
    picture(cmyk, mode="CMYK")
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(film, save_all=True, append_images=frames[1:])
    assert "8-bit" in sentence(read_image, deep)
    assert "CMYK" in sentence(read_image, cmyk)
    assert "2 frames" in sentence(read_image, film)


def test_transparent_parts_of_a_palette_are_white(tmp_path):
    im = Image.new("P", (2, 1), 1)
    im.putpalette([9, 9, 9, 200, 0, 0])
    im.putpixel((0, 0), 0)
    im.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[255] * 3, [200, 0, 0]]


def test_a_photograph_of_a_telephone_stands_upright(tmp_path):
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        path = picture(tmp_path / f"{tag}.jpg", exif=exif)
        assert read_image(path).shape == ((3, 30, 40) if tag < 5 else (3, 40, 30))


def test_photographs_are_the_readers_own():
    one, two = photographs(), photographs()
    one["china"].zero_()
    assert two["china"].any() and all(x.dtype == torch.uint8 for x in two.values())


# ---- folders ----

def test_a_good_folder(pets):
    (pets / "cat" / ".DS_Store").write_text("x")
    (pets / ".git").mkdir()
    (pets / "README.txt").write_text("x")
    f = list_folder(pets, strict=True)
    names = [p.name for p in f.paths]
    assert names == ["felix.jpg", "tom.png", "lassie.png", "rex.webp"]
    assert (f.y, f.classes, f.bad) == ([0, 0, 1, 1], ["cat", "dog"], [])
    d = load_dataset(pets, size=16)
    assert d.names == ["felix", "tom", "lassie", "rex"] and d.x.shape == (4, 3, 16, 16)


def test_bad_files_are_listed_and_strict_refuses_the_first(pets):
    (pets / "cat" / "notes.txt").write_text("buy milk")
    (pets / "cat" / "nothing.png").write_bytes(b"")
    (pets / "dog" / "more").mkdir()
    (pets / "dog" / "gone.png").symlink_to("nowhere.png")
    cut(picture(pets / "dog" / "half.jpg"))
    f = list_folder(pets)
    assert [p.name for p, _ in f.bad] == ["notes.txt", "nothing.png", "gone.png",
                                          "half.jpg", "more"]
    assert len(f.paths) == 4 and all(why for _, why in f.bad)
    assert "notes.txt" in sentence(list_folder, pets, strict=True)


def test_a_set_with_a_hole_is_not_loaded(pets):
    cut(picture(pets / "dog" / "half.jpg"))
    assert "half.jpg: cut off" in sentence(load_dataset, pets, size=16)
    assert len(load_dataset(pets, size=16, strict=False)) == 4


def test_folders_that_no_result_can_survive(pets):
    assert "nowhere" in sentence(list_folder, pets / "nowhere")
    assert "felix.jpg" in sentence(list_folder, pets / "cat" / "felix.jpg")
    assert "0 class folders" in sentence(list_folder, pets / "cat")
    (pets / "owl").mkdir()
    assert "owl" in sentence(list_folder, pets)
    (pets / "owl" / "a.png").write_text("no picture")
    assert "a.png: not a picture" in sentence(list_folder, pets)
    picture(pets / "owl" / "b.png")
    assert len(list_folder(pets).bad) == 1


def test_one_stem_twice_in_a_class(pets):
    picture(pets / "dog" / "felix.png")  # another class: no harm
    assert len(list_folder(pets).paths) == 5
    picture(pets / "cat" / "felix.png")
    said = sentence(list_folder, pets)
    assert "felix.png" in said and "felix.jpg" in said


def test_sizes_must_agree_or_be_given(pets):
    picture(pets / "dog" / "zorro.png", size=(50, 30))
    assert "40x30 and 50x30" in sentence(load_dataset, pets)
    assert load_dataset(pets, size=20).x.shape == (5, 3, 20, 20)


def test_splits_below_a_folder(pets, tmp_path):
    assert "no test split" in sentence(load_dataset, pets, split="test")
    (tmp_path / "set").mkdir()
    pets.rename(tmp_path / "set" / "train")
    assert load_dataset(tmp_path / "set").classes == ["cat", "dog"]
    assert "neither" in sentence(load_dataset, tmp_path / "set", split="test")
    for name in ("cat", "dog"): picture(tmp_path / "set" / "val" / name / "a.png")
    assert len(load_dataset(tmp_path / "set", split="test")) == 2
    picture(tmp_path / "set" / "val" / "ape" / "a.png")
    assert "ape" in sentence(load_dataset, tmp_path / "set", split="test")


def test_a_class_may_be_called_train(pets):
    (pets / "dog").rename(pets / "train")
    assert load_dataset(pets).classes == ["cat", "train"]


def as_nobody(f, home, queue):
    "Run f in `home`, root's powers dropped; its BadInput comes back as text."
    os.chdir(home)
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try: queue.put(f())
    except BadInput as e: queue.put(str(e))


@forking
@pytest.mark.parametrize("what,said", [
    ("cat/tom.png", ["Permission denied"]), ("cat", "cat: Permission denied."),
    ("", "pets: Permission denied.")], ids=["file", "class", "folder"])
def test_what_may_not_be_read(pets, what, said):
    pets.parent.chmod(0o755)
    (pets / what).chmod(0)
    look = lambda: [why for _, why in list_folder("pets").bad]
    queue = FORK.Queue()
    child = FORK.Process(target=as_nobody, args=(look, pets.parent, queue))
    child.start()
    heard = queue.get(timeout=20)
    child.join()
    (pets / what).chmod(0o755)
    assert heard == said if isinstance(said, list) else heard.endswith(said)


# ---- results ----

def figure(n, seed=0): return Measure(name=f"figure {n}", value=n, unit="1", seed=seed)


def names(folder): return read(folder, "measures").name.tolist()


def cell(seed, accuracy=50.0):
    return Row(method="clean", dataset="embedded", victim="narrow", seed=seed,
               countermeasure="none", accuracy=accuracy)


def test_the_last_row_of_a_cell_counts(tmp_path):
    for seed, accuracy in ((0, 50.0), (1, 60.0), (0, 70.0)):
        append(cell(seed, accuracy), tmp_path)
    assert read(tmp_path)[["seed", "accuracy"]].values.tolist() == [[0, 70], [1, 60]]
    plan = [{k: v for k, v in vars(cell(s)).items() if k != "accuracy"} for s in (1, 2)]
    assert [c["seed"] for c in missing(plan, read(tmp_path))] == [2]


def test_tensors_and_arrays_are_stored_as_numbers(tmp_path):
    row = cell(0, torch.tensor(12.5))
    row.psnr_min, row.extra = np.float32(30.1), dict(bands=torch.ones(2), worst=np.inf)
    append(row, tmp_path)
    found = read(tmp_path).iloc[0]
    assert found.accuracy == 12.5 and found.psnr_min == 30.1
    assert found.bands == [1, 1] and found.worst is None


@pytest.mark.parametrize("bad", [b"", b"{", b"[1]", b'{"name": "x"}', b"\xff", b"7"])
def test_a_broken_line_in_the_middle_is_named(bad, tmp_path):
    path = tmp_path / "measures.jsonl"
    path.write_bytes(to_line(figure(0)) + bad + b"\n" + to_line(figure(1)))
    assert "line 2" in sentence(read, tmp_path, "measures")


@pytest.mark.parametrize("bad", [b"{", b"[1]", to_line(figure(7))[:-2], b"\xff"])
def test_a_torn_last_line_is_passed_over_and_healed(bad, tmp_path):
    path = tmp_path / "measures.jsonl"
    path.write_bytes(to_line(figure(0)) + bad)
    assert names(tmp_path) == ["figure 0"]
    append(figure(1), tmp_path)
    assert path.read_bytes() == to_line(figure(0)) + to_line(figure(1))


def test_a_row_that_lacks_only_its_end_is_kept(tmp_path):
    (tmp_path / "measures.jsonl").write_bytes(to_line(figure(0))[:-1])
    append(figure(1), tmp_path)
    assert names(tmp_path) == ["figure 0", "figure 1"]


def test_results_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "taken").write_text("a file")
    sentence(append, figure(0), tmp_path / "taken")
    sentence(read, tmp_path, "cakes")
    (tmp_path / "cells.jsonl").mkdir()
    sentence(read, tmp_path)


def write_many(folder, seed, n):
    for i in range(n): append(figure(i, seed), folder)


@forking
def test_two_processes_append_at_once(tmp_path):
    both = [FORK.Process(target=write_many, args=(tmp_path, s, 150)) for s in (0, 1)]
    for p in both: p.start()
    for p in both: p.join()
    lines = (tmp_path / "measures.jsonl").read_bytes().splitlines()
    rows = read(tmp_path, "measures")
    assert len(lines) == len(rows) == 300
    for s in (0, 1): assert rows.value[rows.seed == s].tolist() == list(range(150))


def write_on(folder, start, said):
    for i in range(start, 10**6):
        append(figure(i), folder)
        os.write(said, b"%d\n" % i)


@forking
def test_a_killed_writer_loses_nothing_it_reported(tmp_path):
    "SIGKILL at arbitrary moments: every reported row is there, and writing goes on."
    reported = []
    for turn in range(8):
        hear, said = os.pipe()
        child = FORK.Process(target=write_on, args=(tmp_path, 1000 * turn, said))
        child.start()
        os.close(said)
        with open(hear) as lines:
            reported.append(int(lines.readline()))
            time.sleep(0.003 * turn)
            os.kill(child.pid, signal.SIGKILL)
            reported += map(int, lines.read().split())
        child.join()
        assert child.exitcode == -signal.SIGKILL
    values = read(tmp_path, "measures").value.tolist()
    assert set(reported) <= set(values) and len(values) <= len(reported) + 8


def die_in_the_middle(path):
    with alone(path) as f:
        heal(f)
        f.write(to_line(figure(1))[:30])
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)


@forking
def test_a_writer_killed_in_the_middle_of_a_line_leaves_no_lock(tmp_path):
    append(figure(0), tmp_path)
    path = tmp_path / "measures.jsonl"
    child = FORK.Process(target=die_in_the_middle, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not path.read_bytes().endswith(b"\n")
    assert names(tmp_path) == ["figure 0"]
    append(figure(2), tmp_path)
    assert names(tmp_path) == ["figure 0", "figure 2"]


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("dh_nb.results.fcntl", None)
    with pytest.warns(UserWarning, match="one process"): append(figure(0), tmp_path)
    assert names(tmp_path) == ["figure 0"]


def test_revision_knows_commit_and_changes(tmp_path):
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path,
        check=True, capture_output=True, text=True).stdout.strip()
    ask = revision.__wrapped__  # not the remembered answer
    version = ask(tmp_path)
    git("init")
    assert ask(tmp_path) == version  # no commit yet
    (tmp_path / "dh_nb").mkdir()
    (tmp_path / "dh_nb" / "a.py").write_text("x = 1")
    git("add", ".")
    git("-c", "core.hooksPath=/dev/null", "commit", "-m", "One")
    short = git("rev-parse", "--short=7", "HEAD")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cells.jsonl").write_text("{}")
    assert ask(tmp_path) == f"{version}+{short}"  # rows are not code
    (tmp_path / "dh_nb" / "a.py").write_text("x = 2")
    assert ask(tmp_path) == f"{version}+{short}-dirty"
