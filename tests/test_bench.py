"The bench: whoever is judged, whatever kills it, whoever shares the work."
import json, os, re, shutil, signal, subprocess, sys, time
from functools import partial
from importlib.util import find_spec
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.models import alexnet
from torchvision.transforms import Normalize

from dh_nb import cli, evaluate as e, scorecard as s
from dh_nb.countermeasures.suite import FLOORS, countermeasure, suite
from dh_nb.data import BadInput, load_dataset, read_image
from dh_nb.distort import gaussian_blur, grayscale, jpeg
from dh_nb.lfc import damaged
from dh_nb.nets import NETS
from dh_nb.protect import protect, save_png
from dh_nb.quality import perceptual, quality_table
from dh_nb.results import Row, key, read

import house


@pytest.fixture
def short(monkeypatch):
    "Victims of two steps."
    monkeypatch.setattr(e, "schedule", lambda n: dict(epochs=1, batch=100))


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
    stored = [r for r in read(house.ROOT / "results")
              if r["victim"] in NETS and r["method"] in e.METHODS
              and r["subset"] in ("all", "first 1000 a class")]
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
    row, = e.judge([e.cell("embedded", "class DCT", name, 0)], tmp_path)
    assert row.extra.get("setting", "") == getattr(countermeasure(name), "setting", "")
    assert row.psnr_min >= 30.1 and 0 < row.extra["low_share"] <= 1 and row.seconds > 0
    assert read(tmp_path)[0]["extra"].keys() >= {"linf_max", "unchanged", "feature_distance", "lpips"}


def weights_of_lpips():
    "The weights of LPIPS that its package brings along, one for each of five layers."
    where = Path(find_spec("lpips").origin).parent / "weights/v0.1/alex.pth"
    return [w.flatten() for w in torch.load(where, "cpu", weights_only=True).values()]


