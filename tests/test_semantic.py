"What classes hide: shapes for any name, textures, choices, keys, pictures of one's own."
import os, stat, subprocess, sys, time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.nn.functional import max_pool2d

import house
from dh_nb import semantic
from dh_nb.data import WNIDS, BadInput, load_dataset
from dh_nb.semantic import (ICONS, STYLES, TEXTURES, appearance, assign, derive, drawn,
                            edge_map, eye, farthest, known_shapes, keygen, look, outlines,
                            own_pictures, parts, prompt, read_key, semantic_images, shape,
                            shape_table)

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
ROOM = next(r for r in house.ALL if r.module == "semantic")
KEY = bytes(range(32))


def cifar100():
    "The hundred names, as the room lists them."
    cell = next(c for c in ROOM.cells if c.source.startswith("CIFAR100"))
    return cell.source.split('"""')[1].split()


def sentence(f, *args, **kw):
    "What BadInput says: one line, one full stop at its end."
    with pytest.raises(BadInput) as e: f(*args, **kw)
    text = str(e.value)
    assert "\n" not in text and text.endswith(".") and not text.endswith("..")
    return text


# ---- shapes ----

def test_the_library_is_small_and_whole():
    files = sorted(p for p in ICONS.iterdir())
    assert sum(p.stat().st_size for p in files) < 1e6 and len(known_shapes()) > 400
    for p in files:
        if p.name.endswith(".png"):
            with Image.open(p) as im:
                assert im.size == (64, 64) and im.convert("RGBA").getextrema()[3][1] > 200
    stems = {s for value in shape_table().values() for s in value.split("+")}
    assert stems <= set(known_shapes())
    assert not {k for k, v in shape_table().items() if k != v} & set(known_shapes())


@pytest.mark.parametrize("names", [CIFAR10, cifar100(), list(WNIDS.values()),
                                   load_dataset("embedded", per_class=1).classes],
                         ids=["cifar10", "cifar100", "imagenette", "embedded"])
def test_every_class_we_measure_has_a_drawing_of_its_own(names):
    assert all(map(drawn, names))
    assert len({tuple(parts(n)) for n in names}) == len(names)


@given(st.text(max_size=30))
@settings(max_examples=30, deadline=None)
def test_any_text_is_a_class_name(name):
    x = shape(name, 32)
    assert x.shape == (4, 32, 32) and 0 <= x.min() and x.max() <= 1 and x[3].mean() > 0.02
    assert prompt(name).isprintable() or not name.isprintable()


def test_edges_are_lines_at_any_size():
    for size in (32, 64, 96, 256):
        e = edge_map("lighthouse", size)
        assert e.shape == (size, size) and set(e.unique().tolist()) == {0, 1}
        assert 2 * size < e.sum() < 0.25 * size * size


# ---- pictures ----

def test_pictures_are_the_same_in_another_process_and_in_any_company():
    code = ("from dh_nb.semantic import semantic_images as s; import hashlib;"
            "x = s(['cat', 'Ω 7'], 2, 48, 5);"
            "print(hashlib.sha256((x * 255).round().byte().numpy().tobytes()).hexdigest())")
    runs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True,
                           env={**os.environ, "PYTHONHASHSEED": h}, text=True).stdout
            for h in ("1", "2")}
    assert len(runs) == 1
    many = semantic_images(["ship", "Ω 7", "owl", "cat"], 3, 48, 5)
    few = semantic_images(["cat", "Ω 7"], 2, 48, 5)
    assert torch.equal(few, many[[3, 1], :2])
    assert not torch.equal(few, semantic_images(["cat", "Ω 7"], 2, 48, 6))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [8, 28, 32, 65, 96])
def test_every_style_keeps_the_contract(style, size):
    x = semantic_images(["cat", "gneiss"], 2, size, style=style)
    assert x.shape == (2, 2, 3, size, size) and x.dtype == torch.float32
    assert torch.equal((x * 255).round() / 255, x) and 0 <= x.min() and x.max() <= 1
    assert not torch.equal(x[:, 0], x[:, 1]) and not torch.equal(x[0], x[1])


def test_variants_share_a_shape_and_differ_in_texture():
    "The edges of a picture lie along the edge map of its own class, textured or not."
    x = semantic_images(CIFAR10, 5, 64)
    maps = torch.stack([edge_map(n) for n in CIFAR10])
    near = max_pool2d(maps[:, None], 5, 1, 2)[:, 0]
    grey = x.mean(2)
    step = (grey.diff(dim=-1)[..., 1:, :] ** 2 + grey.diff(dim=-2)[..., 1:] ** 2).sqrt()
    score = torch.einsum("cvhw,khw->cvk", step, near[:, 1:, 1:]) / near.sum((1, 2)) ** 0.5
    assert (score.argmax(2) == torch.arange(10)[:, None]).float().mean() > 0.95
    texture = (x[:, 0] - x[:, 1:].mean(1)).abs().mean((1, 2, 3))
    assert texture.min() > 0.03


def test_a_thousand_classes_stay_apart():
    start, names = time.process_time(), [f"class {i}" for i in range(1000)]
    x = semantic_images(names)[:, 0].flatten(1)
    assert time.process_time() - start < 30
    assert torch.pdist(x).min() / x.shape[1] ** 0.5 > 0.1


def test_textures_differ_and_stay_in_range():
    fields = {k: semantic.texture(np.random.default_rng(0), 48, k) for k in TEXTURES}
    for f in fields.values(): assert f.abs().max() <= 1 and f.std() > 0.2
    assert torch.pdist(torch.stack(list(fields.values())).flatten(1)).min() > 5


