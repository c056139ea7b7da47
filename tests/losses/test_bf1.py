import pytest
import torch

from b2inst.losses.bf1 import BF1, bf1_loss


def line(column, width=12, height=3):
    """Logits and target of a vertical line of one pixel."""
    target = torch.zeros(1, height, width)
    target[..., column] = 1
    return (target - 0.5) * 200, target


@pytest.mark.parametrize(("shift", "th", "expected"), [(0, 5, 0), (2, 5, 0), (3, 5, 1), (1, 3, 0), (2, 3, 1)])
def test_lines_match_up_to_half_a_window(shift, th, expected):
    assert bf1_loss(line(4 + shift)[0], line(4)[1], th=th).item() == pytest.approx(expected, abs=1e-5)


def test_precision_and_recall_by_hand():
    target = line(2)[1]
    logits = line(2)[0] + line(10)[0] + 100  # the right line and one 8 pixels off: P = 1/2, R = 1, F1 = 2/3
    assert bf1_loss(logits, target).item() == pytest.approx(1 / 3, abs=1e-5)
    both = target + line(10)[1]
    assert bf1_loss(line(2)[0], both).item() == pytest.approx(1 / 3, abs=1e-5)  # P = 1, R = 1/2


def test_soft_probabilities_by_hand():
    target = torch.zeros(1, 1, 9)
    target[..., 1] = 1
    probs = torch.zeros(1, 1, 9)
    probs[..., 2], probs[..., 7] = 0.5, 0.25  # P = 0.5 / 0.75, R = 0.5 / 1
    logits = torch.logit(probs, eps=1e-9)
    p, r = 2 / 3, 1 / 2
    assert bf1_loss(logits, target).item() == pytest.approx(1 - 2 * p * r / (p + r), abs=1e-5)


def test_extraction_by_hand():
    target = torch.zeros(1, 9, 9)
    target[:, 2:7, 2:7] = 1  # its inner contour has 16 pixels
    filled = (target - 0.5) * 200
    hollow = filled.clone()
    hollow[:, 3:6, 3:6] = -100  # the contour only: without `extract` it has the same boundary as itself
    contour = (hollow > 0).float()
    assert contour.sum() == 16
    assert bf1_loss(filled, target, extract=True).item() == pytest.approx(0, abs=1e-5)
    # a predicted contour taken for a mask has the same inner boundary, as all its 16 pixels touch the outside
    assert bf1_loss(hollow, target, extract=True, th=1).item() == pytest.approx(0, abs=1e-5)
    assert bf1_loss(hollow, contour, th=1).item() == pytest.approx(0, abs=1e-5)
    # P = 16 / 25, R = 1 for the filled square against the contour
    assert bf1_loss(filled, contour, th=1).item() == pytest.approx(1 - 2 * 0.64 / 1.64, abs=1e-5)


def test_extracted_boundary_keeps_away_from_the_frame():
    full = torch.ones(1, 6, 6)
    logits = torch.full((1, 6, 6), 5.0, requires_grad=True)
    assert bf1_loss(logits, full, extract=True).item() == 0  # a mask that fills its map has no boundary: left out


def test_ignored_pixels_count_neither_as_prediction_nor_as_target():
    logits, target = line(2)[0] + line(10)[0] + 100, line(2)[1]
    weight = torch.ones_like(target)
    weight[..., 10] = 0
    assert bf1_loss(logits, target, weight).item() == pytest.approx(0, abs=1e-5)
    assert bf1_loss(line(2)[0], target + line(10)[1], weight).item() == pytest.approx(0, abs=1e-5)


def test_maps_without_a_target_are_left_out():
    logits, target = line(2)[0].repeat(2, 1, 1), line(6)[1].repeat(2, 1, 1)
    target[1] = 0
    assert bf1_loss(logits, target).item() == pytest.approx(1)
    assert bf1_loss(logits, target, reduction="none").tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize("option", [{"th": 4}, {"th0": 0}])
def test_windows_have_to_be_odd(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))}=.*odd"):
        BF1(**option)
