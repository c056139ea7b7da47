import pytest
import torch
from torch import nn
from torch.nn import functional as F

from b2inst.models.protonet_yolact import YolactProtonet


def pyramid(channels=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, channels, 64 // s, 96 // s, generator=generator) for s in (8, 16, 32)]


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("stride", [8, 4, 2])
def test_strides(stride):
    head = YolactProtonet(32, 5, stride, channels=16)
    assert head(pyramid()).shape == (1, 5, 64 // stride, 96 // stride)
    assert (head.stride, head.num_bases) == (stride, 5)


def test_equals_the_published_order():
    """Three convolutions, up-sampling, one more, 1x1; each with a ReLU but the last."""
    torch.manual_seed(0)
    head = YolactProtonet(32, 5, channels=16)
    x = pyramid()[0]
    for layer in head.tower:
        x = F.conv2d(x, layer[0].weight, layer[0].bias, padding=1).relu()
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).relu()  # of what is not negative
    x = F.conv2d(x, head.upsampled[0].weight, head.upsampled[0].bias, padding=1).relu()
    wanted = F.conv2d(x, head.bases.weight, head.bases.bias)
    torch.testing.assert_close(head(pyramid()), wanted)
    assert len(head.tower) == 3 and wanted.min() < 0 < wanted.max()


def test_only_p3_takes_part():
    levels = [p.requires_grad_() for p in pyramid()]
    YolactProtonet(32, 4, channels=16)(levels).sum().backward()
    assert [p.grad is not None for p in levels] == [True, False, False]


def test_parameters_of_the_published_size():
    head = YolactProtonet(256, 32)
    assert count(head) == 4 * (256 * 256 * 9 + 256) + 257 * 32
    assert count(YolactProtonet(256, 33)) - count(head) == 257


def test_norms():
    head = YolactProtonet(32, 4, channels=32, norm="gn", num_convs=1)
    assert sum(isinstance(m, nn.GroupNorm) for m in head.modules()) == 2
    assert head.tower[0][0].bias is None and YolactProtonet(32, 4).tower[0][0].bias is not None


def test_unknown_options():
    with pytest.raises(ValueError, match="stride 16; allowed: 8, 4, 2"):
        YolactProtonet(32, 4, 16)
    with pytest.raises(ValueError, match="'ln' of the protonet; allowed: none, bn, syncbn, gn, frozen_bn"):
        YolactProtonet(32, 4, norm="ln")