def test_mistakes_are_sentences():
    assert "differ" in sentence(semantic_images, ["a", "a"])
    sentence(semantic_images, [])
    sentence(semantic_images, ["a"], 0)
    sentence(semantic_images, ["a"], 1, 4)
    assert "offline" in sentence(semantic_images, ["a"], style="cubist")
    sentence(assign, ["a"], "nearest")
    sentence(assign, ["a"], "far", pick="dice")
    sentence(assign, ["a"], "keyed")
    sentence(assign, ["a"], "far", KEY)


# ---- choosing ----

@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_farthest_first_is_within_half_of_the_best(n, seed):
    z = torch.from_numpy(np.random.default_rng(seed).uniform(size=(12, 2)))
    rows = farthest(z, n)
    assert rows[0] == 0 and len(set(rows)) == n
    rest = torch.cdist(z, z[rows]).amin(1).max()  # how far any point is from the chosen
    if n > 1: assert torch.pdist(z[rows]).min() >= rest - 1e-12


@pytest.mark.parametrize("pick", semantic.PICKS)
@pytest.mark.parametrize("n", [2, 10, 100])
def test_far_is_farther_than_own(n, pick):
    labels, embed = cifar100()[:n], lambda names: appearance(names, look)
    far = assign(labels, "far", pick=pick, embed=embed)
    assert len(set(far.names)) == n and far == assign(labels, "far", pick=pick, embed=embed)
    least = lambda names: torch.pdist(embed(list(names))).min()
    if pick == "farthest": assert least(far.names) > least(labels)


def test_far_shapes_are_those_of_the_network():
    "The stored order, and that of the network that wrote it, as far as rounding lets them."
    pytest.importorskip("timm")
    pool = list(semantic.known_shapes())
    stored = semantic.FAR.read_text().split()
    assert sorted(stored) == pool
    assert [pool[i] for i in semantic.farthest(appearance(pool), 20)] == stored[:20]


def test_the_network_is_used_where_it_can_be_had(monkeypatch):
    def missing(name): raise BadInput("not here.")
    monkeypatch.setattr(semantic, "at_a_glance", semantic.at_a_glance.__wrapped__)
    monkeypatch.setattr(semantic, "extractor", missing)
    assert eye() is look and eye("look") is look
    sentence(eye, "efficientnet_lite0")
    assert len(set(assign(["a", "b"], "far", pick="kmeans").names)) == 2
    monkeypatch.setattr(semantic, "extractor", lambda name: name)
    monkeypatch.setattr(semantic, "features", lambda net, x: x.flatten(1) if net else None)
    assert appearance(["cat", "dog"]).shape == (2, 3072)


def test_a_key_decides_and_nothing_else_does():
    labels = [f"k{i}" for i in range(40)]
    one, two = assign(labels, "keyed", KEY), assign(labels, "keyed", bytes(32))
    assert one == assign(labels, "keyed", KEY) == assign(labels, "keyed", KEY, seed=3)
    assert one.seed != two.seed and sum(a == b for a, b in zip(one.names, two.names)) <= 4
    assert len(set(one.names)) == 40 and not set(one.names) & set(labels)
    assert not torch.equal(*(semantic_images(["cat"], 1, seed=c.seed) for c in (one, two)))
    private = [n for n in one.names if n.startswith("combination")]
    assert not set(private) & set(two.names)


def test_keyed_choices_reach_to_a_thousand_classes():
    start = time.process_time()
    choice = assign([f"k{i}" for i in range(1000)], "keyed", KEY)
    assert len(set(choice.names)) == 1000 and time.process_time() - start < 60
    z = outlines(choice.names)
    assert torch.equal(z, z.round()) and torch.pdist(z).min() > 0


def test_the_keyed_choice_has_not_changed():
    "An owner's key must name the same pictures for ever: change nothing that this holds."
    assert derive(KEY, "seed")[:16] == "38f37738535a5dad"
    assert assign(CIFAR10, "keyed", KEY).names == [
        "auto_rickshaw", "statue_of_liberty", "combination 76fc06c8dca233b9",
        "fountain", "toolbox", "rocket", "hammer", "water_wave", "womans_clothes",
        "scorpion"]


def test_key_files(tmp_path):
    path = tmp_path / "my.key"
    keygen(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt"
    assert len(read_key(path)) == 32 and len(path.read_text()) == 65
    before = path.read_bytes()
    assert "exists" in sentence(keygen, path) and path.read_bytes() == before
    sentence(keygen, tmp_path / "no" / "where.key")
    for text in ("", "00" * 31, "xy" * 32, "00" * 33, "é" * 64):
        (tmp_path / "bad").write_text(text)
        sentence(read_key, tmp_path / "bad")
    (tmp_path / "bytes").write_bytes(b"\xff" * 64)
    sentence(read_key, tmp_path / "bytes")
    sentence(read_key, tmp_path)
    sentence(read_key, tmp_path / "missing")
    keygen(tmp_path / "other.key")
    assert read_key(tmp_path / "other.key") != read_key(path)


# ---- pictures of one's own ----

def test_own_pictures(tmp_path):
    for name, count in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (40 + i, 50), (80 * i, 0, 9)).save(tmp_path / name / f"{i}.png")
    x = own_pictures(tmp_path, ["b", "a"], 3, 16)
    assert x.shape == (2, 3, 3, 16, 16)
    assert (x[0, :, 0, 0, 0] * 255).round().tolist() == [0, 80, 160]
    assert (x[1, :, 0, 0, 0] * 255).round().tolist() == [0, 80, 0]  # again from the first
    assert "class c" in sentence(own_pictures, tmp_path, ["a", "c"])
    sentence(own_pictures, tmp_path / "nowhere", ["a"])
