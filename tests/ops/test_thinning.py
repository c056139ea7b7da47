from __future__ import annotations

import math

import pytest
import torch

from b2inst.ops.thinning import thinned


def ridge(angle: float, offset: float = 0.0, size: int = 41, width: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A straight Gaussian ridge through the center, and the distance of each pixel to its line."""
    y, x = torch.meshgrid(*(torch.arange(size) - size // 2 for _ in range(2)), indexing="ij")
    distance = x * math.cos(angle) + y * math.sin(angle) - offset
    return torch.exp(-(distance**2) / (2 * width**2)), distance.abs()


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 110, 135, 160])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_what_is_left_of_a_ridge_is_its_line(degrees: int, offset: float) -> None:
    probs, distance = ridge(math.radians(degrees), offset)
    thin = thinned(probs[None])[0]
    kept = (thin > 0.1)[4:-4, 4:-4]  # at the frame the line ends
    assert (distance[4:-4, 4:-4][kept] < 1.01).all()
    line = distance[4:-4, 4:-4] < 0.35
    assert kept[line].float().mean() > 0.95
    assert torch.equal(thin[thin > 0], probs[thin > 0])


def test_two_ridges_stay_apart_and_the_maps_of_a_batch_too() -> None:
    probs = torch.zeros(2, 20, 30)
    for column, value in ((8, 0.9), (7, 0.4), (9, 0.4), (16, 0.6), (15, 0.2), (17, 0.2)):
        probs[0, :, column] = value
    thin = thinned(probs)
    assert (thin[0, :, [8, 16]] > 0).all() and not thin[0, :, [7, 9, 15, 17]].any() and not thin[1].any()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_of_pixels_of_equal_value_the_one_in_the_middle_is_kept(width: int) -> None:
    probs = torch.zeros(20, 21)
    probs[:, 9 : 9 + width] = 0.8
    for maps in (probs, probs.T):
        kept = thinned(maps[None])[0] > 0
        assert torch.equal(kept if maps is probs else kept.T, (torch.arange(21) == 9 + width // 2).expand(20, 21))


@pytest.mark.parametrize("width", [400, 4000])
def test_large_maps_are_thinned_as_small_ones(width: int) -> None:
    """Lines one cell wide, enlarged 4 times: their ridge runs between two pixels."""
    cells = torch.zeros(1, 1, 8, width // 4)
    cells[..., 3::7] = 0.9
    enlarged = torch.nn.functional.interpolate(cells, scale_factor=4, mode="bilinear")[0]
    for maps, across in ((enlarged, 1), (enlarged.transpose(1, 2), 0)):
        assert ((thinned(maps)[0] > 0.5).sum(dim=across) == len(range(3, width // 4, 7))).all()


def test_half_precision_is_taken_in() -> None:
    probs, _ = ridge(0.0)
    assert thinned(probs[None].bfloat16()).dtype == torch.float32
