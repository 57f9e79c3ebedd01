"The bench: whoever is judged, whatever kills it, whoever shares the work."
import json, os, re, shutil, signal, subprocess, sys, time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.models import alexnet
from torchvision.transforms import Normalize

from dh_nb import bench as e, cli, methods, protocol, registry, scorecard as s
from dh_nb.countermeasures.base import Countermeasure, Filter
from dh_nb.countermeasures.suite import COUNTERMEASURES, FLOORS, countermeasure, suite
from dh_nb.data import BadInput, load_dataset, read_image
from dh_nb.distort import gaussian_blur, grayscale, jpeg
from dh_nb.lfc import damaged
from dh_nb.nets import NETS
from dh_nb.publishing import protect, save_png
from dh_nb.quality import perceptual, quality_table
from dh_nb.results import Row, append, frame, key, read
from dh_nb.victim import VictimConfig

import house


@pytest.fixture
def short(monkeypatch):
    "Victims of two steps."
    monkeypatch.setattr(protocol, "training_budget",
                        lambda n, **how: VictimConfig(epochs=1, batch=100, **how))


def in_a_thread(monkeypatch):
    "Cells are judged in this process, so that they see what a test has changed."
    here = lambda n, ray: (ThreadPoolExecutor(1), e.LocalExecutor(), 1)
    monkeypatch.setattr(e, "make_executor", here)


def plugin_of(name):
    "The text of the plug-in that a room teaches."
    cell, = [c for c in house.read(house.ROOT / f"nbs/{name}.ipynb").cells
             if c.source.startswith("PLUGIN = ")]
    space = {}
    exec(cell.source.partition("with ")[0], space)
    return space["PLUGIN"]


@pytest.fixture(scope="module")
def data(): return load_dataset("embedded", per_class=20)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    "What dh_protect writes."
    out = tmp_path_factory.mktemp("theirs") / "out"
    protect("embedded", out, per_class=20)
    return out


# ---- what was judged before stays judged ----

@pytest.mark.parametrize("name, old", [("none", lambda x: x), ("jpeg", jpeg),
                                       ("grayscale", grayscale),
                                       ("gaussian_blur", gaussian_blur)])
def test_files_are_treated_as_they_were_before_the_suite(name, old, data):
    wide = torch.randint(0, 256, (3, 3, 50, 70), dtype=torch.uint8)
    for x8 in (data.x, wide):
        new = countermeasure(name).files(x8, torch.zeros(len(x8)), 5)
        assert torch.equal(new, damaged(x8, old))


def test_stored_rows_are_cells_of_today():
    rows = read(house.ROOT / "results")
    stored = rows[rows.victim.isin(list(NETS)) & rows.method.isin(list(e.METHODS))
                  & rows.subset.isin(["all", "first 1000 a class"])].to_dict("records")
    assert len(stored) > 60
    for r in stored:
        c = e.cell(r["dataset"], r["method"], r["countermeasure"], r["seed"], r["victim"],
                   r["scale"])
        assert key(c) == key(r)


def test_the_suite_has_eighteen_and_every_name_makes_a_cell():
    assert len(set(suite())) == 18 and set(FLOORS) == {"none", *suite()}
    plan = e.plan_cells("cifar10", ["clean"], ["none", *suite()])
    assert len({key(c) for c in plan}) == 19


@pytest.mark.parametrize("name", ["none", "bit_depth", "cutmix", "adversarial_training",
                                  "orthogonal_projection"])
def test_a_countermeasure_of_every_kind_gives_a_row(name, short, tmp_path):
    row, = e.run_cells([e.cell("embedded", "class DCT", name, 0)], tmp_path)
    assert row.extra.get("setting", "") == countermeasure(name).setting
    assert row.psnr_min >= 30.1 and 0 < row.extra["low_share"] <= 1 and row.seconds > 0
    assert {*read(tmp_path)} >= {"linf_max", "unchanged", "feature_distance", "lpips"}


