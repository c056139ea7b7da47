import pytest
import torch
from torch import nn
from torch.nn import functional as F

from b2inst.models.fpn import FPN


def features(channels=(32, 64, 128), height=256, width=320):
    generator = torch.Generator().manual_seed(0)
    sizes = zip(channels, (8, 16, 32), strict=True)
    return [torch.randn(1, c, height // s, width // s, generator=generator) for c, s in sizes]


def test_sizes():
    fpn = FPN([32, 64, 128], channels=16)
    levels = fpn(features())
    assert [tuple(p.shape[1:]) for p in levels] == [(16, 32, 40), (16, 16, 20), (16, 8, 10), (16, 4, 5), (16, 2, 3)]
    assert fpn.strides == [8, 16, 32, 64, 128]


@pytest.mark.parametrize("top_levels", [0, 1])
def test_fewer_levels(top_levels):
    fpn = FPN([32, 64, 128], channels=16, top_levels=top_levels)
    assert len(fpn(features())) == len(fpn.strides) == 3 + top_levels


def maps_from_c2():
    return [torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(1)), *features(height=256, width=256)]


def test_the_maps_of_a_backbone_that_it_does_not_read():
    torch.manual_seed(0)
    fpn = FPN([16, 32, 64, 128], channels=16)
    levels = fpn(maps_from_c2())
    assert all(torch.equal(a, b) for a, b in zip(levels, fpn(maps_from_c2()[1:]), strict=True))


def test_from_p2_with_a_pooled_top():
    fpn = FPN([16, 32, 64, 128], channels=16, top_levels=1, lowest=2, top="pool")
    levels = fpn(maps_from_c2())
    assert fpn.strides == [4, 8, 16, 32, 64]
    assert [p.shape[-1] for p in levels] == [64, 32, 16, 8, 4]
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lowest": 4}, "give 2 or 3"), ({"top": "max"}, "'max'.*conv, pool"), ({"top": "pool"}, "give 1 or 0")],
)
def test_levels_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        FPN([16, 32, 64, 128], channels=16, **options)


def test_parameters_of_the_published_size():
    counts = sum(p.numel() for p in FPN([512, 1024, 2048]).parameters())
    lateral = (512 + 1024 + 2048) * 256 + 3 * 256
    assert counts == lateral + 5 * (256 * 256 * 9 + 256)


def test_equals_the_formula():
    torch.manual_seed(0)
    fpn, maps = FPN([32, 64, 128], channels=16), features(height=64, width=64)
    lateral = [block(x) for block, x in zip(fpn.pyramid.inner_blocks, maps, strict=True)]
    lateral[1] = lateral[1] + F.interpolate(lateral[2], scale_factor=2, mode="nearest")
    lateral[0] = lateral[0] + F.interpolate(lateral[1], scale_factor=2, mode="nearest")
    wanted = [block(x) for block, x in zip(fpn.pyramid.layer_blocks, lateral, strict=True)]
    top6, top7 = fpn.pyramid.extra_blocks.convs
    wanted.append(top6(wanted[2]))  # from P5 and without a ReLU
    wanted.append(top7(wanted[3].relu()))
    for level, value in zip(fpn(maps), wanted, strict=True):
        torch.testing.assert_close(level, value)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_map_of_one_cell_in_bfloat16(memory_format):
    """Memory left behind full of NaN shows what is not written."""
    fpn = FPN([32, 64, 128], channels=64).to(memory_format=memory_format)
    maps = [m.to(memory_format=memory_format) for m in features(height=32, width=32)]
    weight = fpn.pyramid.extra_blocks.convs[1].weight
    fpn(maps)[-1].sum().backward()
    wanted = weight.grad.clone()
    for _ in range(20):
        weight.grad = None
        stale = [torch.full((n * weight.numel(),), torch.nan, dtype=torch.bfloat16) for n in (1, 2, 4)]
        del stale
        with torch.autocast("cpu", torch.bfloat16):
            level = fpn(maps)[-1]
        level.float().sum().backward()
        torch.testing.assert_close(weight.grad, wanted, atol=0.05, rtol=0.05)


def test_norms():
    assert any(isinstance(m, nn.GroupNorm) for m in FPN([32, 64, 128], channels=32, norm="gn").modules())
    with pytest.raises(ValueError, match="'ln'.*none, gn, bn"):
        FPN([32, 64, 128], norm="ln")
