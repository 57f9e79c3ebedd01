"Rivals, cells and grids: the same task and the same budget for everybody."
import json, os, signal, subprocess, sys, time
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from dh_nb import baselines as b, evaluate as e
from dh_nb.data import BadInput, ImageSet, load_dataset
from dh_nb.nets import Muon, orthogonal
from dh_nb.protect import WORK, in_threads
from dh_nb.quality import quality_table
from dh_nb.results import Row, append, missing, read
from dh_nb.squeeze import BlockDCT
from dh_nb.victim import schedule, train_victim


@pytest.fixture(scope="module")
def task():
    return b.open_task("embedded", 4, 8)


# ---- the two optimisers ----

@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), cols=st.integers(1, 40), seed=st.integers(0, 99))
def test_orthogonal_evens_out_singular_values(rows, cols, seed):
    g = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    out = orthogonal(g, steps=12)
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
    method = b.METHODS[name]
    if name.startswith("adapted"): method = partial(method, steps=2)
    return method(task, seed)


@pytest.mark.parametrize("name", list(b.METHODS))
def test_every_method_keeps_the_budget_and_its_bytes(name, task):
    out = cheap(name, task, 1)
    assert out.dtype == torch.uint8 and out.shape == task.data.x.shape
    if name == "clean": assert torch.equal(out, task.data.x); return
    assert quality_table(task.data.x, out)["psnr_min"] >= 30.1
    assert torch.equal(out, cheap(name, task, 1))


def test_a_method_says_who_it_is_not():
    with pytest.raises(BadInput, match="choose one of clean"): b.publish_as("?", None, 0)
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


# ---- cells and grids ----

def test_a_victim_of_a_grid_is_the_victim_of_the_command():
    assert schedule(10_000) == dict(epochs=7, batch=192)
    assert schedule(10) == dict(epochs=40, batch=25)
    data, test = load_dataset(per_class=20), load_dataset(split="test")
    seen = train_victim(data.x, data.y, test.x, test.y, epochs=2, batch=50, every=1)
    assert [at for at, _ in seen.history] == [1, 2]


def test_large_pictures_are_shrunk_for_victims_and_small_ones_left():
    x = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8)
    assert e.shrunk(x).shape == (3, 3, 64, 64) and e.shrunk(x[..., :40, :40]).shape[-1] == 40


PLAN = "[e.cell('embedded', m, c, s) for s in range(9) for m in ('clean', 'class DCT') " \
       "for c in ('none', 'jpeg', 'grayscale', 'gaussian_blur')]"
GRID = f"""
from dh_nb import evaluate as e
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
    assert len(after) == len(plan) and not missing(plan, after)
    assert after[:len(before)] == before
