"The suite of eighteen: one protocol for all, and each of them what it says."
from dataclasses import replace

import pytest
import torch

from dh_nb.countermeasures import base, purify
from dh_nb.countermeasures.adversarial import pgd
from dh_nb.countermeasures.suite import (SUITE, countermeasure, filter_of, parse_call,
                                         split_list, suite)
from dh_nb.data import BadInput, load_dataset, to_float
from dh_nb.nets import net
from dh_nb.victim import VictimConfig, train_victim

CHEAP = {"dvae": dict(passes=(1, 1)), "diffusion_purify": dict(steps=2),
         "ueraser_max": dict(draws=2), "adversarial_training": dict(steps=1)}


@pytest.fixture(scope="module")
def data():
    "Clothes in colours, so that even grey changes something."
    grey = load_dataset(per_class=6)
    dye = torch.rand(len(grey), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return replace(grey, x=(grey.x * dye).byte())


def cheap(name): return countermeasure(name, **CHEAP.get(name, {}))


# ---- one protocol ----

@pytest.mark.parametrize("name", suite())
def test_one_protocol(name, data):
    counter, again = cheap(name), cheap(name)
    assert isinstance(counter, base.Countermeasure) and counter.kind in ("augment", "preprocess", "train", "purify")
    assert counter.setting and counter.source
    before = data.x.clone()
    files = counter.files(data.x, data.y, 3)
    assert files.dtype == torch.uint8 and files.shape == data.x.shape
    assert torch.equal(data.x, before)  # nobody's files are changed in place
    assert torch.equal(files, again.files(data.x, data.y, 3))
    assert torch.equal(files, data.x) == (counter.kind in ("augment", "train"))
    seen = [f.batch(to_float(files[:16]), data.y[:16], torch.Generator().manual_seed(5), 10)
            for f in (counter, again)]
    assert torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])
    assert seen[0][0].shape == (16, 3, 32, 32)
    assert 0 <= seen[0][0].min() and seen[0][0].max() <= 1


@pytest.mark.parametrize("name", suite())
def test_a_victim_trains_under_it(name, data):
    score = train_victim(data.x, data.y, data.x, data.y, VictimConfig(epochs=1, batch=30),
                         countermeasure=cheap(name))
    assert 0 <= score.accuracy <= 100


def test_names():
    assert len(SUITE) == 18 and "none" not in SUITE
    assert type(countermeasure("none")) is base.Countermeasure
    with pytest.raises(BadInput, match="there are none, cutout"): countermeasure("magic")


# ---- parameters ----

@pytest.mark.parametrize("name", suite())
def test_parameters_are_the_setting_and_the_spelling(name):
    counter = countermeasure(name)
    assert str(counter) == name and counter == countermeasure(f"{name}({counter.setting})")
    first = counter.setting.split(", ")[0].partition("=")[0]
    low, high = counter.ranges.get(first, (None, None))
    if low is None: return
    edge = high if high != getattr(counter, first) else low
    other = countermeasure(name, **{first: type(getattr(counter, first) or 1)(edge)})
    assert str(other).startswith(f"{name}({first}=") and other != counter
    assert countermeasure(str(other)) == other
    for out in (low - 1, high + 1):
        with pytest.raises(BadInput, match="out of range"): countermeasure(name, **{first: out})
    with pytest.raises(BadInput, match="is not"): countermeasure(name, **{first: "much"})


@pytest.mark.parametrize("text", [
    "jpeg(", "jpeg(quality)", "jpeg(quality=os)", "jpeg(**{})", "os.system('x')", "1", "", "a b",
    "(lambda: 0)()", "jpeg(quality=10)(quality=10)", "jpeg(quality=[i for i in range(9)])",
    "jpeg(quality=__import__('os').getpid())", "(" * 500])
def test_a_spelling_is_read_and_never_evaluated(text):
    with pytest.raises(BadInput, match="plain"): parse_call(text)


