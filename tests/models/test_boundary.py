from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from b2inst.data.boundary_target import BoundaryTarget
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
@pytest.mark.parametrize(
    ("entry", "reached"), [("logit", True), ("sigmoid", True), ("detached", False), ("negative", True)]
)
def test_gradient_of_the_masks_into_the_boundary_basis(kind, entry, reached):
    gradient = mask_gradient(kind(input=entry))
    assert (gradient[:4] > 0).all() and bool(gradient[4] > 0) == reached


@pytest.mark.parametrize("kind", [UnsupervisedBoundary, GlobalBoundary, InstanceBoundary])
@pytest.mark.parametrize("entry", ["logit", "sigmoid", "detached", "negative"])
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
    turned = GlobalBoundary(input="negative").blended(maps[:, :4], maps[:, 4:])
    assert torch.equal(turned[:, :4], maps[:, :4]) and torch.equal(turned[:, 4], -maps[:, 4])
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
    with pytest.raises(ValueError, match="'raw'.*logit, sigmoid, detached, negative"):
        GlobalBoundary(input="raw")


@pytest.mark.parametrize("options", [{"padding": "reflect"}, {"threshold": 8.0}], ids=str)
def test_unknown_options_of_the_instances(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        InstanceBoundary(**options)


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


# ---------------------------------------------------------------------------------------------------------- by class


def by_class(boxes="normal"):
    """Targets of a batch with the maps of the classes; the instances of `normal` have the labels 0, 1 and 2."""
    return BoundaryTarget(classes=True)(build.batch(build.BATCHES[boxes])).targets


def test_channels_by_class():
    assert [kind().num_channels(7) for kind in (NoBoundary, UnsupervisedBoundary, InstanceBoundary)] == [0, 1, 1]
    assert GlobalBoundary().num_channels(7) == 1 and GlobalBoundary(classes=True).num_channels(7) == 7
    own = bases(7)[:, 4:]
    assert GlobalBoundary(classes=True).class_logits(own) is own
    assert GlobalBoundary().class_logits(own[:, :1]) is None and UnsupervisedBoundary().class_logits(own) is None


@pytest.mark.parametrize("entry", ["logit", "sigmoid", "detached", "negative"])
def test_the_maximum_over_the_classes_is_one_basis(entry):
    maps = bases(7)
    variant = GlobalBoundary(input=entry, classes=True)
    largest = torch.maximum(torch.maximum(maps[:, 4], maps[:, 5]), maps[:, 6])
    assert torch.equal(variant.logits(maps[:, 4:]), largest)
    blended = variant.blended(maps[:, :4], maps[:, 4:])
    assert blended.shape[1] == 5 and torch.equal(blended[:, :4], maps[:, :4])
    entered = {"logit": largest, "sigmoid": largest.sigmoid(), "detached": largest, "negative": -largest}
    assert torch.equal(blended[:, 4], entered[entry])
    (gradient,) = torch.autograd.grad(blended[:, 4].sum(), maps) if entry != "detached" else [torch.zeros_like(maps)]
    assert torch.equal(gradient[:, 4:].count_nonzero(dim=1), torch.full((2, 16, 24), int(entry != "detached")))


def test_each_class_is_supervised_with_its_own_boundary():
    maps, targets = bases(7), by_class()
    (loss,) = GlobalBoundary(classes=True).losses({"bce": TERMS["bce"]}, maps[:, 4:], targets, rois(targets)).values()
    values = []
    for image in range(2):
        for label in range(3):
            own = targets.masks[(targets.image_index == image) & (targets.labels == label)]
            contour = boundary(own[:, 2::4, 2::4]).amax(dim=0) if len(own) else torch.zeros(16, 24)
            values.append(F.binary_cross_entropy_with_logits(maps[image, 4 + label], contour))
    torch.testing.assert_close(loss, torch.stack(values).mean())
    loss.backward()
    assert maps.grad[:, :4].count_nonzero() == 0 and maps.grad[:, 4:].all()


def test_dice_by_class_counts_the_classes_that_are_there():
    maps, targets = bases(7), by_class()
    (loss,) = GlobalBoundary(classes=True).losses({"dice": TERMS["dice"]}, maps[:, 4:], targets, rois(targets)).values()
    pairs = zip(targets.class_boundary_index.tolist(), targets.class_boundary, strict=True)
    found = [(maps[image, 4 + label].sigmoid(), contour) for (image, label), contour in pairs]
    values = [1 - 2 * (p * g).sum() / (p**2 + g).sum() for p, g in found]
    assert len(values) == 3
    torch.testing.assert_close(loss, torch.stack(values).mean())


def test_crowds_count_for_no_class():
    maps, targets = bases(7), by_class()
    weight = targets.boundary_weight.clone()
    weight[1, :, :12] = 0
    targets = replace(targets, boundary_weight=weight)
    (loss,) = GlobalBoundary(classes=True).losses({"bce": TERMS["bce"]}, maps[:, 4:], targets, rois(targets)).values()
    loss.backward()
    assert not maps.grad[1, 4:, :, :12].any() and maps.grad[1, 4:, :, 12:].all() and maps.grad[0, 4:].all()


def test_classes_need_their_ground_truth():
    targets = build.batch(build.BATCHES["normal"]).targets
    with pytest.raises(ValueError, match="gt.classes=true"):
        GlobalBoundary(classes=True).losses(TERMS, bases(7)[:, 4:], targets, rois(targets))


@pytest.mark.parametrize("boxes", build.BATCHES)
def test_odd_batches_by_class(boxes):
    model = build.segmenter(GlobalBoundary(classes=True))
    given = BoundaryTarget(classes=True)(build.batch(build.BATCHES[boxes]))
    outputs = model(given.images)
    assert outputs.bases.shape[1] == 4 + build.CLASSES and model.detector.params.out_channels == 5 * 7 * 7
    losses, _ = model.losses(outputs, given)
    assert all(value.isfinite() and value.requires_grad for value in losses.values())
    model.total_loss(losses).backward()
    assert model.basis.bases.weight.grad[4:].flatten(1).any(dim=1).all()
