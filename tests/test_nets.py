"Every victim of the registry, at the two sizes victims see."
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy

from dh_nb.data import BadInput
from dh_nb.nets import NETS, net

KNOWN = {"quick", "fine", "narrow", "resnet18", "resnet50", "vgg16", "densenet121",
         "mobilenet_v2", "vit_small"}


def test_the_registry_is_complete():
    assert set(NETS) == KNOWN


@pytest.mark.parametrize("name", list(NETS))
def test_a_network_takes_both_sizes_and_learns_everywhere(name):
    torch.manual_seed(0)
    model = net(name, 7).train()
    for size in (64, 32):
        model.zero_grad()
        scores = model(torch.rand(2, 3, size, size))
        assert scores.shape == (2, 7)
        cross_entropy(scores, torch.tensor([0, 1])).backward()
        for at, p in model.named_parameters():
            if not p.requires_grad: assert name in ("quick", "fine") and at.startswith("1."); continue
            assert p.grad is not None and p.grad.isfinite().all(), at
            if p.dim() > 1: assert p.grad.abs().max() > 0, at


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("quick", "fine", "narrow")])
def test_one_width_only(name):
    with pytest.raises(BadInput, match="one width"): net(name, 10, 32)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BadInput, match="resnet19.*mobilenet_v2"): net("resnet19")


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BadInput, match=r"pip install \"dh_nb\[features\]\""):
        net("vit_small")


def test_the_old_constructor_draws_the_same_weights():
    "ResNet-18 of earlier rows: same seed, same numbers."
    from torchvision.models import resnet18
    torch.manual_seed(3)
    body = resnet18(num_classes=10)
    first = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    torch.manual_seed(3)
    ours = net("resnet18")[1]
    assert torch.equal(ours.conv1.weight, first.weight)
    assert torch.equal(ours.layer4[1].conv2.weight, body.layer4[1].conv2.weight)
