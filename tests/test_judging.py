"Rivals, cells and grids: the same task and the same budget for everybody."
import json, os, signal, subprocess, sys, time
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dh_nb import bench as e, methods as b
from dh_nb.data import BadInput, ImageSet, load_dataset
from dh_nb.nets import Muon, orthogonal
from dh_nb.protocol import shrink_for_victim
from dh_nb.publishing import WORK, in_threads
from dh_nb.quality import quality_table
from dh_nb.results import Row, append, missing, read
from dh_nb.squeeze import BlockDCT
from dh_nb.victim import VictimConfig, train_victim, training_budget


@pytest.fixture(scope="module")
def task():
    return b.open_task("embedded", 4, 8)


# ---- the two optimisers ----

@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), cols=st.integers(1, 40), seed=st.integers(0, 99))
def test_orthogonal_evens_out_singular_values(rows, cols, seed):
    g = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    out = orthogonal(orthogonal(orthogonal(g)))
    inside = u.T @ out @ v.T  # in the axes of g, nearly a multiple of the identity
    assert (inside - inside.diag().diag()).abs().max() < 0.02 + 0.2 * (s[-1] < s[0] / 1e3)
    big = s > s[0] / 100
    assert inside.diag()[big].min() > 0.6 and inside.diag().max() < 1.3


def test_muon_is_that_of_pytorch_without_its_rounding():
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.ones(6, 9)) for _ in range(2))
    pair = (Muon([mine], 0.1), torch.optim.Muon([theirs], 0.1, weight_decay=0.1,
                                                momentum=0.6))
    for _ in range(10):
        mine.grad = theirs.grad = torch.randn(6, 9)
        for opt in pair: opt.step()
    torch.testing.assert_close(mine, theirs, atol=0.03, rtol=0)


# ---- a batch a core ----

def test_workers_keep_the_order_and_give_the_threads_back():
    before = torch.get_num_threads()
    assert list(in_threads(lambda i: (i, torch.get_num_threads()),
                           ((i,) for i in range(50)))) == [(i, 1) for i in range(50)]
    assert torch.get_num_threads() == before


def test_a_worker_that_fails_ends_it_all():
    taken = []

    def work(i):
        if i == 5: raise BadInput("five")
        return i
    with pytest.raises(BadInput, match="five"):
        list(in_threads(work, ((taken.append(i) or i,) for i in range(1000))))
    assert len(taken) < 100


# ---- methods ----

def cheap(name, task, seed):
    "A method with two steps of adaptation in place of all."
    method = b.METHODS[name].fn
    if "adapted" in name: method = partial(method, steps=2)
    return method(task, seed)


@pytest.fixture
def brisk(monkeypatch):
    "One round of EM in place of ten; whether ten reach their end is a test of its own."
    monkeypatch.setattr(b, "error_minimising", partial(b.error_minimising, rounds=1))


@pytest.mark.parametrize("name", list(b.METHODS))
def test_every_method_keeps_the_budget_and_its_bytes(name, task, brisk):
    out = cheap(name, task, 1)
    assert out.dtype == torch.uint8 and out.shape == task.data.x.shape
    if name == "clean": assert torch.equal(out, task.data.x); return
    if not name.endswith(", native"):  # these have the size of their papers
        assert quality_table(task.data.x, out)["psnr_min"] >= 30.1
    assert torch.equal(out, cheap(name, task, 1))


def test_rivals_have_no_hider():
    for name in b.RIVALS: assert e.cell("embedded", name, "none", 0)["preset"] == ""
    assert e.cell("embedded", "dh", "none", 0)["preset"] == "fast"


def test_a_method_says_who_it_is_not():
    with pytest.raises(BadInput, match="there are clean"): b.publish_as("?", None, 0)
    with pytest.raises(BadInput, match="No method"): e.cell("embedded", "?", "none", 0)
    with pytest.raises(BadInput, match="no countermeasure"): e.cell("embedded", "dh", "?", 0)


@pytest.mark.parametrize("classes", [2, 10, 20, 21, 100, 400])
def test_class_dct_never_gives_two_classes_one_wave(classes):
    names = [f"c{i}" for i in range(classes)]
    data = ImageSet(torch.full((classes, 3, 16, 16), 128, dtype=torch.uint8),
                    torch.arange(classes), names, names)
    wave = b.class_dct(b.Task(data, data), 0).float() - 128
    bands = BlockDCT()(wave).view(classes, 64, 3, 4).square().sum((2, 3))
    loud = [frozenset((row > row.max() / 4).nonzero()[:, 0].tolist()) for row in bands]
    assert len(set(loud)) == classes
    assert all(0 not in bands for bands in loud)  # no class is merely lighter


