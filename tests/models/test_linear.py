import pytest
import torch
from torch.nn import functional as F

from b2inst.models.assembly.linear import LinearCombination
from b2inst.models.boundary import GlobalBoundary
from models import build
from models.wanted import in_box, maps_and_boxes, numbers, wanted


def test_masks_by_hand():
    """Prototypes times coefficients over the whole image first, then cropped."""
    bases, boxes, image = maps_and_boxes(5)
    params = 2 * numbers(3, 5)
    masks = LinearCombination(mask_size=8)(bases, wanted(boxes, image, params))
    for i in range(3):
        whole = sum(bases[image[i], k].clamp(min=0) * torch.tanh(params[i, k]) for k in range(5))
        torch.testing.assert_close(masks[i], in_box(whole, boxes[i], 8, 4), atol=1e-5, rtol=1e-4)


def test_what_is_outside_of_the_box_does_not_matter():
    bases, boxes, image = maps_and_boxes(5)
    instances = wanted(boxes[:1], image[:1], numbers(1, 5))
    changed = torch.full_like(bases, 100.0)
    changed[..., 1:13, 1:11] = bases[..., 1:13, 1:11]  # the cells that the first box and its neighbors touch
    assembly = LinearCombination(mask_size=8)
    torch.testing.assert_close(assembly(changed, instances), assembly(bases, instances))


def test_sizes():
    assembly = LinearCombination()
    assert (assembly.usual_bases, assembly.num_params(32), assembly.num_params(33)) == (32, 32, 33)


def test_the_boundary_prototype_is_one_more():
    """Rectified, with a coefficient of its own that has a tanh."""
    bases, boxes, image = maps_and_boxes(5)
    params = 2 * numbers(3, 5)
    assembly = LinearCombination(mask_size=8)
    masks = assembly(bases, wanted(boxes, image, params)) - assembly(bases[:, :4], wanted(boxes, image, params[:, :4]))
    for i in range(3):
        extra = bases[image[i], 4].clamp(min=0) * torch.tanh(params[i, 4])
        torch.testing.assert_close(masks[i], in_box(extra, boxes[i], 8, 4), atol=1e-5, rtol=1e-4)


def test_the_boundary_is_supervised_before_the_relu():
    """Where its prototype is negative, masks see nothing of it and send nothing back; its loss does."""
    batch = build.batch(build.BATCHES["normal"]).targets
    bases = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    masks = LinearCombination(mask_size=8)(bases, wanted(batch.boxes, batch.image_index, numbers(3, 3)))
    (of_masks,) = torch.autograd.grad(masks.sum(), bases)
    loss = F.binary_cross_entropy_with_logits(GlobalBoundary().logits(bases[:, -1:]), batch.boundary)
    (of_loss,) = torch.autograd.grad(loss, bases)
    negative = bases[:, -1] < 0
    assert of_masks[:, -1][~negative].any() and not of_masks[:, -1][negative].any()
    assert of_loss[:, -1][negative].all() and not of_loss[:, :-1].any()


def test_every_positive_counts_the_same():
    logits, target = numbers(3, 4, 4), (numbers(3, 4, 4, seed=2) > 0).float()
    values = [F.binary_cross_entropy_with_logits(a, b).item() for a, b in zip(logits, target, strict=True)]
    loss = LinearCombination().loss(logits, target, torch.tensor([1.0, 0.5, 0.0]), torch.tensor(1.5))
    assert loss.item() == pytest.approx(sum(values) / 3, rel=1e-5)
