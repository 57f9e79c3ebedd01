"Properties of the squeezes and of the quality measures, on any size, dtype and content."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dh_nb.data import BadInput, to_float, to_uint8
from dh_nb.quality import (band_energy, l2, linf, perceptual, psnr, quality_table, ssim,
                           to_budget)
from dh_nb.squeeze import BlockDCT, Haar, Squeeze, crop_to, pad_to, squeeze, zigzag

NAMES = "haar1", "haar2", "haar3", "dct8"
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
fast = settings(max_examples=40, deadline=None, derandomize=True)
sides, seeds = st.integers(1, 41), st.integers(0, 2**31)


def rand(seed, *shape, dtype=torch.float32):
    "Uniform numbers of a seed, without touching the global one."
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact_psnr(a8, b8):
    "PSNR of two uint8 images from whole numbers only."
    error = ((a8.numpy().astype(np.int64) - b8.numpy().astype(np.int64)) ** 2).sum()
    return math.inf if error == 0 else 10 * math.log10(255**2 * a8.numel() / error)


# squeeze

@fast
@given(st.sampled_from(NAMES), st.sampled_from(list(TOLERANCE)), st.integers(0, 3),
       st.integers(1, 4), sides, sides, seeds)
def test_round_trip_and_energy_of_any_size(name, dtype, b, c, h, w, seed):
    s, x = squeeze(name), rand(seed, b, c, h, w, dtype=dtype)
    padded = pad_to(x, s.factor)
    z = s(padded)
    f, (hh, ww) = s.factor, padded.shape[-2:]
    assert z.dtype == dtype and z.shape == (b, c * f * f, hh // f, ww // f)
    assert torch.all((crop_to(s(z, rev=True), (h, w)) - x).abs() < TOLERANCE[dtype])
    torch.testing.assert_close(z.square().sum(), padded.square().sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", ["black", "white", "binary", "bright"])
def test_round_trip_of_hard_pictures(name, fill):
    x = dict(black=torch.zeros(1, 3, 256, 256), white=torch.ones(1, 3, 256, 256),
             binary=rand(0, 1, 3, 256, 256).round(), bright=0.95 + rand(1, 1, 3, 256, 256) / 20)[fill]
    s = squeeze(name)
    assert (s(s(x), rev=True) - x).abs().max() < 1e-6
    z = 8 * rand(2, 2, 3 * s.factor**2, 4, 4) - 4
    assert (s(s(z, rev=True)) - z).abs().max() < 4e-6  # bands reach further than 1


@pytest.mark.parametrize("name", NAMES)
def test_inner_products_are_kept_and_the_adjoint_is_the_inverse(name):
    s, f = squeeze(name), squeeze(name).factor
    x, y = rand(0, 2, 1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close((s(x) * s(y)).sum(), (x * y).sum())
    x.requires_grad_()
    g = rand(1, *s(x).shape, dtype=torch.float64)
    grad, = torch.autograd.grad(s(x), x, g)
    torch.testing.assert_close(grad, s(g, rev=True))
    assert f == {"haar1": 2, "haar2": 4, "haar3": 8, "dct8": 8}[name]


def test_haar_equals_the_hand_written_recursion():
    def step(x):
        a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
        return (a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2
    x = rand(0, 1, 1, 16, 16, dtype=torch.float64)
    ll1, *fine = step(x)
    ll2, *coarse = step(ll1)
    z = Haar(2)(x)
    torch.testing.assert_close(z[:, :4], torch.cat([ll2, *coarse], 1))
    for i, band in enumerate(fine):  # four places of each fine detail, row by row
        places = torch.nn.functional.pixel_unshuffle(band, 2)
        torch.testing.assert_close(z[:, 4 + 4 * i: 8 + 4 * i], places)


@fast
@given(st.integers(1, 9), seeds)
def test_dct_equals_scipy(n, seed):
    x = rand(seed, 1, 1, n, n, dtype=torch.float64)
    theirs = dctn(x[0, 0].numpy(), norm="ortho")
    ours = BlockDCT(n)(x).flatten()
    np.testing.assert_allclose(ours.numpy(), [theirs[u, v] for u, v in zigzag(n)], atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_channels_are_frequency_major_and_colours_do_not_mix(name):
    s, x = squeeze(name), rand(0, 2, 3, 16, 24)
    z = s(x)
    for c in range(3):
        torch.testing.assert_close(z[:, c::3], s(x[:, c:c + 1]))
    mean = torch.nn.functional.avg_pool2d(x, s.factor)
    torch.testing.assert_close(z[:, :3], s.factor * mean)  # band 0 is the thumbnail
    assert torch.all(s.bank[1:].sum((1, 2)).abs() < 1e-12)  # all others ignore brightness


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_type_and_autocast_stays_out(dtype):
    x = rand(0, 1, 3, 16, 16)
    assert squeeze("dct8")(x.to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        s = squeeze("dct8")
        assert (s(s(x), rev=True) - x).abs().max() < 1e-6


def test_casting_a_module_does_not_wear_its_patterns_down():
    s = squeeze("haar3").to(torch.bfloat16).double()
    x = rand(0, 1, 3, 16, 16, dtype=torch.float64)
    assert (s(s(x), rev=True) - x).abs().max() < 1e-12 and not s.state_dict()


@fast
@given(sides, sides, st.integers(1, 16), st.sampled_from([torch.uint8, torch.float64]))
def test_padding_repeats_the_edge_and_cropping_undoes_it(h, w, multiple, dtype):
    x = (255 * rand(h * 50 + w, 2, 3, h, w)).to(dtype)
    p = pad_to(x, multiple)
    assert p.dtype == dtype and all(n % multiple == 0 for n in p.shape[-2:])
    assert all(0 <= m - n < multiple for m, n in zip(p.shape[-2:], (h, w)))
    assert torch.equal(crop_to(p, (h, w)), x)
    assert torch.equal(p[..., h - 1:, :w], x[..., -1:, :].expand_as(p[..., h - 1:, :w]))
    assert torch.equal(p[..., w - 1:], p[..., w - 1:w].expand_as(p[..., w - 1:]))


@pytest.mark.parametrize("act, words", [
    (lambda: squeeze("haar9"), "haar9"), (lambda: squeeze(""), "choose"),
    (lambda: Haar()(torch.rand(1, 3, 5, 4)), "pad_to"),
    (lambda: Haar()(torch.rand(1, 6, 4, 4), rev=True), "factor 2"),
    (lambda: Haar()(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), "to_float"),
    (lambda: Squeeze(torch.ones(4, 2, 2)), "orthonormal"),
    (lambda: Squeeze(torch.eye(4)[:3].view(3, 2, 2)), "orthonormal"),
    (lambda: psnr(torch.rand(2, 3, 8, 8), torch.rand(1, 3, 8, 8)), "one shape"),
    (lambda: linf(*torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)), "uint8"),
    (lambda: ssim(*torch.rand(2, 1, 3, 10, 40)), "11 x 11"),
    (lambda: to_budget(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)), "uint8"),
    (lambda: to_budget(torch.zeros(2, 3, 8, 8).byte(), torch.rand(1, 3, 8, 8)), "one shape"),
    (lambda: to_budget(torch.zeros(1, 3, 8, 8).byte(), torch.full((1, 3, 8, 8), math.nan)), "finite"),
    (lambda: quality_table(*torch.zeros(2, 0, 3, 32, 32).byte()), "no images"),
])
def test_what_cannot_be_done_is_said_in_one_sentence(act, words):
    with pytest.raises(BadInput, match=words) as e:
        act()
    assert "\n" not in str(e.value) and str(e.value).endswith(".")


# quality

@fast
@given(st.integers(11, 48), st.integers(11, 48), st.sampled_from([1, 3]), st.floats(0.001, 1), seeds)
def test_measures_equal_scikit_image(h, w, c, strength, seed):
    x = rand(seed, 2, c, h, w)
    y = (x + strength * (rand(seed + 1, 2, c, h, w) - 0.5)).clamp(0, 1)
    for i, (a, b) in enumerate(zip(x.numpy(), y.numpy())):
        theirs = structural_similarity(a, b, data_range=1, channel_axis=0, sigma=1.5,
                                       gaussian_weights=True, use_sample_covariance=False)
        assert abs(ssim(x, y)[i].item() - theirs) < 1e-4
        assert abs(psnr(x, y)[i].item() - peak_signal_noise_ratio(a, b, data_range=1)) < 1e-4
        assert abs(l2(x, y)[i].item() - np.linalg.norm((a - b).ravel())) < 1e-4
        assert abs(linf(x, y)[i].item() - 255 * np.abs(a - b).max()) < 1e-3


def test_equal_images_are_perfect():
    x = rand(0, 2, 3, 16, 16)
    assert torch.all(psnr(x, x).isposinf()) and not l2(x, x).any() and not linf(x, x).any()
    torch.testing.assert_close(ssim(x, x), torch.ones(2))
    assert band_energy(x - x).sum() == 0
    assert not perceptual(x, x, lambda v: [v, v[:, :, ::2]]).any()


def make_cover(kind, seed, n, h, w):
    "Covers from the ordinary to the worst, uint8 (n, 3, h, w)."
    x = rand(seed, n, 3, h, w)
    return to_uint8(dict(random=x, black=0 * x, white=0 * x + 1, binary=x.round(),
                         dark=x / 50, photo=(x[..., :1, :1] + x / 8))[kind])


def make_wish(kind, cover8, seed):
    "A picture somebody would like to publish in place of the cover."
    x = to_float(cover8)
    noise = rand(seed + 1, *x.shape) - 0.5
    size = 10 ** (4 * rand(seed + 2, len(x), 1, 1, 1) - 3)
    return dict(any=x + size * noise, huge=x + 1e4 * noise, tiny=x + 2e-4 * noise,
                up=x + noise.abs(), down=x - noise.abs(), zero=x, dust=x + 1e-6 * noise,
                few=x + noise * (noise > 0.49), flat=x + size, inverse=1 - x)[kind]


KINDS = "any", "huge", "tiny", "up", "down", "zero", "dust", "few", "flat", "inverse"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["random", "black", "white", "binary", "dark", "photo"]),
       st.sampled_from(KINDS), st.sampled_from([30.1, 20, 37.5, 55]), st.booleans(),
       st.integers(1, 5), st.integers(1, 33), st.integers(1, 33), seeds)
def test_every_file_is_within_its_budget(cover, wish, db, full, n, h, w, seed):
    c8 = make_cover(cover, seed, n, h, w)
    out = to_budget(c8, make_wish(wish, c8, seed), db, full)
    assert out.dtype == torch.uint8 and out.shape == c8.shape
    assert all(exact_psnr(a, b) >= db for a, b in zip(c8, out))
    assert torch.all(psnr(to_float(c8), to_float(out)) >= db)  # and as our own tables say it
    if wish in ("zero", "dust"):
        assert torch.equal(out, c8)


@pytest.mark.parametrize("cover", ["random", "black", "white", "binary", "photo"])
@pytest.mark.parametrize("wish", ["any", "huge", "tiny", "up", "down"])
def test_and_hardly_above_it_where_that_is_possible(cover, wish):
    c8 = make_cover(cover, 3, 20, 32, 32)
    out = to_budget(c8, make_wish(wish, c8, 4))
    db = torch.tensor([exact_psnr(a, b) for a, b in zip(c8, out)])
    if (cover, wish) in {("white", "up"), ("black", "down")}:
        assert torch.equal(out, c8)  # nowhere to go
    else:
        assert db.max() < 30.12


def test_shrinking_only_leaves_quiet_images_alone():
    c8 = make_cover("random", 0, 30, 16, 16)
    wish = make_wish("any", c8, 0)
    out, free = to_budget(c8, wish, full=False), to_uint8(wish)
    quiet = torch.tensor([exact_psnr(a, b) >= 30.1 for a, b in zip(c8, free)])
    assert quiet.any() and not quiet.all()
    assert torch.all((out[quiet].int() - free[quiet].int()).abs() <= 1)  # x*255 may tie
    assert all(exact_psnr(a, b) < 30.12 for a, b in zip(c8[~quiet], out[~quiet]))


def test_an_image_does_not_depend_on_its_neighbours_and_uint8_wishes_are_welcome():
    c8 = make_cover("photo", 0, 200, 32, 32)  # several chunks
    wish = make_wish("any", c8, 0)
    out = to_budget(c8, wish)
    torch.testing.assert_close(out[150:160], to_budget(c8[150:160], wish[150:160]), rtol=0, atol=1)
    assert torch.equal(out, to_budget(c8, wish))
    again = to_budget(c8, out, full=False)
    assert torch.equal(again, out)  # already inside: bytes stay as they are
    assert to_budget(c8[:0], wish[:0]).shape == (0, 3, 32, 32)


def test_the_residual_keeps_its_direction():
    c8 = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    r = rand(0, *c8.shape) - 0.5
    out = to_float(to_budget(c8, to_float(c8) + r)) - to_float(c8)
    assert torch.all(torch.cosine_similarity(out.flatten(1), r.flatten(1)) > 0.999)


@fast
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 8]), seeds)
def test_band_shares_sum_to_one(h, w, n, seed):
    share = band_energy(rand(seed, 2, 3, h, w) - 0.5, n)
    assert share.shape == (2 * n - 1,) and torch.all(share >= 0)
    assert abs(share.sum().item() - 1) < 1e-9