def test_spare_pictures_are_others(task):
    mine, spare = ({bytes(x) for x in part.x.numpy()} for part in (task.data, task.spare))
    assert not mine & spare and set(task.spare.y.tolist()) == set(range(10))
    hidden = b.next_class(task, 3)
    assert hidden.shape == (10, 1, 3, WORK, WORK)
    for c in range(10):  # what class c hides is one of the spare pictures of c + 1
        theirs = task.spare.x[task.spare.y == (c + 1) % 10].float() / 255
        assert (theirs - hidden[c, 0]).abs().amax((1, 2, 3)).min() < 1e-6


def test_photographs_differ_from_class_to_class():
    x = b.crops(10, 0).flatten(1)
    assert torch.cdist(x, x).fill_diagonal_(9).min() > 1
    assert not torch.equal(x, b.crops(10, 1).flatten(1))


# ---- published rivals ----

def plain_task(classes=10, each=3, size=32, level=128):
    "Pictures of one grey, so that a file shows the change and nothing else."
    names, y = [f"c{i}" for i in range(classes)], torch.arange(classes).repeat(each)
    x = torch.full((len(y), 3, size, size), level, dtype=torch.uint8)
    data = ImageSet(x, y, names, ["x"] * len(y))
    return b.Task(data, data)


@pytest.mark.parametrize("name", list(b.RIVALS))
def test_rivals_take_any_side_and_any_classes(name, brisk):
    some = plain_task(21, 2, 40)
    some.data.x.copy_(torch.randint(0, 256, some.data.x.shape, dtype=torch.uint8))
    out = b.METHODS[name](some, 0)
    assert out.shape == some.data.x.shape and (out != some.data.x).any()


def test_native_sizes_are_those_of_the_papers(task, brisk):
    change = {n: (b.METHODS[f"{n}, native"](plain_task(), 0).float() - 128) / 255
              for n in ("class noise", "LSP", "AR")}
    length = {n: r.flatten(1).norm(dim=1) for n, r in change.items()}
    assert (change["class noise"].abs() * 255 == 8).all()
    assert (length["LSP"] - 1.304).abs().max() < 0.02
    assert (length["AR"] - 1).abs().max() < 0.02
    easy = b.em(task, 0, native=True).int() - task.data.x.int()
    assert easy.abs().max() == 8


def test_class_noise_is_one_field_a_class():
    r = b.class_noise(plain_task(), 0, native=True).view(3, 10, -1)
    assert torch.equal(r[0], r[1]) and torch.equal(r[0], r[2])
    assert len({bytes(x.numpy()) for x in r[0]}) == 10


def test_em_stays_in_the_ball_and_lowers_the_loss():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    y, model = torch.arange(30) % 10, b.fresh("quick", 10, x).eval()
    loss = lambda d, of: torch.nn.functional.cross_entropy(
        model(b.noised(x, d, of).float() / 255), y).item()
    for of in (torch.arange(30), y):  # a noise a picture, a noise a class
        start = torch.zeros(int(of.max()) + 1, 3, 32, 32, dtype=torch.int8)
        before, falls = start.clone(), [loss(start, of)]
        for eps in (2, 8):
            d = b.descend(model, x, y, start, of, 10, eps)
            assert d.dtype == torch.int8 and d.abs().max() == eps
            falls.append(loss(d, of))
        assert falls[0] > falls[1] > falls[2]  # the wider the ball, the lower
        dice = (8 * torch.randn(start.shape).sign()).to(torch.int8)
        assert falls[2] < loss(dice, of)  # and lower than noise of the same size
        assert torch.equal(start, before)  # not written into
    assert b.noised(x, torch.full((1, 3, 32, 32), 8, dtype=torch.int8),
                    torch.zeros(30, dtype=int)).max() == 255  # clipped, not wrapped


def test_em_ends_with_a_surrogate_that_is_right(task, monkeypatch):
    seen = []
    spy = lambda *a, **k: seen.append(peek(*a, **k)) or seen[-1]
    peek = b.peek
    monkeypatch.setattr(b, "peek", spy)
    noise, of = b.error_minimising(task.data, 0)
    assert seen[-1] >= 99 and noise.shape == task.data.x.shape
    shared, of = b.error_minimising(task.data, 0, by_class=True)
    assert shared.shape == (10, 3, 32, 32) and torch.equal(of, task.data.y)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_lsp_can_be_told_apart_by_a_linear_softmax(classes):
    from sklearn.linear_model import LogisticRegression
    y = torch.arange(classes).repeat(10)
    points = b.separable(y, classes, 0).flatten(1)
    linear = LogisticRegression(C=1e3, max_iter=500).fit(points.numpy(), y.numpy())
    assert linear.score(points.numpy(), y.numpy()) == 1
    torch.testing.assert_close(points.square().mean(1), torch.ones(len(y)))
    assert not torch.equal(points, b.separable(y, classes, 1).flatten(1))