def weights_of_lpips():
    "The weights of LPIPS that its package brings along, one for each of five layers."
    where = Path(find_spec("lpips").origin).parent / "weights/v0.1/alex.pth"
    return [w.flatten() for w in torch.load(where, "cpu", weights_only=True).values()]


def test_lpips_is_its_package_s_where_weights_lie_and_a_reason_where_not(
        data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    x8 = data.x[:6]
    y8 = gaussian_blur(x8 / 255).mul(255).round().byte()
    assert protocol.lpips(x8, y8) == "alexnet-owt-7be5be79.pth is not at hand"
    torch.manual_seed(0)
    body = alexnet(weights=None)  # the package loads it as it would load the trained one
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(body.state_dict(), tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth")
    weights = weights_of_lpips()
    at, mean, std = (1, 4, 7, 9, 11), (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)

    def layers(x):
        x = interpolate(x, scale_factor=2, mode="bilinear")
        z = Normalize(mean, std)(2 * x - 1)
        maps = [z := layer(z) for layer in body.features.eval()]
        return [maps[i] for i in at]
    with torch.no_grad():
        ours = perceptual(x8 / 255, y8 / 255, layers, weights).mean().item()
    assert ours > 1e-4 and protocol.lpips(x8, y8) == pytest.approx(ours, rel=1e-4)
    assert protocol.lpips(x8, x8) == 0
    monkeypatch.setattr(protocol, "find_spec", lambda name: None)
    assert protocol.lpips(x8, y8) == "the package lpips is not installed"


def test_a_countermeasure_may_ask_for_epochs_and_an_unfinished_training_is_kept(
        short, tmp_path, monkeypatch):
    seen, real = [], protocol.train_victim

    def trainer(*pictures, keep=None, **how):
        seen.append((pictures[-1], keep))
        return real(*pictures, **how)
    monkeypatch.setattr(COUNTERMEASURES["cutout"], "longer", 3)
    monkeypatch.setattr(protocol, "train_victim", trainer)
    e.run_cells([e.cell("embedded", "clean", "cutout", 0)], tmp_path)
    (config, keep), = seen
    assert config.epochs == 3 and keep.parent == tmp_path / "cells"
    assert read(tmp_path).epochs[0] == 3


def test_files_are_treated_at_their_published_size(short, monkeypatch):
    "Filters see the published size, the victim 64 pixels."
    x8 = torch.randint(0, 256, (20, 3, 80, 80), dtype=torch.uint8)
    y, test = torch.arange(20) % 2, torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    sizes, files = [], Filter.files

    def watched(self, x8, *more):
        sizes.append(x8.shape[-1])
        return files(self, x8, *more)
    monkeypatch.setattr(Filter, "files", watched)
    published = e.Published(x8, y, test, torch.arange(4) % 2, {})
    e.run_cell(e.cell("imagenette", "clean", "jpeg", 0), published)
    assert sizes == [80]


# ---- somebody's folder ----

def test_a_folder_is_judged_as_the_method_that_made_it(theirs, data, tmp_path):
    given = e.from_folder(theirs, data)
    for i in range(0, 200, 7):
        name = f"{data.classes[int(data.y[i])]}/{data.names[i]}.png"
        assert torch.equal(given[i], read_image(theirs / "train" / name))
    as_it = methods.publish_as("robust", e.open_task("embedded", 20, 40), 0)
    apart = (given.float() - as_it.float()).abs()  # batches of other sizes round otherwise
    assert apart.max() <= 2 and apart.mean() < 0.01
    plain = tmp_path / "plain"  # class folders alone, without a manifest
    shutil.copytree(theirs / "train", plain)
    assert torch.equal(e.from_folder(plain, data), given)
    c = e.cell("embedded", f"files:{theirs}", "none", 0)
    files = e.publish(c, *e.load_task(c))
    q = quality_table(data.x, given)
    assert (files.card["psnr_min"], files.card["ssim"]) == (q["psnr_min"], q["ssim_mean"])
    assert str(tmp_path) not in str(key(c)) and c["method"] == "files:out"


def test_a_row_tells_no_folder(theirs, short, tmp_path):
    c = e.cell("embedded", f"files:{theirs}", "none", 0)
    e.run_cells([c], tmp_path)
    assert str(theirs.parent) not in (tmp_path / "cells.jsonl").read_text()


def spoil(folder, how):
    "Make one thing wrong with a copy of a protected folder."
    train = folder / "train"
    if how == "class": shutil.rmtree(train / "bag")
    if how == "picture": next((train / "bag").iterdir()).unlink()
    if how == "names":
        for p in train.rglob("*.png"): p.rename(p.with_name(f"x{p.name}"))
    if how == "size":
        for p in train.rglob("*.png"): save_png(torch.zeros(3, 20, 30).byte(), p)
    if how == "sizes": save_png(torch.zeros(3, 20, 30).byte(), next(train.rglob("*.png")))
    if how == "empty": shutil.rmtree(train); (folder / "manifest.json").unlink()
    if how == "text": next(train.rglob("*.png")).write_text("no picture")


@pytest.mark.parametrize("how, says", [
    ("class", "class bag"), ("picture", "lacks 1 of the 200"), ("names", "lacks 200 of"),
    ("size", "30x20, the originals 28x28"), ("sizes", "several sizes"),
    ("empty", "not a folder"), ("text", "")])
def test_a_folder_that_does_not_fit(how, says, theirs, tmp_path, capsys):
    bad = tmp_path / "bad"
    shutil.copytree(theirs, bad)
    spoil(bad, how)
    says = says.replace("28x28", "{0}x{0}".format(load_dataset("embedded").x.shape[-1]))
    refused(capsys, "run", "--scale", "tiny", "--methods", f"clean,files:{bad}",
            "--results", tmp_path / "rows", says=says)
    assert not (tmp_path / "rows").exists()  # told before anything was trained


# ---- a share of it ----

@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 1.0])
def test_a_ratio_protects_the_first_share_of_each_class(ratio, data):
    c = e.cell("embedded", "class DCT", "none", 0, ratio=ratio)
    files = e.publish(c, *e.load_task(c))
    changed = (files.x8 != data.x).flatten(1).any(1)
    for label in range(10):
        mine = changed[data.y == label]
        assert mine[:round(20 * ratio)].all() and not mine[round(20 * ratio):].any()
    assert files.card["extra"]["unchanged"] == 0


