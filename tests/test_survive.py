"Room 56 and what it changed: places, countermeasures, readers, their pool, and trained weights."
import copy
import json

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dh_nb import survive as s
from dh_nb.countermeasures.adversarial import pgd
from dh_nb.data import BadInput, load_dataset
from dh_nb.distort import SOFT, RandomDistortion, shrink
from dh_nb.hiding import Hider, Preset, at_places, preset
from dh_nb.nets import net
from dh_nb import recipes
from dh_nb.countermeasures.base import Countermeasure
from dh_nb.publishing import choose_secrets, protect
from dh_nb.revealing import expected
from dh_nb.semantic import semantic_images
from dh_nb.training import load_hider

quick = settings(max_examples=20, deadline=None, derandomize=True)
THIN = Preset("robust", dict(split="dct8", blocks=1, growth=4, layers=2, band=4, gain=4.0),
              preset("robust").weights, places=4, recipe="adversarial")


def gen(seed=0): return torch.Generator().manual_seed(seed)


def pictures(n=8, size=32, seed=0): return torch.rand(n, 3, size, size, generator=gen(seed))


FEW = (255 * pictures(6)).byte()  # covers of an autoencoder


# ---- places ----

@pytest.mark.parametrize("places", [1, 4, 16])
def test_places_are_rolls_each_once(places):
    x = pictures(3)[:, None]
    out = at_places(x, places)
    assert out.shape == (3, places, 3, 32, 32)
    assert torch.equal(out[:, 0], x[:, 0])
    assert len({bytes(v.numpy()) for v in out[0]}) == places
    torch.testing.assert_close(out.sum((2, 3, 4)), x.sum((2, 3, 4)).expand(-1, places))


@pytest.mark.parametrize("places", [0, 2, 9, 64])
def test_other_numbers_of_places_are_refused(places):
    with pytest.raises(BadInput, match="choose 1, 4 or 16"): at_places(pictures()[:, None], places)


def test_a_manifest_remembers_its_places(tmp_path):
    torch.manual_seed(0)
    Hider(THIN).save(tmp_path / "w.safetensors")
    told = protect("embedded", tmp_path / "out", hider=tmp_path / "w.safetensors", per_class=4)
    assert told["places"] == 4 and told["preset"] == "robust"
    ought = expected(told)
    assert torch.equal(ought, choose_secrets(told["classes"], places=4)[0])
    old = {k: v for k, v in told.items() if k != "places"}  # written before there were any
    assert torch.equal(expected(old), ought[:, :1])
    assert json.loads((tmp_path / "out/manifest.json").read_text())["places"] == 4


# ---- soft distortions ----

@given(share=st.floats(0.05, 1), side=st.integers(5, 33))
@quick
def test_shrinking_keeps_size_range_and_flat_pictures(share, side):
    x = pictures(2, side)
    y = shrink(x, share)
    assert y.shape == x.shape and 0 <= y.min() and y.max() <= 1
    torch.testing.assert_close(shrink(torch.full_like(x, 0.3), share), torch.full_like(x, 0.3))


@pytest.mark.parametrize("kind", ["mean", "median", "small"])
def test_new_kinds_pass_a_gradient(kind):
    x = pictures().requires_grad_()
    RandomDistortion({kind: 1})(x, gen()).square().sum().backward()
    assert kind in SOFT and x.grad.abs().sum() > 0


# ---- countermeasures ----

@pytest.mark.parametrize("kind", list(s.SHARES))
def test_every_opponent_lets_the_gradient_through_and_repeats_itself(kind):
    x, y = pictures().requires_grad_(), torch.arange(8) % 4
    counter, runs = s.surrogate_countermeasures(4, FEW)[kind], []
    for _ in range(2):
        torch.manual_seed(1)
        model = net("quick", 4)
        seen, label = counter.batch(x, y, gen(5), 4)
        loss = counter.loss(model, seen, label)
        runs.append(loss.item())
        x.grad = None
        loss.backward()
        assert 0 <= seen.min() and seen.max() <= 1 and seen.shape == x.shape
        assert x.grad.abs().sum() > 0 and model.training
    assert abs(runs[0] - runs[1]) < 1e-5


def test_near_is_as_bad_as_the_attack_it_is_made_of():
    x, y, model = pictures(), torch.arange(8) % 4, net("quick", 4)
    torch.manual_seed(3)
    ours = s.Near().loss(copy.deepcopy(model), x, y)  # a step moves running statistics
    torch.manual_seed(3)
    bad = pgd(model.eval(), x, y, 8 / 255, 8 / 255, 1)
    torch.testing.assert_close(ours, Countermeasure().loss(model.train(), bad, y))


