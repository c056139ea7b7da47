import pytest
import torch
from torch import nn
from torch.nn import functional as F

from b2inst.models.fpn_yolact import YolactFPN


def features(channels=(32, 64, 128), height=192, width=160):
    generator = torch.Generator().manual_seed(0)
    sizes = zip(channels, (8, 16, 32), strict=True)
    return [torch.randn(1, c, height // s, width // s, generator=generator) for c, s in sizes]


def test_sizes():
    fpn = YolactFPN([32, 64, 128], channels=16)
    assert [tuple(p.shape[1:]) for p in fpn(features())] == [
        (16, 24, 20), (16, 12, 10), (16, 6, 5), (16, 3, 3), (16, 2, 2),
    ]  # fmt: skip
    assert (fpn.strides, fpn.channels) == ([8, 16, 32, 64, 128], 16)
    assert len(YolactFPN([32, 64, 128], channels=16, top_levels=0)(features())) == 3


def test_parameters_of_the_published_size():
    counts = sum(p.numel() for p in YolactFPN([512, 1024, 2048]).parameters())
    assert counts == (512 + 1024 + 2048) * 256 + 3 * 256 + 5 * (256 * 256 * 9 + 256)


def test_equals_the_formula():
    torch.manual_seed(0)
    fpn, (c3, c4, c5) = YolactFPN([32, 64, 128], channels=16), features()

    def conv(layer, x, **options):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2, **options)

    def twice(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    m5 = conv(fpn.lateral[2], c5)
    m4 = conv(fpn.lateral[1], c4) + twice(m5)
    m3 = conv(fpn.lateral[0], c3) + twice(m4)
    wanted = [conv(block[0], m).relu() for block, m in zip(fpn.outputs, (m3, m4, m5), strict=True)]
    wanted.append(conv(fpn.top[0], wanted[2], stride=2))  # from what is behind P5's ReLU
    wanted.append(conv(fpn.top[1], wanted[3], stride=2))  # and without a ReLU
    for level, value in zip(fpn(features()), wanted, strict=True):
        torch.testing.assert_close(level, value)


def test_norms():
    assert sum(isinstance(m, nn.GroupNorm) for m in YolactFPN([32, 64, 128], channels=32, norm="gn").modules()) == 3
    with pytest.raises(ValueError, match="'ln'.*none, gn, bn"):
        YolactFPN([32, 64, 128], norm="ln")