def test_a_ratio_is_part_of_what_a_row_is():
    whole, part = (e.cell("cifar10", "dh", "none", 0, ratio=r) for r in (1.0, 0.2))
    assert key(whole) != key(part) and part["extra"] == dict(ratio=0.2)
    assert part["subset"] == "first 1000 a class, 20 % protected"
    plan = e.plan_cells("cifar10", ["clean", "dh"], ["none"], 2, ratios=[0.2, 0.4, 1.0])
    assert len(plan) == len({key(c) for c in plan}) == 2 * (1 + 3)


# ---- killed, and shared ----

SHORT = """
import sys
from dh_nb import bench as e, protocol
from dh_nb.victim import VictimConfig
protocol.training_budget = lambda n, **how: VictimConfig(epochs=2, batch=50, **how)
PLAN = e.plan_cells("embedded", ["clean", "class DCT"], ["none", "jpeg", "cutout"], 2)
if __name__ == "__main__":
    print(sum(len(e.run_cells(g, "rows")) for g in e.shares(PLAN, 1)))
"""


def started(folder):
    return subprocess.Popen([sys.executable, "bench.py"], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_kill_9_loses_no_row_and_two_processes_do_no_cell_twice(tmp_path):
    (tmp_path / "bench.py").write_text(SHORT)
    rows, kid, start = tmp_path / "rows", started(tmp_path), time.time()
    while read(rows).empty and time.time() - start < 300: time.sleep(0.02)
    os.kill(kid.pid, signal.SIGKILL)
    kid.communicate()
    before = [json.loads(t) for t in (rows / "cells.jsonl").read_text().splitlines()]
    assert 1 <= len(before) < 12
    pair = [started(tmp_path) for _ in "ab"]
    said = [p.communicate(timeout=600) for p in pair]
    assert [p.returncode for p in pair] == [0, 0], said
    done = [int(out) for out, _ in said]
    lines = [json.loads(t) for t in (rows / "cells.jsonl").read_text().splitlines()]
    assert lines[:len(before)] == before
    assert len(lines) == 12 == len({key(r) for r in lines}) and sum(done) == 12 - len(before)
    assert min(done) > 0  # they shared the work
    assert not list((rows / "cells").iterdir())


ORPHANS = """
import os, sys, time
from dh_nb.bench import make_executor
if __name__ == "__main__":
    pool, _, _ = make_executor(1, None)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def alive(pid):
    "Whether a process runs; one that only waits to be buried does not."
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_workers_leave_with_their_parent(tmp_path):
    (tmp_path / "orphans.py").write_text(ORPHANS)
    kid = subprocess.Popen([sys.executable, "orphans.py"], cwd=tmp_path, text=True,
                           stdout=subprocess.PIPE)
    worker = int(kid.stdout.readline())
    assert alive(worker)
    kid.kill()
    kid.wait()
    start = time.time()
    while alive(worker) and time.time() - start < 20: time.sleep(0.1)
    assert not alive(worker)


def test_a_method_that_fails_does_not_stop_the_others(short, tmp_path, monkeypatch):
    def fails(task, seed): raise BadInput("No luck.")
    monkeypatch.setitem(e.METHODS, "unlucky", methods.Method(fails))
    in_a_thread(monkeypatch)
    plan = e.plan_cells("embedded", ["unlucky", "clean", "class DCT"], ["none"])
    with pytest.raises(BadInput, match="No luck"): e.run(plan, tmp_path)
    assert read(tmp_path).method.tolist() == ["clean", "class DCT"]
    with pytest.raises(BadInput, match="No luck"): e.run(plan, tmp_path)
    monkeypatch.setitem(e.METHODS, "unlucky", e.METHODS["clean"])
    assert e.run(plan, tmp_path) == 1 and e.run(plan, tmp_path) == 0


def test_only_a_foreign_training_is_thrown_away(tmp_path, monkeypatch):
    c, keep = e.cell("embedded", "clean", "none", 0), tmp_path / "half.safetensors"
    files, said = e.publish(c, *e.load_task(c)), []

    def fails(kind, *args, keep, **how):
        said.append(keep.exists())
        raise kind("No.")
    for kind, tries in ((BadInput, [True]), (protocol.OtherTraining, [True, False])):
        monkeypatch.setattr(protocol, "train_victim", partial(fails, kind))
        keep.touch(), said.clear()
        with pytest.raises(BadInput, match="No"): e.run_cell(c, files, keep)
        assert said == tries
    assert not keep.exists()


def test_shares_keep_pictures_together_and_leave_nobody_idle():
    plan = e.plan_cells("embedded", ["clean", "dh"], ["none", *suite()], 2)
    for workers in (1, 2, 4, 7, 100):
        got = e.shares(plan, workers)
        assert sorted(map(str, sum(got, []))) == sorted(map(str, plan))
        assert len(got) >= min(workers, len(plan))
        assert all(len({(c["method"], c["seed"]) for c in g}) == 1 for g in got)


# ---- your own method and countermeasure ----

@pytest.mark.parametrize("room, method, counter", [
    ("92_house", "stamp", "crop(border=3)"), ("99_project", "brighter", "few_greys(levels=8)")])
def test_a_plug_in_is_judged_by_real_processes(room, method, counter, tmp_path):
    "The file that a room teaches, from the command, by two spawned workers."
    (tmp_path / "mine.py").write_text(plugin_of(room))
    bench = Path(sys.executable).with_name("dh_bench")

    def ask(word, *more):
        done = subprocess.run([bench, word, "--scale", "tiny", "--plugin", "mine.py", "--methods",
                               method, "--countermeasures", f"none,{counter}", *more],
                              cwd=tmp_path, text=True, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout
    assert "2 of 2 are in results" in ask("run", "--workers", "2")
    rows, mine = read(tmp_path / "results"), registry.read_plugin(tmp_path / "mine.py").digest
    assert set(rows.method) == {method} and set(rows.countermeasure) == {"none", counter}
    assert set(rows.plugin) == {mine, f"{mine}+{mine}"}
    assert "0 of 2 cells are missing" in ask("status")
    with open(tmp_path / "mine.py", "a") as f: f.write("# changed\n")
    assert "2 of 2 cells are missing" in ask("status")


def test_a_name_that_is_taken_is_refused(forgetful, tmp_path):
    for name in ("robust", "clean"):
        with pytest.raises(BadInput, match="already"): methods.register_method(name)(lambda t, s: 0)
    with pytest.raises(BadInput, match="already"):
        registry.register("countermeasure", "jpeg", 0, data)
    with pytest.raises(BadInput, match="letters"): methods.register_method("a b")(lambda t, s: 0)
    for name in "ab": (tmp_path / f"{name}.py").write_text(plugin_of("92_house") + f"# {name}")
    registry.load_plugin(tmp_path / "a.py")
    with pytest.raises(BadInput, match="b.py cannot be imported.*'stamp' already"):
        registry.load_plugin(tmp_path / "b.py")
    registry.load_plugin(tmp_path / "a.py")  # again: nothing happens


@pytest.mark.parametrize("out, says", [
    (lambda x: x[1:], "a picture for a picture"), (lambda x: x.float(), "gave back float32"),
    (lambda x: x[..., 1:], "32"), (lambda x: x.numpy(), "ndarray"), (lambda x: None, "NoneType")])
def test_a_method_that_gives_back_something_else(out, says, forgetful, short, tmp_path):
    methods.register_method("wrong")(lambda task, seed: out(task.data.x))
    with pytest.raises(BadInput, match=says):
        e.run_cells([e.cell("embedded", "wrong", "none", 0)], tmp_path)
    assert read(tmp_path).empty


@pytest.mark.parametrize("text, says", [
    ("import nothing_of_this_name", "ModuleNotFoundError"), ("def f(:", "SyntaxError"),
    ("1 / 0", "ZeroDivisionError"), ("x = 1", "registers nothing"), (b"\xff", "UTF-8")])
def test_a_plug_in_that_cannot_be_imported(text, says, tmp_path, capsys, forgetful):
    (tmp_path / "bad.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, "status", "--plugin", tmp_path / "bad.py", says=says)
    assert not [p for p in registry.REGISTERED.values() if p.path.endswith("bad.py")]


def test_what_a_notebook_defines_is_not_sent_in_silence(forgetful, monkeypatch, tmp_path):
    "Other processes could not know it, so it is said before they are started."
    typed = eval("lambda task, seed: task.data.x")
    typed.__module__ = "__main__"
    methods.register_method("typed")(typed)
    plan = e.plan_cells("embedded", ["typed"], ["none"])
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(BadInput, match="put it into a file"): e.run(plan, tmp_path)


def test_one_spelling_is_one_key():
    cells = [e.cell("cifar10", "clean", c, 0) for c in (
        "jpeg", "jpeg()", "jpeg(10)", "jpeg(quality=10)", " jpeg( quality = 10 ) ")]
    assert len({key(c) for c in cells}) == 1 and cells[0]["countermeasure"] == "jpeg"
    other = e.cell("cifar10", "clean", "jpeg(quality=50)", 0)
    assert key(other) != key(cells[0]) and other["countermeasure"] == "jpeg(quality=50)"


def test_a_method_s_preset_is_said_and_not_guessed(forgetful):
    methods.register_method("dhash")(lambda task, seed: task.data.x)
    methods.register_method("robustness", preset="mine")(lambda task, seed: task.data.x)
    assert e.cell("embedded", "dhash", "none", 0)["preset"] == ""
    assert e.cell("embedded", "robustness", "none", 0)["preset"] == "mine"


# ---- on a cluster ----

RAY = """
import ray, sys, time
from ray._private import services
from ray.cluster_utils import Cluster
from dh_nb import bench as e
from dh_nb.registry import load_plugin
from dh_nb.results import read
ask, until = services.get_node, time.time() + 300
def patient(*node):  # Ray gives a node 30 seconds, too few beside other tests
    try: return ask(*node)
    except RuntimeError:
        if time.time() > until: raise
    time.sleep(1)
    return patient(*node)
services.get_node = patient
cluster = Cluster(initialize_head=True,
                  head_node_args=dict(num_cpus=1, include_dashboard=False))
cluster.add_node(num_cpus=1)
load_plugin(sys.argv[2])
plan = e.plan_cells("embedded", ["clean", f"files:{sys.argv[1]}"], ["none", "grayscale"])
plan += e.plan_cells("embedded", ["stamp"], ["crop(border=3)"])
done = e.run(plan, "rows", ray=cluster.address)
at = e.RayExecutor(cluster.address)
assert at.size == 2
try: at.get(at.send([], e.folder_digest, "nowhere"))
except e.BadInput as error:
    print("told:", error)
ray.shutdown(); cluster.shutdown()
print(done, len(read("rows")))
"""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "a:b", "127.0.0.1:99999", "auto"])
def test_a_cluster_that_is_not_there(address):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.raises(BadInput, match="No Ray cluster answers"): e.RayExecutor(address)


def test_without_ray_the_bench_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"dh_nb\[ray\]"): e.RayExecutor("auto")


def test_a_cluster_of_two_nodes_does_the_work(theirs, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    (tmp_path / "on_ray.py").write_text(RAY)
    (tmp_path / "example.py").write_text(plugin_of("92_house"))
    kind = dict(os.environ, RAY_worker_niceness="0")  # else it yields to all other tests
    done = subprocess.run([sys.executable, "on_ray.py", theirs, "example.py"], cwd=tmp_path, env=kind,
                          text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.strip().splitlines()
    assert said[-1] == "5 5" and "told: nowhere is not a folder" in done.stdout
    rows = read(tmp_path / "rows")
    assert not list((tmp_path / "rows" / "cells").iterdir())
    assert set(rows.method) == {"clean", "files:out", "stamp"}
    own = rows[rows.method == "stamp"].iloc[0]
    assert own.countermeasure == "crop(border=3)" and own.accuracy > 0
    assert own.plugin == "+".join(2 * [registry.read_plugin(tmp_path / "example.py").digest])


# ---- tables ----

def rows_of(**accuracy):
    "Rows of CIFAR-10 by hand: method -> accuracies after none, jpeg, grayscale."
    return frame([Row(**e.cell("cifar10", m.replace("_", " "), a, seed), accuracy=v, seconds=30)
                  for m, values in accuracy.items() for seed in range(2)
                  for a, v in zip(("none", "jpeg", "grayscale"), values)])


def test_a_column_below_its_floor_does_not_count():
    high, low = (rows_of(clean=(80.0, j, 75.0), dh=(10.0, 60.0, 20.0)) for j in (70.0, 40.0))
    ends = [s.score_lines(*s.groups(rows).values()).loc[0, list(s.ENDS)].tolist()
            for rows in (high, low)]
    assert ends == [[40, 60, 50 / 60], [20, 20, 10 / 65]]
    text = s.card_text(*s.groups(low).values())
    assert "jpeg *" in text and "floor" in text


def test_a_line_with_a_hole_has_no_ends():
    rows = rows_of(clean=(80.0, 70.0, 75.0), dh=(10.0, 60.0, 20.0), class_DCT=(30.0, 28.0))
    lines = s.score_lines(*s.groups(rows).values(), "mean").set_index("method")
    assert lines.loc["class DCT", ["worst", "worst recovery"]].isna().all()
    assert list(lines.index) == ["dh", "class DCT", "clean"] and lines.worst["dh"] == 60
    alone = s.score_lines(*s.groups(rows_of(dh=(10.0, 60.0, 20.0))).values()).iloc[0]
    assert alone.worst == 60 and pd.isna(alone["worst recovery"])  # no clean victim


def test_presets_and_shares_are_lines_of_their_own():
    a, b = (Row(**dict(e.cell("cifar10", "dh", "none", 0), preset=p), accuracy=10)
            for p in ("fast", "robust"))
    part = Row(**e.cell("cifar10", "dh", "none", 0, ratio=0.2), accuracy=70)
    found, = s.groups(frame([a, b, part])).values()
    assert set(found.line) == {"dh (fast)", "dh (robust)", "dh (fast), 20 % protected"}


# ---- the command ----

def call(*args):
    try: cli.bench([str(a) for a in args])
    except SystemExit as stop: return stop.code or 0
    return 0


def refused(capsys, *args, says=""):
    "Exit code 2 and one sentence."
    capsys.readouterr()
    assert call(*args) == 2
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 1 and err.startswith("dh_bench") and not out
    assert says in err, err


@pytest.mark.parametrize("word", cli.BENCH)
def test_every_word_has_examples(word, capsys):
    assert call(word, "--help") == 0
    assert f"examples:\n  dh_bench {word}" in capsys.readouterr().out


@pytest.mark.parametrize("args, says", [
    ([], "COMMAND"), (["walk"], "walk"), (["run", "--methods", "magic"], "No method 'magic'"),
    (["run", "--methods", ""], "No method"), (["run", "--countermeasures", "x"], "'x'"),
    (["run", "--victim", "x"], "No victim"), (["run", "--seeds", "0"], "seeds is 0"),
    (["run", "--ratio", "a"], "--ratio"), (["run", "--ratio", "0"], "share"),
    (["run", "--ratio", "nan"], "share"), (["run", "--dataset", "mnist"], "mnist"),
    (["run", "--scale", "huge"], "huge"), (["run", "--workers", "-1"], "workers is -1"),
    (["run", "--countermeasures", "jpeg(quality=0)"], "out of range, 1 to 95"),
    (["run", "--countermeasures", "jpeg(quality=ten)"], "plain values"),
    (["run", "--countermeasures", "jpeg(quality='x')"], "not a whole number"),
    (["run", "--countermeasures", "jpeg(speed=1)"], "its parameters are: quality"),
    (["run", "--countermeasures", "__import__('os').getcwd()"], "no countermeasure"),
    (["run", "--plugin", "file"], "SyntaxError"), (["run", "--plugin", "none.py"], "none.py"),
    (["run", "--dataset", "cifar10", "--scale", "tiny"], "does not go with"),
    (["run", "--methods", "files:nowhere"], "not a folder"),
    (["run", "--methods", "files:"], "No method"),
    (["status", "--methods", "magic"], "No method"), (["table"], "no such rows"),
    (["run", "--scale", "tiny", "--results", "file"], "file"),
    (["table", "--results", "file"], "file")])
def test_what_the_bench_refuses(args, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    refused(capsys, *args, says=says)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_from_plan_to_table(short, tmp_path, capsys, monkeypatch):
    in_a_thread(monkeypatch)
    rows, out = tmp_path / "rows", tmp_path / "out"
    plan = ["--scale", "tiny", "--methods", "clean,class DCT", "--countermeasures",
            "none,grayscale", "--results", rows]
    said = lambda *args: (call(*args), capsys.readouterr().out)
    assert "4 of 4 cells are missing; how long" in said("status", *plan)[1]
    told = said("run", *plan)[1]
    assert re.fullmatch(rf"Judged 4 cells in \d\.\d minutes; 4 of 4 are in {rows}\.\n", told)
    assert read(rows, "measures").unit.tolist() == ["min"]
    assert "0 of 4 cells are missing." in said("status", *plan)[1]
    code, text = said("table", "--results", rows, "--out", out)
    assert code == 0 and "| class DCT | 1 |" in text and "worst recovery" in text
    assert sorted(p.name for p in out.iterdir()) == ["table.csv", "table.md", "table.png"]
    assert (out / "table.md").read_text().strip() == text.strip()
    assert {p.name for p in rows.iterdir()} == {"cells", "cells.jsonl", "measures.jsonl"}
    more = said("status", *plan, "--seeds", "2", "--workers", "2")[1]
    assert more.startswith("4 of 8 cells are missing; with 2 at work")