def test_lpips_is_its_package_s_where_weights_lie_and_a_reason_where_not(
        data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    x8 = data.x[:6]
    y8 = gaussian_blur(x8 / 255).mul(255).round().byte()
    assert e.lpips(x8, y8) == "alexnet-owt-7be5be79.pth is not at hand"
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
    assert ours > 1e-4 and e.lpips(x8, y8) == pytest.approx(ours, rel=1e-4)
    assert e.lpips(x8, x8) == 0
    monkeypatch.setattr(e, "find_spec", lambda name: None)
    assert e.lpips(x8, y8) == "the package lpips is not installed"


def test_a_countermeasure_may_ask_for_epochs_and_an_unfinished_training_is_kept(
        short, tmp_path, monkeypatch):
    seen = []

    def trainer(x8, y, x_test, y_test, name, keep=None, seed=0, adversary=None, **how):
        seen.append((how, keep))
        return real(x8, y, x_test, y_test, name, seed=seed, adversary=adversary, **how)
    real, foe = e.train_victim, countermeasure("cutout")
    foe.longer = 3
    monkeypatch.setattr(e, "train_victim", trainer)
    monkeypatch.setattr(e, "countermeasure", lambda name: foe)
    e.judge([e.cell("embedded", "clean", "cutout", 0)], tmp_path)
    (how, keep), = seen
    assert how["epochs"] == 3 and keep.parent == tmp_path / "cells"
    assert read(tmp_path)[0]["extra"]["epochs"] == 3


def test_files_are_treated_at_their_published_size(short, monkeypatch):
    "Filters see the published size, the victim 64 pixels."
    x8 = torch.randint(0, 256, (20, 3, 80, 80), dtype=torch.uint8)
    y, test = torch.arange(20) % 2, torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    sizes = []
    foe = countermeasure("jpeg")
    real = foe.files
    foe.files = lambda x, *a: (sizes.append(x.shape[-1]), real(x, *a))[1]
    monkeypatch.setattr(e, "countermeasure", lambda name: foe)
    files = e.Published(x8, y, test, torch.arange(4) % 2, {})
    e.trained(e.cell("imagenette", "clean", "jpeg", 0), files)
    assert sizes == [80]


# ---- somebody's folder ----

def test_a_folder_is_judged_as_the_method_that_made_it(theirs, data, tmp_path):
    given = e.from_folder(theirs, data)
    for i in range(0, 200, 7):
        name = f"{data.classes[int(data.y[i])]}/{data.names[i]}.png"
        assert torch.equal(given[i], read_image(theirs / "train" / name))
    as_it = e.publish_as("robust", e.open_task("embedded", 20, 40), 0)
    apart = (given.float() - as_it.float()).abs()  # batches of other sizes round otherwise
    assert apart.max() <= 2 and apart.mean() < 0.01
    plain = tmp_path / "plain"  # class folders alone, without a manifest
    shutil.copytree(theirs / "train", plain)
    assert torch.equal(e.from_folder(plain, data), given)
    c = e.cell("embedded", f"files:{theirs}", "none", 0)
    files = e.published(c, *e.opened(c))
    q = quality_table(data.x, given)
    assert (files.card["psnr_min"], files.card["ssim"]) == (q["psnr_min"], q["ssim_mean"])
    assert str(tmp_path) not in str(key(c)) and c["method"] == "files:out"


def test_a_row_tells_no_folder(theirs, short, tmp_path):
    c = e.cell("embedded", f"files:{theirs}", "none", 0)
    e.judge([c], tmp_path)
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
    files = e.published(c, *e.opened(c))
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
from dh_nb import evaluate as e
e.schedule = lambda n: dict(epochs=2, batch=50)
PLAN = e.plan_cells("embedded", ["clean", "class DCT"], ["none", "jpeg", "cutout"], 2)
if __name__ == "__main__":
    print(sum(len(e.judge(g, "rows")) for g in e.shares(PLAN, 1)))
"""


def started(folder):
    return subprocess.Popen([sys.executable, "bench.py"], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_kill_9_loses_no_row_and_two_processes_do_no_cell_twice(tmp_path):
    (tmp_path / "bench.py").write_text(SHORT)
    rows, kid, start = tmp_path / "rows", started(tmp_path), time.time()
    while not read(rows) and time.time() - start < 300: time.sleep(0.02)
    os.kill(kid.pid, signal.SIGKILL)
    kid.communicate()
    before = read(rows)
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
from dh_nb.evaluate import crew
if __name__ == "__main__":
    pool, _, _ = crew(1, None)
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
    monkeypatch.setitem(e.METHODS, "unlucky", fails)
    monkeypatch.setattr(e, "crew", lambda n, ray: (ThreadPoolExecutor(1), e.Here(), 1))
    plan = e.plan_cells("embedded", ["unlucky", "clean", "class DCT"], ["none"])
    with pytest.raises(BadInput, match="No luck"): e.run(plan, tmp_path)
    assert [r["method"] for r in read(tmp_path)] == ["clean", "class DCT"]
    with pytest.raises(BadInput, match="No luck"): e.run(plan, tmp_path)
    monkeypatch.setitem(e.METHODS, "unlucky", e.METHODS["clean"])
    assert e.run(plan, tmp_path) == 1 and e.run(plan, tmp_path) == 0


def test_only_a_foreign_training_is_thrown_away(tmp_path, monkeypatch):
    c, keep = e.cell("embedded", "clean", "none", 0), tmp_path / "half.safetensors"
    files, said = e.published(c, *e.opened(c)), []

    def fails(kind, *args, keep, **how):
        said.append(keep.exists())
        raise kind("No.")
    for kind, tries in ((BadInput, [True]), (e.OtherTraining, [True, False])):
        monkeypatch.setattr(e, "train_victim", partial(fails, kind))
        keep.touch(), said.clear()
        with pytest.raises(BadInput, match="No"): e.trained(c, files, keep)
        assert said == tries
    assert not keep.exists()


def test_shares_keep_pictures_together_and_leave_nobody_idle():
    plan = e.plan_cells("embedded", ["clean", "dh"], ["none", *suite()], 2)
    for workers in (1, 2, 4, 7, 100):
        got = e.shares(plan, workers)
        assert sorted(map(str, sum(got, []))) == sorted(map(str, plan))
        assert len(got) >= min(workers, len(plan))
        assert all(len({(c["method"], c["seed"]) for c in g}) == 1 for g in got)


# ---- on a cluster ----

RAY = """
import ray, sys, time
from ray._private import services
from ray.cluster_utils import Cluster
from dh_nb import evaluate as e
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
plan = e.plan_cells("embedded", ["clean", f"files:{sys.argv[1]}"], ["none", "grayscale"])
done = e.run(plan, "rows", ray=cluster.address)
at = e.OnRay(cluster.address)
assert at.size == 2
try: at.get(at.send(e.mark, "nowhere"))
except e.BadInput as error:
    print("told:", error)
ray.shutdown(); cluster.shutdown()
print(done, len(read("rows")))
"""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "a:b", "127.0.0.1:99999", "auto"])
def test_a_cluster_that_is_not_there(address):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.raises(BadInput, match="No Ray cluster answers"): e.OnRay(address)


def test_without_ray_the_bench_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"dh_nb\[ray\]"): e.OnRay("auto")


def test_a_cluster_of_two_nodes_does_the_work(theirs, tmp_path):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    (tmp_path / "on_ray.py").write_text(RAY)
    kind = dict(os.environ, RAY_worker_niceness="0")  # else it yields to all other tests
    done = subprocess.run([sys.executable, "on_ray.py", theirs], cwd=tmp_path, env=kind,
                          text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.strip().splitlines()
    assert said[-1] == "4 4" and "told: nowhere is not a folder" in done.stdout
    rows = read(tmp_path / "rows")
    assert not list((tmp_path / "rows" / "cells").iterdir())
    assert {r["method"] for r in rows} == {"clean", "files:out"}


# ---- tables ----

def rows_of(**accuracy):
    "Rows of CIFAR-10 by hand: method -> accuracies after none, jpeg, grayscale."
    return [vars(Row(**e.cell("cifar10", m.replace("_", " "), a, seed), accuracy=v, seconds=30))
            for m, values in accuracy.items() for seed in range(2)
            for a, v in zip(("none", "jpeg", "grayscale"), values)]


def test_a_column_below_its_floor_does_not_count():
    high, low = (rows_of(clean=(80.0, j, 75.0), dh=(10.0, 60.0, 20.0)) for j in (70.0, 40.0))
    ends = [dict(zip(s.ENDS, (line[k] for k in s.ENDS)))
            for rows in (high, low) for line in s.score_lines(*s.groups(rows).values())][::2]
    assert ends[0] == {"mean": 40, "worst": 60, "worst recovery": 50 / 60}
    assert ends[1] == {"mean": 20, "worst": 20, "worst recovery": 10 / 65}
    text = s.card_text(*s.groups(low).values())
    assert "jpeg *" in text and "floor" in text


def test_a_line_with_a_hole_has_no_ends():
    rows = rows_of(clean=(80.0, 70.0, 75.0), dh=(10.0, 60.0, 20.0), class_DCT=(30.0, 28.0))
    lines = {line["method"]: line for line in s.score_lines(*s.groups(rows).values(), fmean)}
    assert lines["class DCT"]["worst"] is None is lines["class DCT"]["worst recovery"]
    assert list(lines) == ["dh", "class DCT", "clean"] and lines["dh"]["worst"] == 60
    alone = s.score_lines(*s.groups(rows_of(dh=(10.0, 60.0, 20.0))).values())[0]
    assert alone["worst"] == 60 and alone["worst recovery"] is None  # no clean victim


def test_presets_and_shares_are_lines_of_their_own():
    a, b = (dict(r, preset=p) for r, p in zip(rows_of(dh=(10.0,)), ("fast", "robust")))
    part = vars(Row(**e.cell("cifar10", "dh", "none", 0, ratio=0.2), accuracy=70))
    found, = s.groups([a, b, part]).values()
    assert {r["line"] for r in found} == {"dh (fast)", "dh (robust)",
                                          "dh (fast), 20 % protected"}


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
    (["run", "--victim", "x"], "No victim"), (["run", "--seeds", "0"], "--seeds"),
    (["run", "--ratio", "a"], "--ratio"), (["run", "--ratio", "0"], "share"),
    (["run", "--ratio", "nan"], "share"), (["run", "--dataset", "mnist"], "mnist"),
    (["run", "--scale", "huge"], "--scale"), (["run", "--workers", "-1"], "--workers"),
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
    monkeypatch.setattr(e, "crew", lambda n, ray: (ThreadPoolExecutor(1), e.Here(), 1))
    rows, out = tmp_path / "rows", tmp_path / "out"
    plan = ["--scale", "tiny", "--methods", "clean,class DCT", "--countermeasures",
            "none,grayscale", "--results", rows]
    said = lambda *args: (call(*args), capsys.readouterr().out)
    assert "4 of 4 cells are missing; how long" in said("status", *plan)[1]
    told = said("run", *plan)[1]
    assert re.fullmatch(rf"Judged 4 cells in \d\.\d minutes; 4 of 4 are in {rows}\.\n", told)
    assert [m["unit"] for m in read(rows, "measures")] == ["min"]
    assert "0 of 4 cells are missing." in said("status", *plan)[1]
    code, text = said("table", "--results", rows, "--out", out)
    assert code == 0 and "| class DCT | 1 |" in text and "worst recovery" in text
    assert sorted(p.name for p in out.iterdir()) == ["table.csv", "table.md", "table.png"]
    assert (out / "table.md").read_text().strip() == text.strip()
    assert {p.name for p in rows.iterdir()} == {"cells", "cells.jsonl", "measures.jsonl"}
    more = said("status", *plan, "--seeds", "2", "--workers", "2")[1]
    assert more.startswith("4 of 8 cells are missing; with 2 at work")
