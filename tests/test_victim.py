"One victim, alone or shared, in one go or in two: the same answer."
import json, math, os, socket, subprocess, sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from safetensors.torch import load_file

from dh_nb.countermeasures.augment import CutMix
from dh_nb.countermeasures.suite import countermeasure
from dh_nb.data import BadInput, load_dataset
from dh_nb.nets import net
from dh_nb.countermeasures.base import Countermeasure
from dh_nb.victim import (Team, VictimConfig, crop_flip, left, optimisers, pad_store, step,
                          train_victim)


def how(name="quick", **more):
    "Four short epochs, each followed by a test."
    return VictimConfig(**{**dict(name=name, epochs=4, batch=40, every=1), **more})


@pytest.fixture(scope="module")
def task():
    data, test = load_dataset(per_class=20), load_dataset(split="test", per_class=20)
    return data.x, data.y, test.x, test.y


class Unplugged(Countermeasure):
    "Breaks down at a share of the training, if told to; draws from every source."

    def __init__(self, at=2.0): self.at = at

    def batch(self, x, y, g, classes):
        return (x + 0.1 * torch.rand(len(x), 1, 1, 1, generator=g)).clamp(0, 1), y

    def loss(self, model, x, y, done=0.0):
        if done >= self.at: raise InterruptedError
        self.model = model
        return super().loss(model, x + 0.05 * torch.rand_like(x), y, done)


# ---- in two goes ----

@pytest.mark.parametrize("name", ["quick", "narrow"])
def test_four_epochs_are_two_and_two(name, task, tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    one = train_victim(*task, how(name), keep=whole, countermeasure=Unplugged())
    plain = train_victim(*task, how(name), countermeasure=Unplugged())
    with pytest.raises(InterruptedError):
        train_victim(*task, how(name), keep=cut, countermeasure=Unplugged(0.5))
    torch.manual_seed(99)  # another process would begin anywhere
    two = train_victim(*task, how(name), keep=cut, countermeasure=Unplugged())
    assert plain.history == one.history == two.history and len(one.history) == 4
    a, b = load_file(whole), load_file(cut)
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k
    assert {p.name for p in tmp_path.iterdir()} == {whole.name, cut.name}


def test_a_finished_training_is_only_read(task, tmp_path):
    call = lambda: train_victim(*task, how(), keep=tmp_path / "a", countermeasure=counter)
    counter = Unplugged()
    first = call()
    counter = Unplugged(0.0)  # would break down at the first batch
    again = call()
    assert again.history == first.history and again.accuracy == first.accuracy


@pytest.mark.parametrize("other,word", [
    (dict(seed=1), "seed 0, not 1"), (dict(epochs=5), "epochs 4, not 5"),
    (dict(countermeasure=CutMix()), "none, not cutmix")])
def test_a_file_of_another_training_is_refused(other, word, task, tmp_path):
    train_victim(*task, how(), keep=tmp_path / "a")
    counter = other.pop("countermeasure", None)
    with pytest.raises(BadInput, match=word):
        train_victim(*task, how(**other), keep=tmp_path / "a", countermeasure=counter)
    x8, *rest = task
    with pytest.raises(BadInput, match="pictures"):
        train_victim(255 - x8, *rest, how(), keep=tmp_path / "a")


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b"", lambda b: b"x" * 50])
def test_a_damaged_file_is_named(damage, task, tmp_path):
    path = tmp_path / "a"
    train_victim(*task, how(), keep=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="a is not a training"):
        train_victim(*task, how(), keep=path)


# ---- nothing left to learn ----

@given(st.integers(2, 1000))
def test_a_guess_leaves_everything(classes):
    assert abs(left(math.log(classes), classes) - 1) < 1e-9


class Broken(Countermeasure):
    def loss(self, model, x, y, done=0.0):
        loss = super().loss(model, x, y, done)
        return loss * math.nan if done >= 0.5 else loss


def test_a_loss_that_is_no_number_ends_it_if_asked(task):
    ends = [train_victim(*task, how(stop=s), countermeasure=Broken()).history[-1][0]
            for s in (None, 0.0)]
    assert ends == [4, 3]


def test_a_stopped_training_is_over(task, tmp_path):
    call = lambda: train_victim(*task, how(stop=10.0), keep=tmp_path / "a")
    assert [e for e, _ in call().history] == [1] == [e for e, _ in call().history]


# ---- shared ----

