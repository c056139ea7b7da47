"""Polygons of masks: filled again, they are the masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from b2inst.ops.polygons import mask_to_polygons
from b2inst.ops.rasterize import rasterize


def drawn(text: str) -> np.ndarray:
    return np.array([[character == "#" for character in line] for line in text.split()])


def filled(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    if not polygons:
        return np.zeros(shape, bool)
    return rasterize([polygon.ravel().tolist() for polygon in polygons], *shape)


SHAPES = {
    "pixel": ("#", 1),
    "bar": (".##.", 1),
    "touching corners, falling": ("#. .#", 2),
    "touching corners, rising": (".# #.", 2),
    "hole": ("#### #..# ####", 1),
    "two holes in a row": ("##### #.#.# #####", 1),
    "holes that touch at a corner": ("##### #.### ##.## #####", 1),
    "a piece in a hole": ("##### #...# #.#.# #...# #####", 2),
    "hole behind a bay": ("###### #..### ####.# ..#### ######", 1),
    "comb": ("#.#.# #####", 1),
    "checkers": ("#.#. .#.# #.#.", 6),
}


@pytest.mark.parametrize("name", SHAPES)
def test_small_shapes(name: str) -> None:
    text, pieces = SHAPES[name]
    mask = np.pad(drawn(text), 2)
    polygons = mask_to_polygons(mask)
    assert len(polygons) == pieces
    assert np.array_equal(filled(polygons, mask.shape), mask)


def test_corners_of_a_rectangle() -> None:
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    (polygon,) = mask_to_polygons(mask)
    assert polygon.tolist() == [[2, 1], [7, 1], [7, 4], [2, 4]]


def test_nothing_has_no_polygon() -> None:
    assert mask_to_polygons(np.zeros((4, 5), bool)) == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(10))
def test_noise(share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < share
    polygons = mask_to_polygons(mask)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    assert len(polygons) == ndimage.label(mask)[1]


@pytest.mark.parametrize("seed", range(5))
def test_smooth_masks_up_to_the_border(seed: int) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((120, 90)), 4)
    assert np.array_equal(filled(mask_to_polygons(noise > 0), noise.shape), noise > 0)


def test_tolerance_leaves_out_corners_and_moves_the_outline_no_further() -> None:
    y, x = np.mgrid[:80, :80]
    disk = (x - 40) ** 2 + (y - 40) ** 2 < 30**2
    (exact,), (coarse,) = mask_to_polygons(disk), mask_to_polygons(disk, 1.5)
    assert len(coarse) < len(exact) / 4
    away = filled([coarse], disk.shape) ^ disk
    border = ndimage.binary_dilation(disk, iterations=2) & ~ndimage.binary_erosion(disk, iterations=2)
    assert away.any() and not (away & ~border).any()


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="give pixels of at least 0"):
        mask_to_polygons(drawn("## ##"), tolerance)