def test_what_a_class_has_in_common_is_taken_out_and_what_moves_stays():
    y, cover = torch.arange(40) % 4, 0.5 + 0.2 * (pictures(40) - 0.5)
    one, turn = 0.2 * (pictures(4) - 0.5)[y], torch.tensor([1.0, -1.0]).repeat_interleave(20)
    moved = one * turn[:, None, None, None]  # of either sign, so that its mean is nothing
    for mark, left in ((one, 0.0), (moved, 1.0)):
        counter, stego = s.Unmarked(4), (cover + mark).requires_grad_()
        for _ in range(3): less, seen = counter.purify(cover, stego, y)
        size = (seen - less).square().sum() / mark.square().sum()
        assert abs(size.item() - left) < 0.05
        assert counter.means.shape == (4, 3 * 32 * 32)
        seen.sum().backward()
        assert stego.grad.abs().sum() > 0


def test_a_readers_memory_is_its_own():
    counter, x = s.surrogate_countermeasures(3, FEW)["projection"], pictures(6)
    readers = [s.Reader(counter, torch.zeros(3, 1, 3, 32, 32), x) for _ in range(2)]
    sum(readers[0].losses(x, x / 2, torch.arange(6) % 3, gen()).values()).backward()
    assert torch.is_tensor(readers[0].opponent.means)
    assert readers[1].opponent.means == counter.means == 0


@given(share=st.floats(0, 1), shift=st.floats(-0.2, 0.2))
@quick
def test_destroyed_is_the_energy_that_is_gone_whatever_else_was_done(share, shift):
    x, stego = pictures(5), pictures(5, seed=9)
    lost = s.destroyed(x, stego, x + shift, x + shift + share * (stego - x))
    torch.testing.assert_close(lost, torch.tensor((1 - share) ** 2), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (30, 41)])
def test_autoencoders_take_turns_keep_sizes_and_pass_a_gradient(size):
    torch.manual_seed(4)
    state = torch.get_rng_state()
    counter = s.Redrawn(2, (255 * torch.rand(6, 3, *size, generator=gen())).byte(), (1.0, 1e6), passes=2)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws have moved
    assert not any(p.requires_grad for m in counter.models for p in m.parameters())
    x = torch.rand(2, 3, *size, generator=gen()).requires_grad_()
    shown = [counter.purify(x.detach(), x, torch.zeros(2).long())[1] for _ in range(3)]
    assert shown[0].shape == x.shape and not torch.equal(shown[0], shown[1])
    torch.testing.assert_close(shown[0], shown[2])
    shown[0].sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind, counts", [("plain", False), ("projection", False),
                                          ("gray", True), ("redrawn", True), ("jpeg", True)])
def test_only_strict_countermeasures_count_what_they_destroy(kind, counts):
    x, y = pictures(6), torch.arange(6) % 3
    reader = s.Reader(s.surrogate_countermeasures(3, FEW)[kind], torch.zeros(3, 1, 3, 32, 32), x)
    stego = (0.9 * x + 0.1 * pictures(6, seed=5)).requires_grad_()
    losses = reader.losses(x, stego, y, gen())
    assert (losses["lost"] > 0) == counts == losses["lost"].requires_grad
    assert losses["common"].requires_grad


@given(st.integers(2, 6), st.integers(1, 4), st.floats(0, 3))
@quick
def test_in_common_is_one_for_one_mark_and_nothing_for_chance(n, classes, noise):
    y = torch.arange(n * classes) % classes
    mark = torch.randn(classes, 3, 4, 4, generator=gen(1))[y]
    torch.testing.assert_close(s.in_common(mark, y), torch.tensor(1.0))
    wide = torch.randn(len(y), 3, 40, 40, generator=gen(2))
    assert abs(s.in_common(noise * wide, y)) < 0.1
    assert s.in_common(mark[:1], y[:1]) == 0  # one picture has nobody to share with
    both = torch.randn(400, 3, 4, 4, generator=gen(3)) + 1  # as much mean as chance
    assert abs(s.in_common(both, torch.zeros(400).long()) - 0.5) < 0.1


def test_what_is_known_of_a_class_is_taken_off_before_it_is_drawn_again():
    x, y = pictures(6), torch.arange(6) % 3
    mark = pictures(3, seed=4)[y] / 9
    counter = s.Redrawn(3, FEW, passes=1)
    counter.redraw = lambda both: both  # as if it drew perfectly
    for _ in range(60):
        bare, left = counter.purify(x, x + mark, y)
    assert torch.equal(bare, x)
    torch.testing.assert_close(left, x, atol=1e-3, rtol=0)


def test_gray_readers_see_no_colour():
    x = s.surrogate_countermeasures(4, FEW)["gray"].batch(
        pictures(), torch.zeros(8, dtype=torch.long), gen(), 4)[0]
    assert (x - x.mean(1, keepdim=True)).abs().max() < 2 / 255


# ---- readers and pool ----

