import math

import pytest
import torch

from b2inst.losses.bce import binary_cross_entropy


def test_by_hand():
    logits = torch.tensor([[[0.0, math.log(3)]], [[0.0, -math.log(3)]]])  # p = 1/2, 3/4; 1/2, 1/4
    target = torch.tensor([[[1.0, 0.0]], [[0.5, 0.0]]])
    values = [(math.log(2) + math.log(4)) / 2, (math.log(2) + math.log(4 / 3)) / 2]
    assert binary_cross_entropy(logits, target, reduction="none").tolist() == pytest.approx(values)
    assert binary_cross_entropy(logits, target).item() == pytest.approx(sum(values) / 2)


def test_mean_is_over_pixels_and_not_over_maps():
    logits = torch.zeros(2, 1, 4)
    logits[1] = 50.0
    target = torch.ones(2, 1, 4)
    weight = torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 0.0]]])
    assert binary_cross_entropy(logits, target, weight).item() == pytest.approx(math.log(2) / 4)
    assert binary_cross_entropy(logits, target, weight, reduction="none").tolist() == pytest.approx([math.log(2), 0])


def test_logits_are_not_passed_through_a_sigmoid_twice():
    confident = torch.full((1, 4, 4), 100.0)
    assert binary_cross_entropy(confident, torch.ones(1, 4, 4)).item() == pytest.approx(0, abs=1e-6)
    assert binary_cross_entropy(-confident, torch.ones(1, 4, 4)).item() == pytest.approx(100)
