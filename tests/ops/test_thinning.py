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


def ring(radius: float, x0: float, y0: float, width: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian ridge along a circle, and the disc in it."""
    y, x = torch.meshgrid(torch.arange(101.0), torch.arange(121.0), indexing="ij")
    distance = (x - x0).hypot(y - y0) - radius
    return torch.exp(-(distance**2) / (2 * width**2)), distance < 0


@pytest.mark.parametrize("radius", [12, 20, 30, 45])
@pytest.mark.parametrize("center", [(60, 50), (60.3, 50.2), (60.5, 50.5)])
def test_a_circle_keeps_as_many_pixels_as_the_contour_of_its_disc(radius: int, center: tuple[float, float]) -> None:
    """Two on a slope would be a fifth too many and more, which a matching one to one calls wrong."""
    probs, disc = ring(radius, *center)
    contour = int((disc & (_grown(~disc, (3, 1)) | _grown(~disc, (1, 3)))).sum())
    kept = thinned(probs[None])[0] > 0.5
    assert abs(int(kept.sum()) - contour) <= max(4, 0.04 * contour)
    assert not _from_the_frame(kept)[50, 60], "it is not closed"


def _grown(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    pad = (size[0] // 2, size[1] // 2)
    return torch.nn.functional.max_pool2d(mask[None].float(), size, 1, pad)[0].bool()


def _from_the_frame(closed: torch.Tensor) -> torch.Tensor:
    """(H, W) bool, what is reached from the upper left along rows and columns without a step onto `closed`."""
    reached = torch.zeros_like(closed)
    reached[0, 0] = True
    while True:
        more = (_grown(reached, (3, 1)) | _grown(reached, (1, 3))) & ~closed
        if torch.equal(more, reached):
            return reached
        reached = more


@pytest.mark.parametrize("degrees", [6, 20, 40, 50, 70, 84])
def test_a_line_keeps_one_pixel_of_each_row_or_column_up_to_the_border(degrees: int) -> None:
    probs, _ = ridge(math.radians(degrees))
    kept = thinned(probs[None])[0] > 0.3
    counts = kept.sum(dim=1 if degrees < 45 else 0)
    assert (counts[1:-1] == 1).all() and counts[[0, -1]].max() <= 3  # the smoothed line bends at the border


@pytest.mark.parametrize("edge", [0, 1, -2, -1])
def test_lines_along_the_border_are_kept(edge: int) -> None:
    probs = torch.zeros(20, 30)
    probs[:, edge] = 0.9
    for maps in (probs, probs.T):
        assert torch.equal(thinned(maps[None])[0], maps)


def test_lines_that_meet_keep_their_pixels() -> None:
    cross, square = torch.zeros(2, 61, 61)
    cross[30] = cross[:, 30] = 1
    slanted = torch.maximum(torch.eye(61), torch.eye(61).flip(1))
    square[10, 10:50] = square[49, 10:50] = square[10:50, 10] = square[10:50, 49] = 1
    tee = cross.clone()
    tee[:30, 30] = 0
    for maps, missing in ((cross, 0), (slanted, 0), (square, 4), (tee, 1)):  # corners
        thin = thinned(maps[None])[0]
        assert thin.sum() == maps.sum() - missing and not thin[maps == 0].any()


def test_a_turned_map_is_thinned_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(1, 1, 20, 30, generator=generator)
    maps = torch.nn.functional.interpolate(cells, scale_factor=4, mode="bilinear")[0]
    thin = thinned(maps) > 0
    for turns in range(4):
        for flipped in ([], [2]):
            turned, wanted = (m.rot90(turns, (1, 2)).flip(flipped) for m in (maps, thin))
            assert ((thinned(turned) > 0) != wanted).sum() <= 0.002 * thin.sum()  # values that are equal but rounded


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
