import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from b2inst.models.backbone import MobileNetV2, ResNet

REMEDIES = ("weights=imagenet", r"weights=/path/to/file\.pth", "weights=null")


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda: ResNet(18, weights=None), [64, 128, 256, 512]),
        (lambda: ResNet(50, weights=None), [256, 512, 1024, 2048]),
        (lambda: ResNet(50, weights=None, preset="msra"), [256, 512, 1024, 2048]),
        (lambda: MobileNetV2(weights=None), [24, 32, 96, 320]),
    ],
)
def test_shapes(make, channels):
    backbone = make()
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.out_channels == channels
    assert [tuple(f.shape) for f in features] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def strides(backbone):
    return [(stage[0].conv1.stride[0], stage[0].conv2.stride[0]) for stage in backbone.stages[2:]]


def test_msra_moves_the_stride_into_the_first_convolution():
    assert strides(ResNet(50, weights=None)) == [(1, 2)] * 3
    assert strides(ResNet(50, weights=None, preset="msra")) == [(2, 1)] * 3


def test_basic_blocks_have_no_1x1_to_move_the_stride_to():
    assert strides(ResNet(18, weights=None, preset="msra")) == [(2, 1)] * 3
    assert strides(ResNet(18, weights=None)) == [(2, 1)] * 3


@pytest.mark.parametrize(
    "make", [lambda n: ResNet(18, freeze_at=n, weights=None), lambda n: MobileNetV2("bn", n, weights=None)]
)
@pytest.mark.parametrize("freeze_at", [0, 2, 5])
def test_freeze_at(make, freeze_at):
    backbone = make(freeze_at)
    fixed = [not any(p.requires_grad for p in stage.parameters()) for stage in backbone.stages]
    assert fixed == [True] * freeze_at + [False] * (5 - freeze_at)


def test_frozen_stages_keep_their_statistics():
    backbone = ResNet(18, norm="bn", freeze_at=2, weights=None).train()
    norms = [next(m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)) for stage in backbone.stages]
    backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert [bool((norm.running_mean == 0).all()) for norm in norms] == [True, True, False, False, False]
    assert not backbone.eval().stages[3].training


@pytest.mark.parametrize(
    ("norm", "kind"), [("frozen_bn", FrozenBatchNorm2d), ("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm)]
)
def test_norms(norm, kind):
    assert isinstance(ResNet(18, norm=norm, weights=None).stages[0][1], kind)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNet(19, weights=None), "depth=19.*18, 34, 50, 101"),
        (lambda: ResNet(18, norm="ln", weights=None), "'ln'.*frozen_bn, bn, gn"),
        (lambda: ResNet(18, preset="caffe", weights=None), "'caffe'.*torchvision, msra"),
        (lambda: ResNet(18, freeze_at=6, weights=None), "freeze_at=6.*between 0"),
        (lambda: MobileNetV2(norm="gn", weights=None), "frozen_bn|bn"),
        (lambda: MobileNetV2(preset="msra", weights=None), "preset=torchvision only"),
    ],
)
def test_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_a_classifier(tmp_path):
    torch.manual_seed(0)
    body = torchvision.models.resnet18(weights=None)
    torch.save(body.state_dict(), tmp_path / "body.pth")
    backbone = ResNet(18, weights=str(tmp_path / "body.pth"))
    assert torch.equal(backbone.stages[0][0].weight, body.conv1.weight)
    assert torch.equal(backbone.stages[4][1].conv2.weight, body.layer4[1].conv2.weight)


def test_weights_of_another_depth_do_not_fit(tmp_path):
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "r34.pth")
    with pytest.raises(ValueError, match=r"r34\.pth.*Unknown keys: \[layer1\.2.*depth and norm"):
        ResNet(18, weights=str(tmp_path / "r34.pth"))


@pytest.mark.parametrize("make", [lambda: ResNet(18, weights="imagenet"), lambda: MobileNetV2(weights="imagenet")])
def test_download_that_fails_names_the_remedies(make, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(RuntimeError, match="no route to host.*" + ".*".join(REMEDIES)):
        make()


def test_download_is_loaded(monkeypatch):
    body = torchvision.models.resnet18(weights=None)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *a, **k: body.state_dict())
    backbone = ResNet(18, weights="imagenet")
    assert torch.equal(backbone.stages[0][0].weight, body.conv1.weight)


def test_file_that_is_not_there_names_the_remedies(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such weights file.*" + ".*".join(REMEDIES)):
        ResNet(18, weights=str(tmp_path / "none.pth"))
