"A fair race: known speeds, a loop that goes on where it was, rows that add up."
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dh_nb import speed as s
from dh_nb.data import BadInput, load_dataset
from dh_nb.results import read


@pytest.fixture(scope="module")
def few():
    return load_dataset("embedded", per_class=4)


def test_a_rate_counts_the_time_that_was_taken():
    "One piece of work that is longer than the slice."
    assert 8 < s.rate(lambda: time.sleep(0.1) or 1, 0.01) <= 10


def test_the_order_of_turns_cancels_a_drift():
    turns = []
    work = lambda name: lambda: turns.append(name) or 1
    s.alternate({"a": work("a"), "b": work("b")}, rounds=4, seconds=0.0)
    assert turns == ["a", "b"]  # warm-up alone: slices of no time
    turns.clear()
    slow = lambda name: lambda: (turns.append(name), time.sleep(0.02), 1)[-1]
    s.alternate({"a": slow("a"), "b": slow("b")}, rounds=4, seconds=0.01)
    assert "".join(turns[2:]) == "abbaabba"


def test_multiply_adds_by_hand():
    conv = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.ReLU(),
                         nn.Conv2d(5, 7, 3, padding=1), nn.Flatten())
    first, second = 27 * 5 * 64, 45 * 7 * 64
    assert s.training_macs(conv, 8) == 2 * first + 3 * second
    conv[0].requires_grad_(False)
    assert s.training_macs(conv, 8) == first + 2 * second


def test_loading_in_processes_draws_what_loading_alone_does_not_need_to(few):
    run = s.plain_run(few, 1, 16)
    batches = [s.PerImage(few)[i][0].shape for i in (0, 39)]
    assert batches == [(3, 32, 32)] * 2
    assert sum(s.plain_epoch(run, few, 16, workers=2)) == 40
    steps, opt = 3, run.plans[0][0]
    assert run.plans[0][1].last_epoch == steps and opt.param_groups[0]["lr"] < 1e-9


def test_the_plain_loop_goes_on_where_it_was(few, tmp_path):
    how = dict(goal=101.0, workers=0)
    short = few.subset(torch.arange(0, 40, 4))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    one = s.plain_victim(short, short, epochs=3, keep=whole, **how)
    s.plain_victim(short, short, goal=1.0, epochs=3, keep=cut, workers=0)
    two = s.plain_victim(short, short, epochs=3, keep=cut, **how)
    assert one.history == two.history and two.epoch == 3
    a, b = load_file(whole), load_file(cut)
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(BadInput, match="epochs 3, not 4"):
        s.plain_victim(short, short, epochs=4, keep=cut, **how)


def test_one_call_writes_rows_that_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(s, "matmul_peak", lambda kind: {torch.float32: 1e12,
                                                        torch.bfloat16: 5e11}[kind])
    monkeypatch.setattr(s, "plain_epoch", lambda run, data, *a, **k: iter([len(data)]))
    call = lambda **k: s.speed("embedded", 4, rounds=1, seconds=0.1, goal=5.0, seed=2,
                               results=tmp_path, **k)
    call(full=True, keep=tmp_path / "plain")
    rows = {r["name"]: r for r in read(tmp_path, "measures").to_dict("records")}
    assert all(r["subset"] == "first 4 a class" and r["seed"] == 2 for r in rows.values())
    value = lambda name: rows[name]["value"]
    assert value("matrix product") == 2 * value("matrix product, bfloat16") == 1e3
    assert value("share of the matrix product, quick") == pytest.approx(  # of the larger
        100 * s.training_macs(s.net("quick")) * value("training, quick") / 1e12, rel=1e-3)
    for way in ("quick", "plain loop"):
        t = value(f"epochs to 5 %, {way}") * 40 / value(f"training, {way}")
        assert value(f"time to 5 %, {way}") == pytest.approx(t, rel=1e-4)
    ratio = value("time to 5 %, plain loop") / value("time to 5 %, quick")
    assert value("time to 5 %, ratio") == pytest.approx(ratio, rel=1e-4)
    again = {m.name for m in call()}  # the epochs of the plain loop are looked up
    assert "time to 5 %, ratio" in again and "plain loop, accuracy" not in again
