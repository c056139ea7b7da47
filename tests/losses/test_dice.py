import pytest
import torch

from b2inst.losses.dice import dice_loss

P = torch.tensor([[[0.25, 0.5, 0.75, 0.5]]])
LOGITS = torch.logit(P)
TARGET = torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])


def test_by_hand():
    # sum p g = 1.25; sum p^2 = 1.125, sum p = 2; sum g = sum g^2 = 2
    assert dice_loss(LOGITS, TARGET, eps=0).item() == pytest.approx(1 - 2.5 / 3.125)
    assert dice_loss(LOGITS, TARGET, squared=False, eps=0).item() == pytest.approx(1 - 2.5 / 4)
    assert dice_loss(LOGITS, TARGET, squared=False, smooth=1, eps=0).item() == pytest.approx(1 - 3.5 / 5)
    assert dice_loss(LOGITS, TARGET, eps=0.875).item() == pytest.approx(1 - 2.5 / 4)


def test_weight():
    weight = torch.tensor([[[1.0, 1.0, 0.0, 1.0]]])  # left: sum p g = 0.5, sum p^2 = 0.5625, sum g^2 = 1
    assert dice_loss(LOGITS, TARGET, weight, eps=0).item() == pytest.approx(1 - 1 / 1.5625)


def test_maps_without_a_positive_target_are_left_out():
    logits, target = LOGITS.repeat(3, 1, 1), TARGET.repeat(3, 1, 1)
    weight = torch.ones_like(target)
    target[1] = 0
    weight[2] = 1 - target[2]  # only its negatives are left
    alone = dice_loss(LOGITS, TARGET)
    assert torch.allclose(dice_loss(logits, target, weight), alone)
    assert torch.allclose(dice_loss(logits, target, weight, reduction="none"), alone * torch.tensor([1, 0, 0]))


def test_perfect_prediction():
    for squared in (True, False):
        assert dice_loss((TARGET - 0.5) * 1e3, TARGET, squared=squared).item() == pytest.approx(0, abs=1e-5)


def test_more_pixels_than_half_precision_can_count():
    logits = torch.full((1, 300, 300), 20.0, dtype=torch.float16, requires_grad=True)
    target = torch.ones(1, 300, 300, dtype=torch.float16)
    assert logits.sigmoid().sum().isinf()  # 90,000 > 65,504
    loss = dice_loss(logits, target, target)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert logits.grad.isfinite().all()
