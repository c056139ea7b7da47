import pytest
import torch

from b2inst.losses.edge_agreement import GAUSSIAN, KERNELS, EdgeAgreement, edge_agreement_loss

# Sum of |k|^p over a filter: what a dot in the middle of a 3 x 3 map gives, summed over its pixels.
SQUARES = {"sobel": [12, 12], "prewitt": [6, 6], "kayyali": [144, 144], "roberts": [2, 2], "laplacian": [72]}


def dot():
    target = torch.zeros(1, 3, 3)
    target[0, 1, 1] = 1
    return target


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_missed_dot(kernel):
    loss = edge_agreement_loss(torch.full((1, 3, 3), -100.0), dot(), kernel=kernel)
    assert loss.item() == pytest.approx(sum(SQUARES[kernel]) / len(SQUARES[kernel]) / 9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_filters_have_no_response_inside_and_one_at_the_frame(kernel):
    weight = torch.zeros(1, 5, 5)
    weight[:, 1:4, 1:4] = 1
    nothing, full = torch.full((1, 5, 5), -100.0), torch.ones(1, 5, 5)
    assert edge_agreement_loss(nothing, full, weight, kernel=kernel).item() == 0
    assert edge_agreement_loss(nothing, full, kernel=kernel).item() > 0  # zeros around it
    assert edge_agreement_loss(-nothing, full, kernel=kernel).item() == 0


def test_orientation_of_the_filters():
    # Rows 0 and 1 are on, so the edge between rows 1 and 2 is horizontal: only the first Sobel filter sees it inside.
    target = torch.zeros(1, 4, 5)
    target[:, :2] = 1
    weight = torch.zeros(1, 4, 5)
    weight[:, 1, 2] = 1
    nothing = torch.full((1, 4, 5), -100.0)
    assert edge_agreement_loss(nothing, target, weight, power=1).item() == pytest.approx((4 + 0) / 2)
    # Roberts looks to the right and below: at row 1 it sees the edge, at row 0 it does not.
    assert edge_agreement_loss(nothing, target, weight, kernel="roberts", power=1).item() == pytest.approx(1)
    assert edge_agreement_loss(nothing, target, weight.roll(-1, 1), kernel="roberts", power=1).item() == 0


@pytest.mark.parametrize("power", [1, 2, 5])
def test_power(power):
    loss = edge_agreement_loss(torch.full((1, 3, 3), -100.0), dot(), kernel="laplacian", power=power)
    assert loss.item() == pytest.approx((8 + 8**power) / 9)


def test_smoothing_of_either_side():
    empty = torch.full((1, 5, 5), -100.0)
    target = torch.zeros(1, 5, 5)
    target[0, 2, 2] = 1
    sharp = (target - 0.5) * 200
    assert edge_agreement_loss(sharp, target).item() == pytest.approx(0, abs=1e-9)
    one_side = edge_agreement_loss(sharp, target, smooth_prediction=True).item()
    assert one_side > 0.1
    assert edge_agreement_loss(sharp, target, smooth_target=True).item() == pytest.approx(one_side)
    both = edge_agreement_loss(sharp, target, smooth_prediction=True, smooth_target=True).item()
    assert both == pytest.approx(0, abs=1e-9)
    assert edge_agreement_loss(empty, target, smooth_target=True) < edge_agreement_loss(empty, target)
    assert torch.tensor(GAUSSIAN).sum().item() == pytest.approx(1, abs=1e-5)


def test_options_are_checked_at_construction():
    with pytest.raises(ValueError, match="'canny'.*'kayyali', 'laplacian', 'prewitt', 'roberts', 'sobel'"):
        EdgeAgreement(kernel="canny")
    with pytest.raises(ValueError, match="power=0.5"):
        EdgeAgreement(power=0.5)