def test_a_reader_learns_what_is_plain():
    cover, y = pictures(24), torch.arange(24) % 3
    stego = cover.clone()
    stego[:, :, 8:24, 8:24] = torch.eye(3)[y, :, None, None]
    torch.manual_seed(0)
    reader, g = s.Reader(Countermeasure(), torch.zeros(3, 1, 3, 32, 32), cover), gen()
    log = []
    for _ in range(40):
        losses = reader.losses(cover, stego, y, g)
        sum(losses.values()).backward()
        reader.step()
        log.append([losses["alone"].item(), losses["reader"].item()])
    alone, seen = torch.tensor(log[10:25]).mean(0)  # later it is at full speed, and jumps
    assert reader.age == 40 and alone < 0.3 and seen < 0.8  # labels are smoothed


def test_a_pool_is_as_old_as_it_should_be():
    pool, x8 = s.Crowd(classes=3, life=5), load_dataset(per_class=3).x
    lib, seen, g = pictures(20)[:, None], {}, gen()
    for _ in range(120):
        cover, secret, y = pool.draw(x8, lib, 6, g)
        reader = pool.readers[pool.kind]
        seen.setdefault(pool.kind, set()).add(reader.net)  # kept, so that no id comes twice
        assert reader.age < 5 and len(reader.secrets) == 3
        assert all(any(torch.equal(a, b) for b in reader.secrets[:, 0]) for a in secret)
        reader.age += 1
    assert set(seen) == set(s.SHARES) and len(seen["gray"]) > 2


def test_readers_know_no_more_shapes_than_the_front_has():
    pool = s.Crowd(classes=6, often=2)
    for _ in range(12):
        cover, secret, y = pool.draw(load_dataset(per_class=3).x, pictures(9)[:, None], 8, gen(_))
        pool(cover, secret, y, gen())
        pool.readers[pool.kind].age = pool.life  # the next one draws its shapes anew
    assert {len(r.secrets) for r in pool.readers.values()} == {2}


def test_a_small_folder_has_small_readers():
    pool = s.Crowd()
    x8, g = load_dataset(per_class=3).x, gen()
    met = set()
    while met != set(s.SHARES):
        cover, secret, y = pool.draw(x8, pictures(2)[:, None], 8, g)
        met.add(pool.kind)
        assert all(v.isfinite() for v in pool(cover, secret, y, g).values())
    for way in pool.kinds["augment"].choice:  # mixtures of two classes, not of ten
        assert way.loss(pool.readers["augment"].net, *way.batch(cover, y, g, 2)).isfinite()
    assert {len(r.secrets) for r in pool.readers.values()} == {2}


def test_training_repeats_itself_and_logs_its_readers():
    x8, lib = load_dataset(per_class=3).x, semantic_images(["a", "b", "c"])
    def once():
        torch.manual_seed(1)
        hider = Hider(THIN)
        return hider, s.train_adversarial(hider, x8, lib, steps=4, seed=2, batch=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on several, an autoencoder's gradient adds up in any order
    try: (a, log), (b, _) = once(), once()
    finally: torch.set_num_threads(threads)
    flat = lambda h: torch.cat([p.detach().flatten() for p in h.parameters()])
    assert torch.equal(flat(a), flat(b)) and not a.training
    assert {"reader", "alone", "lost", "reveal", "structure", "kind", "age"} <= log[0].keys()
    assert {r["kind"] for r in log} <= set(s.SHARES) and log[0]["age"] == 0


def test_adapt_goes_on_as_the_preset_was_trained(monkeypatch):
    called, how = [], {}
    monkeypatch.setattr(s, "train_adversarial", lambda *a, **k: how.update(k))
    standard = recipes.Recipe(None, lambda *a, **k: called.append(k))
    monkeypatch.setitem(recipes.RECIPES, "standard", standard)
    x8, lib = load_dataset(per_class=2).x, semantic_images(["a", "b"])
    thin = Hider(THIN)
    for hider in (thin, load_hider("fast")): recipes.finetune(hider, x8, lib, steps=1)
    assert called == [dict(steps=1, psnr=30.1, seed=0)]
    assert how["crowd"].shares == s.SHARES | s.TURNS and how["crowd"].kinds["gray"].strict == 2
    assert thin.preset.weights == THIN.weights | s.CLOSE and THIN.weights != thin.preset.weights


def test_a_soup_is_the_mean_and_leaves_its_parts_alone():
    torch.manual_seed(0)
    parts = [Hider(THIN) for _ in range(3)]
    before = copy.deepcopy(parts[0].state_dict())
    mean = s.soup(parts)
    for name, value in mean.state_dict().items():
        each = torch.stack([h.state_dict()[name] for h in parts])
        torch.testing.assert_close(value, each.mean(0), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in parts[0].state_dict().items())
    assert not mean.training and mean.preset == THIN
    torch.testing.assert_close(s.soup(parts[:1]).state_dict(), before)
