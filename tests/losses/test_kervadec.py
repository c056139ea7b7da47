import pytest
import torch

from b2inst.losses.kervadec import Kervadec, kervadec_loss
from b2inst.ops.laplacian import boundary


def test_by_hand():
    target = torch.tensor([[[0, 0, 0, 1, 1, 1]]])  # phi = 3, 2, 1, 0, -1, -2, clipped at 2, the frame has no outside
    probs = torch.tensor([[[0.5, 0.25, 0.75, 0.5, 0.5, 0.5]]])
    expected = (0.5 * 2 + 0.25 * 2 + 0.75 * 1 + 0 - 0.5 * 1 - 0.5 * 2) / 2 / 6
    assert kervadec_loss(torch.logit(probs), target, radius=2).item() == pytest.approx(expected)


def test_weight_and_reduction():
    target = torch.tensor([[[1, 0, 0, 0]], [[0, 0, 0, 1]]])
    logits = torch.full((2, 1, 4), 50.0)
    weight = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]])
    assert kervadec_loss(logits, target, weight, radius=4, reduction="none").tolist() == pytest.approx([1 / 8, 3 / 4])
    assert kervadec_loss(logits, target, weight, radius=4).item() == pytest.approx((1 / 4 + 3 / 4) / 3)


def test_a_map_without_target_gives_zero_and_not_a_push():
    logits = torch.zeros(1, 5, 5, requires_grad=True)
    loss = kervadec_loss(logits, torch.zeros(1, 5, 5))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_negative_values_are_normal_on_masks_and_impossible_on_contours():
    mask = torch.zeros(1, 15, 15)
    mask[:, 3:12, 3:12] = 1
    assert kervadec_loss((mask - 0.5) * 100, mask).item() < 0
    contour = boundary(mask)
    assert kervadec_loss((contour - 0.5) * 100, contour).item() == pytest.approx(0, abs=1e-6)
    assert kervadec_loss(torch.full_like(mask, -100.0), contour).item() == pytest.approx(0, abs=1e-6)
    assert kervadec_loss(torch.randn(1, 15, 15), contour).item() > 0


def test_gradient_pushes_far_pixels_hardest_up_to_the_radius():
    target = torch.zeros(1, 1, 12)
    target[..., 0] = 1
    logits = torch.zeros(1, 1, 12, requires_grad=True)
    kervadec_loss(logits, target, radius=5).backward()
    slope = logits.grad[0, 0]
    assert slope[0] == 0 and (slope[1:6].diff() > 0).all() and (slope[5:].diff() == 0).all()


def test_radius_is_checked_at_construction():
    with pytest.raises(ValueError, match="radius=0"):
        Kervadec(radius=0)