def test_lsp_takes_classes_of_different_sizes():
    y = torch.tensor([0] * 9 + [1] * 2 + [2] * 5)
    assert b.separable(y, 3, 0).isfinite().all()


def test_ar_obeys_its_rule_in_every_window():
    g = torch.Generator().manual_seed(3)
    beta = b.mixtures(30, (32, 32), g)
    x = b.texture(beta.view(10, 3, 8), (32, 32), g)
    kernel = torch.cat([beta, -torch.ones(30, 1)], 1).view(30, 1, 3, 3)
    answer = torch.nn.functional.conv2d(x.view(1, 30, 32, 32), kernel, groups=30)
    assert answer.abs().amax((2, 3)).div(x.abs().amax((2, 3)).view(1, 30)).max() < 1e-4
    other = torch.nn.functional.conv2d(x.view(1, 30, 32, 32), kernel.roll(3, 0), groups=30)
    assert other.abs().mean() > 0.1 * x.abs().mean()  # another class's rule is broken
    power = torch.nn.functional.adaptive_avg_pool2d(x.square(), 2).flatten(2)
    assert (power.amax(2) / power.amin(2)).median() < 9


def test_ops_writes_one_pixel_a_class_and_each_class_its_own(task):
    for some in (task, plain_task(level=100)):
        out, data = b.ops(some, 0), some.data
        hit, marks = (out != data.x).any(1), set()
        for c in range(10):
            mine = data.y == c
            assert hit[mine].any(0).sum() == 1
            row, col = hit[mine].any(0).nonzero()[0].tolist()
            colour = out[mine][:, :, row, col].unique(dim=0)
            assert len(colour) == 1 and set(colour.unique().tolist()) <= {0, 255}
            marks.add((row, col, *colour[0].tolist()))
        assert len(marks) == 10
        assert torch.equal(out, b.ops(some, 5, native=True))  # nothing to scale, no dice


def test_ops_prefers_far_and_even():
    x = torch.full((50, 3, 8, 8), 0.5)
    x += 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x[:, :, 2, 3] = 0.5  # even, but not far
    x[:, :, 5, 6] = torch.tensor([0.0, 1.0, 0.0])  # even, and far from (1, 0, 1)
    assert b.one_pixel(x, set()) == (b.CORNERS.index((1.0, 0.0, 1.0)), 5 * 8 + 6)


# ---- cells and grids ----

def test_a_victim_of_a_grid_is_the_victim_of_the_command():
    assert training_budget(10_000) == VictimConfig(epochs=7, batch=192)
    assert training_budget(10) == VictimConfig(epochs=30, batch=25)
    data, test = load_dataset(per_class=20), load_dataset(split="test")
    seen = train_victim(data.x, data.y, test.x, test.y, VictimConfig(epochs=2, batch=50, every=1))
    assert [at for at, _ in seen.history] == [1, 2]


def test_large_pictures_are_shrunk_for_victims_and_small_ones_left():
    x = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    assert shrink_for_victim(x).shape == (3, 3, 64, 64)
    assert shrink_for_victim(x[..., :40, :40]).shape[-1] == 40


PLAN = "[e.cell('embedded', m, c, s) for s in range(9) for m in ('clean', 'class DCT') " \
       "for c in ('none', 'noise', 'grayscale', 'gaussian_blur')]"
GRID = f"""
from dh_nb import bench as e, protocol
from dh_nb.victim import VictimConfig
protocol.training_budget = lambda n, **how: VictimConfig(epochs=1, batch=100, **how)  # there too
if __name__ == "__main__":
    print(e.run({PLAN}, "rows", workers=2))
"""


def test_a_killed_grid_goes_on_where_it_was(tmp_path):
    "SIGKILL to the whole grid in the middle: no broken row, and none is judged twice."
    (tmp_path / "grid.py").write_text(GRID)
    run = [sys.executable, "grid.py"]
    kid = subprocess.Popen(run, cwd=tmp_path, start_new_session=True,
                           stderr=subprocess.DEVNULL)
    rows, start = tmp_path / "rows", time.time()
    while len(read(rows)) < 2 and time.time() - start < 600: time.sleep(0.2)
    os.killpg(kid.pid, signal.SIGKILL)
    kid.wait()
    before = read(rows)
    plan = eval(PLAN)
    assert 2 <= len(before) < len(plan) and len(missing(plan, before)) == len(plan) - len(before)
    left = missing(plan, before)
    for c in left[2:]: append(Row(**c, accuracy=1.0), rows)  # two are enough
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout.strip() == "2", done.stderr[-2000:]
    after = [json.loads(s) for s in (rows / "cells.jsonl").read_text().splitlines()]
    assert len(after) == len(plan) and not missing(plan, read(rows))
    assert [r["accuracy"] for r in after[:len(before)]] == before.accuracy.tolist()
