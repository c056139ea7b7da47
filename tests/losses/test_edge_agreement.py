import math

import pytest
import torch

from b2inst.losses.edge_agreement import GAUSSIAN, KERNELS, EdgeAgreement, edge_agreement_loss

# As the authors list them; a filter of 2 x 2 begins at its pixel, as "same" padding puts it.
MATRICES = {
    "sobel": ["1 2 1, 0 0 0, -1 -2 -1", "1 0 -1, 2 0 -2, 1 0 -1"],
    "prewitt": ["1 0 -1, 1 0 -1, 1 0 -1", "1 1 1, 0 0 0, -1 -1 -1"],
    "kayyali": ["6 0 -6, 0 0 0, -6 0 6", "-6 0 6, 0 0 0, 6 0 -6"],
    "roberts": ["1 0, 0 -1", "0 -1, 1 0"],
    "laplacian": ["1 1 1, 1 -8 1, 1 1 1"],
}
BLUR = ["0.077847 0.123317 0.077847, 0.123317 0.195346 0.123317, 0.077847 0.123317 0.077847"]


def filtered(grid, matrix):
    """A list of rows under a filter, pixel by pixel, with zeros around it."""
    rows = [[float(v) for v in row.split()] for row in matrix.split(",")]
    start = -1 if len(rows) == 3 else 0
    height, width = len(grid), len(grid[0])
    return [
        [
            sum(
                factor * grid[y + start + i][x + start + j]
                for i, row in enumerate(rows)
                for j, factor in enumerate(row)
                if 0 <= y + start + i < height and 0 <= x + start + j < width
            )
            for x in range(width)
        ]
        for y in range(height)
    ]


def by_hand(probs, target, kernel, power, blurred=(False, False), entropy=False):
    """The loss of one map, in loops over filters and pixels; both sides are filtered on their own."""
    found, wanted = (filtered(g, BLUR[0]) if b else g for g, b in zip((probs, target), blurred, strict=True))
    pairs = [(filtered(found, matrix), filtered(wanted, matrix)) for matrix in MATRICES[kernel]]
    total = 0.0
    for y, row in enumerate(probs):
        for x, p in enumerate(row):
            edges = sum(abs(a[y][x] - b[y][x]) ** power for a, b in pairs) / len(pairs)
            crossed = -math.log(p if target[y][x] else 1 - p)
            total += crossed * math.exp(edges / 16) if entropy else edges
    return total / (len(probs) * len(probs[0]))


def some_mask():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 6, 5, generator=generator)
    target = (torch.rand(1, 6, 5, generator=generator) < 0.5).float()
    return logits, target


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("blurred", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_filter_by_hand(kernel, blurred, entropy):
    logits, target = some_mask()
    probs = logits[0].double().sigmoid().tolist()
    for power in (1, 2, 3, 4, 5) if not entropy else (1, 2):
        loss = edge_agreement_loss(
            logits, target, kernel=kernel, power=power, smooth_prediction=blurred[0], smooth_target=blurred[1],
            cross_entropy=entropy,
        )  # fmt: skip
        assert loss.item() == pytest.approx(
            by_hand(probs, target[0].tolist(), kernel, power, blurred, entropy), rel=1e-4
        )


def test_weights_that_overflow_are_refused():
    with pytest.raises(ValueError, match=r"power=4: with kernel=sobel an edge would weigh exp\(256\)"):
        EdgeAgreement("sobel", 4, cross_entropy=True)
    worst = torch.zeros(1, 6, 6)
    worst[:, ::2] = 1
    for kernel, power in (("sobel", 3), ("kayyali", 2), ("laplacian", 2), ("roberts", 5)):
        logits = ((0.5 - worst) * 2e4).requires_grad_()
        loss = edge_agreement_loss(logits, worst, kernel=kernel, power=power, cross_entropy=True)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()


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
