"""Switches of the inference: the same results, faster."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from b2inst.models.backbone import MobileNetV2, ResNet
from b2inst.models.basis import BasisHead
from b2inst.models.fpn import FPN
from b2inst.models.inference import Switches, fold_batch_norm
from models.build import images, segmenter

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
BACKBONES = {
    "resnet18": lambda norm: ResNet(18, norm=norm, freeze_at=0, weights=None),
    "resnet50": lambda norm: ResNet(50, norm=norm, freeze_at=0, weights=None),
    "mobilenet_v2": lambda norm: MobileNetV2(norm=norm, freeze_at=0, weights=None),
}


def trained(backbone: str = "resnet18", norm: str = "bn", **parts):
    """A segmenter whose batch norms do something, and that finds something."""
    model = segmenter(mode="iou_boundary", backbone=BACKBONES[backbone](norm), **parts).eval()
    for layer in model.modules():
        if isinstance(layer, NORMS):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(std=0.1)
    nn.init.normal_(model.detector.cls_logits.weight, std=0.3)
    nn.init.constant_(model.detector.box_pred.bias, 2.0)
    return model


def found_by(model):
    batch = images(2, 64, 96)
    with torch.inference_mode():
        outputs = model(batch)
        return outputs, model.find(outputs, batch)


def close(found, wanted):
    """Within 1e-4 of the largest value: random networks have outputs of any size."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def norms_of(model):
    return [layer for layer in model.modules() if isinstance(layer, NORMS)]


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_defaults_find_the_same(backbone: str, norm: str) -> None:
    model = trained(backbone, norm, basis=partial(BasisHead, channels=16, num_convs=1, norm=norm))
    before = copy.deepcopy(model.state_dict())
    outputs, plain = found_by(model)
    fast = Switches().prepare(model)
    fast_outputs, found = found_by(fast)
    assert norms_of(model) and not norms_of(fast)
    weights = [layer.weight for layer in fast.backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert len(plain.scores) > 4 and plain.places.scores.min() > 0.05
    close(found.places.scores, plain.places.scores)
    close(fast_outputs.bases, outputs.bases)
    for name in ("boxes", "masks", "scores"):
        close(getattr(found, name), getattr(plain, name))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_norm_of_the_pyramid_is_folded_too() -> None:
    model = trained(fpn=partial(FPN, channels=64, norm="bn"))
    outputs, _ = found_by(model)
    folded = copy.deepcopy(model)
    fold_batch_norm(folded)
    assert not norms_of(folded)
    close(found_by(folded)[0].bases, outputs.bases)


def test_switched_off_nothing_changes() -> None:
    model = trained()
    same = Switches(fold_batch_norm=False, channels_last=False).prepare(model)
    assert len(norms_of(same)) == len(norms_of(model))
    assert torch.equal(found_by(same)[1].scores, found_by(model)[1].scores)


def test_half_precision_is_close_and_an_unknown_one_refused() -> None:
    torch.manual_seed(0)
    model, switches = trained(), Switches(precision="bf16")
    with switches.autocast(torch.device("cpu")):
        outputs, _ = found_by(switches.prepare(model))
    assert outputs.bases.dtype == torch.bfloat16
    half, whole = outputs.bases.float(), found_by(model)[0].bases
    # 8 bits: the small values are differences of large ones, so that their error is a share of the largest value.
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.03 * float(whole.abs().max()))
    assert 0 < (half - whole).abs().mean() < 0.02 * whole.abs().mean()
    with pytest.raises(ValueError, match="precision=16: give one of 32, bf16"):
        Switches(precision="16")
