from dataclasses import replace

import torch
from torch.nn import functional as F

from b2inst.models.semantic_yolact import YolactSemanticHead
from models import build


def overlapping():
    """Instances of class 0 and 1, one in the other, and one more of class 0; padding at the right."""
    images = build.images(1, 64, 96, sizes=[(64, 80)])
    targets = build.targets([[(0, 0, 64, 64), (16, 16, 32, 32), (0, 0, 24, 24)]])
    targets = replace(targets, labels=torch.tensor([0, 1, 0]))
    for mask, (x0, y0, x1, y1) in zip(targets.masks, targets.boxes.int().tolist(), strict=True):
        mask[:] = False
        mask[y0:y1, x0:x1] = True
    return images, targets


def test_a_cell_may_have_several_classes():
    images, targets = overlapping()
    classes, counts = YolactSemanticHead(32, 3).target(images, targets)
    wanted = torch.zeros(1, 3, 8, 12, dtype=torch.bool)
    wanted[0, 0, :8, :8] = True
    wanted[0, 1, 2:4, 2:4] = True
    assert torch.equal(classes, wanted)
    assert counts[0, :, :10].all() and not counts[0, :, 10:].any()


def test_masks_are_sampled_as_bilinear_interpolation_does():
    images, targets = overlapping()
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 64, 96, generator=generator) < 0.6
    targets = replace(targets, masks=noise, labels=torch.tensor([0, 1, 2]))
    classes, _ = YolactSemanticHead(32, 3).target(images, targets)
    wanted = F.interpolate(noise.float()[None], (8, 12), mode="bilinear", align_corners=False) > 0.5
    assert torch.equal(classes, wanted) and 0.2 < wanted.float().mean() < 0.8


def test_crowds_are_ignored_but_not_instances_in_them():
    images, targets = overlapping()
    targets.crowd[0, :, 48:72] = True
    _, counts = YolactSemanticHead(32, 3).target(images, targets)
    assert counts[0, :, 6:8].all() and not counts[0, :, 8].any() and counts[0, :, 9].all()


def test_images_keep_their_instances():
    images, targets = build.images(2, 64, 96), build.targets([[], [(0, 0, 96, 64)]])
    classes, _ = YolactSemanticHead(32, 3).target(images, targets)
    assert not classes[0].any() and classes[1, 0].any() and not classes[1, 1:].any()


def test_the_loss_is_a_sum_over_classes_and_a_mean_over_cells():
    torch.manual_seed(0)
    images, targets = overlapping()
    head = YolactSemanticHead(32, 3)
    features = [torch.randn(1, 32, 8, 12)]
    logits = head(features)
    assert logits.shape == (1, 3, 8, 12)
    classes, _ = head.target(images, targets)
    probs = torch.where(classes, logits.sigmoid(), 1 - logits.sigmoid())[..., :10]
    torch.testing.assert_close(head.loss(features, images, targets), -probs.log().sum(1).mean())


def test_the_loss_of_nothing_is_an_attached_zero():
    images, targets = overlapping()
    targets = replace(targets, masks=targets.masks & False, crowd=~targets.crowd)
    head = YolactSemanticHead(32, 3)
    loss = head.loss([torch.randn(1, 32, 8, 12)], images, targets)
    loss.backward()
    assert loss.item() == 0 and head.conv.weight.grad is not None


def test_parameters_of_the_published_size():
    assert sum(p.numel() for p in YolactSemanticHead(256, 80).parameters()) == 257 * 80