def test_a_list_is_cut_outside_of_brackets():
    text = "none, jpeg(quality=50),dvae(passes=(5, 12), low=1)"
    assert split_list(text) == ["none", "jpeg(quality=50)", "dvae(passes=(5, 12), low=1)"]


def test_a_function_becomes_a_filter_with_its_parameters(data):
    def push(x, by: float = 0.1, times: int = 1): return (x + by * times).clamp(0, 1)
    Push = filter_of(push, "push")
    assert str(Push()) == "push" and Push(times=2).setting == "by=0.1, times=2"
    assert torch.equal(Push(1.0).files(data.x, data.y), torch.full_like(data.x, 255))
    with pytest.raises(BadInput, match="not a whole number"): Push(times=0.5)
    for wrong in (lambda x, by: x, lambda: 0):
        with pytest.raises(BadInput, match="default"): filter_of(wrong, "wrong")


@pytest.mark.parametrize("size", [(30, 41), (64, 64)])
@pytest.mark.parametrize("name", [n for n in suite() if SUITE[n].kind in ("preprocess", "purify")])
def test_any_size(name, size):
    x8 = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8)
    assert cheap(name).files(x8, torch.arange(8) % 2).shape == x8.shape


# ---- adversarial examples ----

def test_pgd_is_that_of_torchattacks(data):
    attacks = pytest.importorskip("torchattacks")
    model, x = net("narrow").eval(), to_float(data.x)
    torch.manual_seed(1)
    mine = pgd(model, x, data.y, steps=4)
    torch.manual_seed(1)
    theirs = attacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=4)(x, data.y)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


# ---- purifiers ----

def test_nothing_is_left_along_the_projected_directions(data):
    x = to_float(data.x) - 0.5
    w = purify.fit_linear(x, data.y)
    left = purify.project_out(x, w).flatten(1).double() @ torch.linalg.qr(w.double())[0]
    assert left.abs().max() < 1e-5


def test_a_linear_fit_separates_what_a_line_can():
    y = torch.arange(60) % 3
    x = torch.rand(60, 3, 4, 4) * 0.1
    x[torch.arange(60), y, 0, 0] += 0.5
    w = purify.fit_linear(x, y)
    assert torch.equal((x.flatten(1) @ w).argmax(1), y)


def test_any_pipeline_of_pixels(tmp_path, data):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=32, block_out_channels=(8, 16), norm_num_groups=8,
                       down_block_types=("DownBlock2D",) * 2, layers_per_block=1,
                       up_block_types=("UpBlock2D",) * 2, add_attention=False)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "mine")
    counter = countermeasure("diffusion_purify", pipeline=str(tmp_path / "mine"), steps=2)
    assert counter.files(data.x[:4], data.y[:4]).shape == (4, 3, 32, 32)
    ours = countermeasure("diffusion_purify", steps=2).files(data.x[:4], data.y[:4])
    assert not torch.equal(ours, counter.files(data.x[:4], data.y[:4]))


@pytest.mark.parametrize("what", ["nowhere", "empty", "latent"])
def test_no_pipeline(what, tmp_path, data):
    place = tmp_path / what
    if what == "empty": place.mkdir()
    if what == "latent":
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        unet = UNet2DModel(sample_size=8, in_channels=4, out_channels=4,
                           block_out_channels=(8,), down_block_types=("DownBlock2D",),
                           up_block_types=("UpBlock2D",), norm_num_groups=8)
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(place)
    with pytest.raises(BadInput) as e:
        countermeasure("diffusion_purify", pipeline=str(place)).files(data.x, data.y)
    assert "\n" not in str(e.value)


def test_the_shipped_denoiser_takes_noise_away(data):
    x = to_float(load_dataset(split="test").x[:20])
    noisy = (x + 0.08 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    clean = purify.denoise(purify.load_denoiser(), noisy.clamp(0, 1), 60, 4).clamp(0, 1)
    error = lambda y: (y - x).square().mean().item()
    assert error(clean) < error(noisy)