@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 50), size=st.integers(2, 9))
def test_shares_are_equal_and_cover_the_batch(rows, size):
    seen = []
    for rank in range(size):
        team = Team()
        team.size, team.rank = size, rank
        x, y = team.share(torch.arange(rows), torch.arange(rows) * 2)
        assert len(x) == math.ceil(rows / size) and torch.equal(2 * x, y)
        seen += x.tolist()
    assert set(seen) == set(range(rows)) and len(seen) < rows + size


PAIR = """
import hashlib, json, sys
import torch
from dh_nb.data import load_dataset
from dh_nb.countermeasures.base import Countermeasure
from dh_nb.victim import Team, VictimConfig, train_victim

class Watch(Countermeasure):
    model = torch.nn.Identity()  # where nothing is left to train

    def loss(self, model, x, y, done=0.0):
        self.model = model
        return super().loss(model, x, y, done)

data, test = (load_dataset(split=s, per_class=50) for s in ("train", "test"))
counter = Watch()
score = train_victim(data.x, data.y, test.x, test.y, VictimConfig(epochs=8, batch=35, every=8),
                     countermeasure=counter, keep=sys.argv[1])
state = counter.model.state_dict()
hashed = hashlib.sha256(b"".join(v.contiguous().numpy().tobytes() for v in state.values()))
print(json.dumps(dict(rank=Team().rank, weights=hashed.hexdigest(), accuracy=score.accuracy,
                      alone="accelerate" not in sys.modules)))
"""


def launch(size, folder):
    "What `size` processes say that train one victim together; gloo, one thread each."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (folder / "pair.py").write_text(PAIR)
    shared = dict(os.environ, WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(port), OMP_NUM_THREADS="1", DH_DEVICE="cpu",
                  ACCELERATE_USE_CPU="true", LOCAL_WORLD_SIZE=str(size))
    kids = [subprocess.Popen([sys.executable, "pair.py", f"{size}.safetensors"], cwd=folder,
                             env=dict(shared, RANK=str(r), LOCAL_RANK=str(r)),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for r in range(size)]
    outs = [kid.communicate(timeout=300) for kid in kids]
    for kid, (_, err) in zip(kids, outs): assert kid.returncode == 0, err[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outs]


def test_two_processes_train_one_victim(tmp_path):
    pytest.importorskip("accelerate")
    one, = launch(1, tmp_path)
    two = launch(2, tmp_path)
    assert one["alone"] and not two[0]["alone"]
    assert [t["rank"] for t in two] == [0, 1]
    assert two[0]["weights"] == two[1]["weights"] != one["weights"]
    assert two[0]["accuracy"] == two[1]["accuracy"]
    assert abs(two[0]["accuracy"] - one["accuracy"]) < 6 and one["accuracy"] > 60
    again = launch(2, tmp_path)  # finished: both read the one file that was written
    assert [t["accuracy"] for t in again] == [two[0]["accuracy"]] * 2


def test_without_accelerate_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BadInput, match=r"dh_nb\[bench\]"): Team()


# ---- on another device ----

def lesson(at, name, counter, back=True):
    "One step there; any tensor that was left on the processor is an error."
    with torch.device(at): model = net(name, 10)
    store = pad_store(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).to(at)
    g, y = torch.Generator().manual_seed(0), torch.zeros(8, dtype=torch.long, device=at)
    loss = counter.loss(model, *counter.batch(crop_flip(store, torch.arange(8), g), y, g, 10), 0.0)
    if back: step(loss, optimisers(model, 0.1, 0.0, 9))
    return loss.device.type


@pytest.mark.parametrize("name", ["quick", "narrow", "resnet18"])
def test_a_card_that_is_not_here(name):
    "The shapes and devices of a step, without data: what a card would refuse is refused."
    with FakeTensorMode():  # forward as on CUDA; backward would look for the card
        assert lesson("cuda", name, Countermeasure(), back=False) == "cuda"
    assert lesson("meta", name, Countermeasure()) == "meta"


@pytest.mark.parametrize("name", ["cutout", "adversarial_training"])
def test_countermeasures_follow_the_device(name):
    assert lesson("meta", "quick", countermeasure(name)) == "meta"


def test_a_tensor_that_stayed_behind_is_caught():
    class Slip(Countermeasure):
        def batch(self, x, y, g, classes): return x + torch.zeros(3, 32, 32), y
    with pytest.raises(RuntimeError, match="device"): lesson("meta", "quick", Slip())