def test_one_cosine_lies_on_its_diagonal():
    for k, (u, v) in enumerate(zigzag(8)):
        share = band_energy(BlockDCT().bank[k].expand(1, 3, 8, 8))
        assert abs(share[u + v].item() - 1) < 1e-12


def test_the_table_equals_the_single_measures_and_counts_the_unchanged():
    c8 = make_cover("random", 0, 300, 32, 32)  # several chunks
    s8 = to_budget(c8, make_wish("any", c8, 0))
    s8[7] = c8[7]
    x, y, table = to_float(c8), to_float(s8), quality_table(c8, s8)
    rest = torch.arange(300) != 7
    want = dict(psnr_min=psnr(x, y).min(), psnr_mean=psnr(x, y)[rest].mean(),
                ssim_mean=ssim(x, y).mean(), l2_mean=l2(x, y).mean(), linf_mean=linf(x, y).mean(),
                linf_max=linf(x, y).max(), low_share=band_energy(y - x)[:4].sum(), unchanged=1 / 300)
    assert set(table) == set(want) and all(type(v) is float for v in table.values())
    for name, value in want.items():
        assert table[name] == pytest.approx(float(value), rel=1e-4), name
    same = quality_table(c8[:3], c8[:3])
    assert same["psnr_min"] == same["psnr_mean"] == math.inf and same["unchanged"] == 1


def test_perceptual_uses_layers_and_weights():
    x, y = rand(0, 2, 2, 3, 8, 8)
    layers = [torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(3, 4, 1)]
    weights = [rand(1, 5), rand(2, 4)]
    got = perceptual(x, y, lambda v: [f(v) for f in layers], weights)
    want = 0
    for f, w in zip(layers, weights):
        p, q = f(x), f(y)
        p, q = p / p.norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True)
        want = want + torch.einsum("c,bchw->b", w, (p - q) ** 2) / (p.shape[2] * p.shape[3])
    torch.testing.assert_close(got, want)
