from dataclasses import replace

import pytest
import torch

from b2inst.models.basis import BasisHead, SemanticHead, no_semantic
from b2inst.ops.upsample import aligned_bilinear
from models import build


def pyramid(channels=256):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, channels, 256 // s, 320 // s, generator=generator) for s in (8, 16, 32, 64)]


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("num_bases", [4, 5])
def test_bases_have_stride_4(num_bases):
    head = BasisHead(32, num_bases, channels=16)
    assert head(pyramid(32)).shape == (1, num_bases, 64, 80)
    assert head.stride == 4


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("stride", [8, 4, 2])
def test_strides(stride, aligned):
    """The same weights at every stride, and bases that are the same where they are averaged."""
    torch.manual_seed(0)
    head = BasisHead(32, 3, stride, channels=16, aligned=aligned).eval()
    assert count(head) == count(BasisHead(32, 3, channels=16))
    constant = [torch.full_like(level, 0.5) for level in pyramid(32)]
    bases = head(constant)
    assert bases.shape == (1, 3, 256 // stride, 320 // stride)
    torch.manual_seed(0)
    inner = BasisHead(32, 3, channels=16).eval()(constant)[0, :, 32, 40]
    torch.testing.assert_close(bases[0, :, 128 // stride, 160 // stride], inner)


def test_levels_are_enlarged_as_in_condinst():
    torch.manual_seed(0)
    head = BasisHead(32, 3, 8, channels=16, num_convs=0, aligned=True).eval()
    p3, p4, p5 = levels = pyramid(32)[:3]
    x = head.refine[0](p3) + aligned_bilinear(head.refine[1](p4), 2) + aligned_bilinear(head.refine[2](p5), 4)
    torch.testing.assert_close(head(levels), head.bases(head.upsampled(x)))


def test_parameters_of_the_published_size():
    head = BasisHead(256, 4)
    assert count(head.refine) == 885_504
    tower = count(head.tower) + count(head.upsampled) + count(head.bases)
    assert tower == 591_364
    assert count(BasisHead(256, 5)) - count(head) == 129
    assert count(BasisHead(256, 4, num_convs=2)) == count(head) - 128 * 128 * 9 - 256
    assert count(SemanticHead(256, 80)) == 453_329


def test_no_activation_behind_the_bases():
    bases = BasisHead(32, 4, channels=16)(pyramid(32))
    assert bases.min() < 0 < bases.max()


def test_all_three_levels_take_part():
    levels = [p.requires_grad_() for p in pyramid(32)]
    BasisHead(32, 4, channels=16)(levels).sum().backward()
    assert [p.grad is not None and bool(p.grad.any()) for p in levels] == [True, True, True, False]


def test_unknown_options():
    with pytest.raises(ValueError, match="stride 16; allowed: 8, 4, 2"):
        BasisHead(32, 4, 16)
    with pytest.raises(ValueError, match="'ln' of the basis head.*bn, syncbn, gn, frozen_bn"):
        BasisHead(32, 4, norm="ln")
    with pytest.raises(ValueError, match="'none' of the semantic head .model.semantic.norm.*bn, syncbn, gn, frozen_bn"):
        SemanticHead(32, 4, norm="none")
    with pytest.raises(ValueError, match="'first'.*smallest_area_wins, last_wins"):
        SemanticHead(32, 4, overlap="first")
    assert no_semantic(in_channels=32, num_classes=4) is None


def nested():
    """A large instance of class 1 that lies behind and is listed after a small one of class 0."""
    images = build.images(1, 64, 96, sizes=[(64, 80)])
    targets = build.targets([[(16, 16, 32, 32), (0, 0, 64, 64)]])
    targets.masks[0] = False
    targets.masks[0, 16:32, 16:32] = True
    targets.masks[1] = False
    targets.masks[1, :64, :64] = True
    return images, targets


def test_semantic_target():
    images, targets = nested()
    labels = SemanticHead(32, 3, channels=16).target(images, targets)[0]
    assert labels.shape == (8, 12)
    wanted = torch.zeros(8, 12, dtype=torch.int64)
    wanted[:, :8] = 2
    wanted[2:4, 2:4] = 1
    wanted[:, 10:] = 255  # padding
    assert torch.equal(labels, wanted)
    last = SemanticHead(32, 3, channels=16, overlap="last_wins").target(images, targets)[0]
    assert (last[:, :8] == 2).all()


def test_crowds_are_ignored_but_not_instances_in_them():
    images, targets = nested()
    targets.crowd[0, :, 48:72] = True
    labels = SemanticHead(32, 3, channels=16).target(images, targets)[0]
    assert (labels[:, 6:8] == 2).all() and (labels[:, 8] == 255).all() and (labels[:, 9] == 0).all()


def test_offset_chooses_the_sampled_pixel():
    images, targets = nested()
    targets.masks[:] = False
    targets.masks[0, 0::8, 0::8] = True
    assert (SemanticHead(32, 3, channels=16).target(images, targets)[0, :, :10] == 0).all()
    assert (SemanticHead(32, 3, channels=16, offset=0).target(images, targets)[0, :, :10] == 1).all()


def test_semantic_loss_is_the_mean_over_what_counts():
    torch.manual_seed(0)
    images, targets = nested()
    head = SemanticHead(32, 3, channels=16)
    features = [torch.randn(1, 32, 8, 12)]
    logits = head(features)
    assert logits.shape == (1, 4, 8, 12)
    labels = head.target(images, targets)
    picked = logits.log_softmax(1)[0].permute(1, 2, 0)[labels[0] != 255]
    wanted = -picked[torch.arange(len(picked)), labels[labels != 255]].mean()
    torch.testing.assert_close(head.loss(features, images, targets), wanted)


def test_semantic_loss_of_nothing_is_an_attached_zero():
    images, targets = nested()
    targets = replace(targets, masks=targets.masks & False, crowd=~targets.crowd)
    head = SemanticHead(32, 3, channels=16)
    loss = head.loss([torch.randn(1, 32, 8, 12)], images, targets)
    assert loss.item() == 0
    loss.backward()
    assert head.layers[-1].weight.grad is not None
