from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.dice import Dice
from b2inst.models.assembly.blend import AttentionBlend
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, InstanceRois, NoBoundary, UnsupervisedBoundary
from b2inst.ops.laplacian import boundary
from b2inst.ops.rois import crop_masks
from models import build
from models.wanted import wanted

ASSEMBLY = AttentionBlend(attention_size=3, mask_size=8)
TERMS = {"bce": BinaryCrossEntropy(), "dice": Dice()}


def bases(channels=5):
    return torch.randn(2, channels, 16, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)


def rois(targets, weight=None):
    masks = crop_masks(targets.masks, targets.boxes, ASSEMBLY.mask_size)
    weight = torch.ones(len(targets)) if weight is None else torch.tensor(weight)
    return InstanceRois(ASSEMBLY, masks, weight, weight.sum().clamp(min=1e-6))


def mask_gradient(variant):
    """What the mask loss sends back to each channel of the basis head."""
    maps = bases()
    batch = build.batch(build.BATCHES["normal"]).targets
    blended = variant.blended(maps[:, :4], maps[:, 4:])
    params = torch.randn(3, ASSEMBLY.num_params(blended.shape[1]), generator=torch.Generator().manual_seed(1))
    masks = ASSEMBLY(blended, wanted(batch.boxes, batch.image_index, params))
    loss = ASSEMBLY.loss(masks, rois(batch).masks, torch.ones(3), torch.tensor(3.0))
    loss.backward()
    return maps.grad.abs().sum(dim=(0, 2, 3))


@pytest.mark.parametrize("kind", [UnsupervisedBoundary, GlobalBoundary, InstanceBoundary])
@pytest.mark.parametrize(("entry", "reached"), [("logit", True), ("sigmoid", True), ("detached", False)])
def test_gradient_of_the_masks_into_the_boundary_basis(kind, entry, reached):
    gradient = mask_gradient(kind(input=entry))
    assert (gradient[:4] > 0).all() and bool(gradient[4] > 0) == reached


@pytest.mark.parametrize("kind", [UnsupervisedBoundary, GlobalBoundary, InstanceBoundary])
@pytest.mark.parametrize("entry", ["logit", "sigmoid", "detached"])
def test_prediction_that_is_not_used_takes_no_part_in_the_masks(kind, entry):
    variant = kind(use_prediction=False, input=entry)
    assert torch.equal(variant.blended(bases()[:, :4], bases()[:, 4:]), bases()[:, :4])
    gradient = mask_gradient(variant)
    assert (gradient[:4] > 0).all() and gradient[4] == 0


def test_how_the_basis_enters():
    maps = bases()
    assert torch.equal(GlobalBoundary().blended(maps[:, :4], maps[:, 4:]), maps)
    assert torch.equal(GlobalBoundary(input="detached").blended(maps[:, :4], maps[:, 4:]), maps)
    squashed = GlobalBoundary(input="sigmoid").blended(maps[:, :4], maps[:, 4:])
    assert torch.equal(squashed[:, :4], maps[:, :4]) and torch.equal(squashed[:, 4], maps[:, 4].sigmoid())
    assert torch.equal(GlobalBoundary().logits(maps[:, 4:]), maps[:, 4])


def test_no_boundary():
    variant, maps = NoBoundary(), bases(4)
    batch = build.batch(build.BATCHES["normal"]).targets
    assert (variant.num_bases, variant.use_prediction) == (0, False)
    assert variant.blended(maps, maps[:, 4:]) is maps and variant.logits(maps[:, 4:]) is None
    assert variant.losses(TERMS, maps[:, 4:], batch, rois(batch)) == {}


def test_unsupervised_has_a_basis_and_no_losses():
    batch = build.batch(build.BATCHES["normal"]).targets
    assert UnsupervisedBoundary().num_bases == 1
    assert UnsupervisedBoundary().losses(TERMS, bases()[:, 4:], batch, rois(batch)) == {}


def test_unknown_input():
    with pytest.raises(ValueError, match="'raw'.*logit, sigmoid, detached"):
        GlobalBoundary(input="raw")


def test_global_losses_supervise_the_last_channel():
    maps = bases()
    batch = build.batch(build.BATCHES["normal"]).targets
    losses = GlobalBoundary(use_prediction=False).losses(TERMS, maps[:, 4:], batch, rois(batch))
    assert losses.keys() == {"bce", "dice"}
    torch.testing.assert_close(losses["bce"], F.binary_cross_entropy_with_logits(maps[:, 4], batch.boundary))
    sum(losses.values()).backward()
    assert maps.grad[:, :4].count_nonzero() == 0 and maps.grad[:, 4].all()


def test_global_losses_leave_out_crowds():
    batch = build.batch(build.BATCHES["normal"]).targets
    batch = replace(batch, boundary_weight=batch.boundary_weight.clone())
    batch.boundary_weight[:, :8] = 0
    maps = bases()
    (loss,) = GlobalBoundary().losses({"bce": TERMS["bce"]}, maps[:, 4:], batch, rois(batch)).values()
    expected = F.binary_cross_entropy_with_logits(maps[:, 4, 8:], batch.boundary[:, 8:])
    torch.testing.assert_close(loss, expected)


def test_global_losses_need_their_ground_truth():
    targets = build.targets(build.BATCHES["normal"])
    with pytest.raises(ValueError, match="boundary_target"):
        GlobalBoundary().losses(TERMS, bases()[:, 4:], targets, rois(targets))


def test_instance_losses_by_hand():
    maps = bases()
    batch = build.batch(build.BATCHES["normal"]).targets
    weight = [2.0, 0.0, 0.5]
    losses = InstanceBoundary().losses(TERMS, maps[:, 4:], batch, rois(batch, weight))
    pooled = ASSEMBLY.pool(maps[:, 4:], batch.boxes, batch.image_index)[:, 0]
    contour = boundary(crop_masks(batch.masks, batch.boxes, 8))
    values = [F.binary_cross_entropy_with_logits(a, b) for a, b in zip(pooled, contour, strict=True)]
    torch.testing.assert_close(losses["bce"], (2 * values[0] + 0.5 * values[2]) / 2.5)
    probs = pooled.sigmoid()
    dice = 1 - 2 * (probs * contour).sum((1, 2)) / (probs**2 + contour).sum((1, 2))
    torch.testing.assert_close(losses["dice"], (2 * dice[0] + 0.5 * dice[2]) / 2.5)
    sum(losses.values()).backward()
    assert maps.grad[:, :4].count_nonzero() == 0 and maps.grad[:, 4].any()


def test_instance_losses_of_no_instances_are_attached_zeros():
    maps = bases()
    batch = build.batch(build.BATCHES["no instances"]).targets
    losses = InstanceBoundary().losses(TERMS, maps[:, 4:], batch, rois(batch))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert maps.grad is not None
