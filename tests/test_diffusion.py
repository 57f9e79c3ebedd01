"Diffusion through diffusers' real loading code, on a tiny random pipeline, offline."
import shutil
import socket

import pytest
import torch

pytest.importorskip("diffusers")
from dh_nb import diffusion
from dh_nb.data import BadInput
from dh_nb.diffusion import (Diffusion, Recipe, fingerprint_of, load_pipeline,
                             text_features, tiny_pipeline)
from dh_nb.semantic import assign, edge_map, prompt, semantic_images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    "Nothing in this file may ask the network."
    def never(*args, **kw): raise AssertionError("a connection was tried")
    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setenv("DH_DEVICE", "cpu")


def recipe(tiny, **changes):
    return Recipe(str(tiny[0]), str(tiny[1]), **{"steps": 2, "canvas": 64, **changes})


def sentence(f, *args, **kw):
    with pytest.raises(BadInput) as e: f(*args, **kw)
    text = str(e.value)
    assert "\n" not in text and text.endswith(".") and not text.endswith("..")
    return text


def test_seed_prompt_and_edges_each_matter(tiny):
    painter = Diffusion(recipe(tiny))
    base = dict(words=prompt("cat"), lines=edge_map("cat", 64), seeds=[1, 2])
    first, second = painter.run(**base)
    assert first.shape == (3, 64, 64) and first.dtype == torch.uint8
    assert not torch.equal(first, second)  # the seed
    assert torch.equal(painter.run(**base), torch.stack([first, second]))
    for change in (dict(words=prompt("ship")), dict(lines=edge_map("ship", 64))):
        other = painter.run(**{**base, **change})
        assert (other.float() - torch.stack([first, second]).float()).abs().mean() > 0.05


@pytest.mark.parametrize("change", [
    dict(steps=3), dict(guidance=2.0), dict(control=0.2), dict(negative="a ship"),
    dict(scheduler="EulerDiscreteScheduler")], ids=str)
def test_every_setting_matters(tiny, change):
    pictures = [Diffusion(recipe(tiny, **c))("cat", 1, 64) for c in ({}, change)]
    assert not torch.equal(*pictures)


def test_the_contract_and_the_cache(tiny, tmp_path):
    painter = Diffusion(recipe(tiny), tmp_path / "cache", batch=2)
    x = semantic_images(["cat", "ward 7"], 3, 32, seed=4, style=painter)
    assert x.shape == (2, 3, 3, 32, 32) and painter.painted == 6
    assert 0 <= x.min() and x.max() <= 1
    files = {p.name for p in (tmp_path / "cache").iterdir()}
    assert len(files) == 6 and all(len(f) == 68 and f.endswith(".png") for f in files)
    again = Diffusion(recipe(tiny), tmp_path / "cache")
    assert torch.equal(x, semantic_images(["cat", "ward 7"], 3, 32, 4, again))
    assert again.painted == 0 and again.pipe is None
    again("cat", 2, 32, 5)  # another seed
    assert again.painted == 2
    one = Diffusion(recipe(tiny), batch=1)("cat", 3, 32, 4)
    assert (one - x[0]).abs().max() < 0.02


def test_the_cache_is_read_without_diffusers(tiny, tmp_path, monkeypatch):
    x = Diffusion(recipe(tiny), tmp_path)("cat", 1)
    monkeypatch.setattr(diffusion, "find_spec", lambda name: None)
    assert torch.equal(x, Diffusion(recipe(tiny), tmp_path)("cat", 1))
    assert "dh_nb[diffusion]" in sentence(Diffusion(recipe(tiny), tmp_path), "dog", 1)


def test_other_weights_in_the_same_place_are_other_pictures(tmp_path):
    (tmp_path / "a").mkdir()
    tiny = tiny_pipeline(tmp_path / "a", seed=0)
    first, before = Diffusion(recipe(tiny), tmp_path / "c")("cat", 1), fingerprint_of(tiny[0])
    shutil.rmtree(tmp_path / "a")
    assert tiny_pipeline(tmp_path / "a", seed=1) == tiny
    assert fingerprint_of(tiny[0]) != before
    second = Diffusion(recipe(tiny), tmp_path / "c")
    assert not torch.equal(first, second("cat", 1)) and second.painted == 1


def test_mistakes_are_sentences(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong in (recipe((tmp_path / "no", tiny[1])), recipe((tiny[0], tmp_path / "no")),
                  recipe((tmp_path / "empty", tiny[1])), recipe((tiny[1], tiny[1])),
                  recipe((tiny[0], tmp_path / "empty")), Recipe(), Recipe("not a name?")):
        sentence(load_pipeline, wrong)
    for name in ("Roundabout", "DiffusionPipeline", "NoScheduler", "os"):
        assert name in sentence(load_pipeline, recipe(tiny, scheduler=name))
    for bad in (dict(canvas=60), dict(canvas=8), dict(steps=0)):
        sentence(Diffusion, recipe(tiny, **bad))
    sentence(Diffusion, recipe(tiny), batch=0)


def test_text_features_choose_prompts(tiny):
    embed = text_features(load_pipeline(recipe(tiny)))
    z = embed(["cat", "dog", "lighthouse"])
    assert z.shape == (3, 32) and torch.allclose(z.norm(dim=1), torch.ones(3))
    assert len(set(assign(["a", "b", "c"], "far", embed=embed).names)) == 3
