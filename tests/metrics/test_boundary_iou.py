from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from b2inst.metrics.boundary_iou import boundary_crop, boundary_rle, boundary_width, crop_iou, lower_to_boundary_iou
from metrics import generated


def test_width_follows_the_reference():
    assert boundary_width(480, 640) == 16
    assert boundary_width(10, 10) == 1
    assert boundary_width(1024, 2048, 0.005) == 11
    # diagonal 725: 14.5 goes to the even side, as Python rounds in the reference
    assert boundary_width(500, 525) == 14 and 0.02 * np.sqrt(500**2 + 525**2) == 14.5


def test_full_image_has_a_boundary_at_the_border():
    rle = boundary_rle(generated.encode(np.ones((6, 8), np.uint8)))
    expected = np.ones((6, 8), np.uint8)
    expected[1:-1, 1:-1] = 0
    assert np.array_equal(rle_tools.decode(rle), expected)


def test_hole_and_concave_corner():
    mask = np.zeros((40, 40), np.uint8)
    mask[5:30, 5:30] = 1
    mask[15, 15] = 0
    mask[5:12, 20:30] = 0
    assert np.array_equal(rle_tools.decode(boundary_rle(generated.encode(mask))), generated.plain_boundary(mask))


@pytest.mark.parametrize("ratio", [0.004, 0.02, 0.1])
def test_equals_the_definition_on_random_masks(ratio):
    rng = np.random.default_rng(1)
    for height, width in [(1, 1), (1, 30), (33, 2), (60, 80), (120, 97)]:
        for kind in range(4):
            mask = generated.ellipse(rng, height, width) if kind < 3 else (rng.random((height, width)) < 0.97)
            mask = mask.astype(np.uint8)
            rle = boundary_rle(generated.encode(mask), ratio)
            assert np.array_equal(rle_tools.decode(rle), generated.plain_boundary(mask, ratio)), (height, width, kind)


def test_empty_mask_has_an_empty_boundary():
    crop = boundary_crop(generated.encode(np.zeros((9, 7), np.uint8)), 2)
    assert crop.area == 0 and crop.pixels.size == 0
    assert rle_tools.area(boundary_rle(generated.encode(np.zeros((9, 7), np.uint8)))) == 0
    assert crop_iou(crop, crop) == 0.0


def test_distance_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel"):
        boundary_crop(generated.encode(np.ones((4, 4), np.uint8)), 0)


def test_crop_iou_is_exact():
    # squares of 4 in a 20 x 20 image, d = 1: boundaries of 12 pixels; moved by one they share 6
    masks = np.zeros((2, 20, 20), np.uint8)
    masks[0, 5:9, 5:9] = 1
    masks[1, 5:9, 6:10] = 1
    one, two = (boundary_crop(generated.encode(mask), 1) for mask in masks)
    assert one.area == two.area == 12 and (one.top, one.left) == (5, 5)
    assert crop_iou(one, two) == crop_iou(two, one) == 6 / 18
    assert crop_iou(one, one) == 1.0


def test_lowering_is_min_and_leaves_crowds_and_hopeless_pairs():
    rng = np.random.default_rng(3)
    masks = [generated.ellipse(rng) for _ in range(4)]
    found = [generated.shaken(rng, mask) for mask in masks]
    truths, detections = ([generated.encode(mask) for mask in group] for group in (masks, found))
    crowd = [False, True, False, False]
    ious = np.asarray(rle_tools.iou(detections, truths, crowd))
    before = ious.copy()
    exact = lower_to_boundary_iou(ious, detections, truths, crowd)
    lazy = lower_to_boundary_iou(ious, detections, truths, crowd, min_iou=0.5)
    assert np.array_equal(ious, before)
    for row in range(4):
        for column in range(4):
            boundaries = [generated.plain_boundary(mask) for mask in (found[row], masks[column])]
            expected = (
                before[row, column] if crowd[column] else min(before[row, column], generated.plain_iou(*boundaries))
            )
            assert exact[row, column] == pytest.approx(expected, abs=1e-12)
            assert lazy[row, column] == (exact if before[row, column] >= 0.5 else before)[row, column]
    assert (exact < before).any()
