from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from b2inst.ops.rasterize import INDEX_DTYPE, pack, rasterize, rasterize_in_box, rasterize_window, to_rle, unpack

SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]  # columns 1 to 3, rows 1 and 2


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def blobs(count, height, width, seed=0):
    """Rectangles of random pixels: some overlap others, some only interlock with them."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        part = mask[y : y + rng.integers(4, height // 2), x : x + rng.integers(4, width // 2)]
        part[:] = rng.random(part.shape) < rng.choice([0.1, 0.8])
    return masks


def test_a_polygon_covers_its_pixels():
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    found = rasterize(SQUARE, 5, 6)
    assert found.dtype == bool and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def test_several_polygons_are_one_object():
    parts = [*SQUARE, [4, 3, 6, 3, 6, 5, 4, 5]]
    np.testing.assert_array_equal(rasterize(parts, 5, 6), rasterize(parts[:1], 5, 6) | rasterize(parts[1:], 5, 6))


def test_the_three_forms_of_a_segmentation_are_the_same_pixels():
    mask = rasterize(SQUARE, 5, 6)
    uncompressed = {"size": [5, 6], "counts": [6, 2, 3, 2, 3, 2, 12]}  # column by column
    for segmentation in (SQUARE, compressed(mask), uncompressed):
        rle = to_rle(segmentation, 5, 6)
        assert isinstance(rle["counts"], bytes | str) and coco_mask.area(rle) == 6
        np.testing.assert_array_equal(rasterize(segmentation, 5, 6), mask)


def test_the_annotation_is_not_changed():
    uncompressed = {"size": [5, 6], "counts": [6, 2, 3, 2, 3, 2, 12]}
    given = [{**uncompressed}, compressed(rasterize(SQUARE, 5, 6)), [list(SQUARE[0])]]
    copies = [{**uncompressed}, compressed(rasterize(SQUARE, 5, 6)), [list(SQUARE[0])]]
    pack(given, 5, 6)
    assert given == copies


@pytest.mark.parametrize("seed", range(4))
def test_overlapping_masks_make_the_round_trip_exactly(seed):
    masks = blobs(30, 40, 56, seed)
    maps = pack([compressed(mask) for mask in masks], 40, 56)
    assert 1 < len(maps) < 30
    found, boxes, kept = unpack(maps)
    np.testing.assert_array_equal(found, masks)
    assert kept.tolist() == list(range(30))
    for box, mask in zip(boxes, masks, strict=True):
        y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_equal_masks_stay_apart_and_disjoint_ones_share_a_map():
    one, other = SQUARE, [[4, 3, 6, 3, 6, 5, 4, 5]]
    maps = pack([one, one, other, one], 5, 6)
    assert maps.shape == (3, 5, 6) and maps.dtype == INDEX_DTYPE
    assert [sorted(set(index_map.ravel())) for index_map in maps] == [[0, 1, 3], [0, 2], [0, 4]]
    found, _, kept = unpack(maps)
    assert kept.tolist() == [0, 1, 2, 3]
    for mask, segmentation in zip(found, (one, one, other, one), strict=True):
        np.testing.assert_array_equal(mask, rasterize(segmentation, 5, 6))


def test_boxes_that_overlap_share_a_map_if_their_pixels_do_not():
    chess = np.indices((8, 8)).sum(axis=0) % 2 == 0
    maps = pack([compressed(chess), compressed(~chess)], 8, 8)
    np.testing.assert_array_equal(maps, np.where(chess, 1, 2)[None])
    np.testing.assert_array_equal(unpack(maps)[0], [chess, ~chess])


def test_more_objects_than_a_byte_counts():
    height, width = 20, 20
    cells = [np.arange(400).reshape(height, width) == k for k in range(400)]
    maps = pack([compressed(cell) for cell in cells], height, width)
    np.testing.assert_array_equal(maps, np.arange(1, 401).reshape(1, height, width))
    found, boxes, kept = unpack(maps)
    np.testing.assert_array_equal(found, cells)
    assert kept.tolist() == list(range(400)) and boxes[399].tolist() == [19, 19, 20, 20]


def test_objects_without_a_pixel_leave_their_number_free():
    outside, empty = [[9, 9, 12, 9, 12, 12, 9, 12]], compressed(np.zeros((5, 6), bool))
    found, _, kept = unpack(pack([outside, SQUARE, empty, SQUARE], 5, 6))
    assert kept.tolist() == [1, 3] and len(found) == 2
    assert pack([outside, empty], 5, 6).shape == (0, 5, 6)


def test_maps_may_be_flipped_and_cropped_before_they_are_unpacked():
    masks = blobs(12, 24, 32)
    maps = pack([compressed(mask) for mask in masks], 24, 32)
    found, _, kept = unpack(maps[:, ::-1, 20:])
    expected = masks[:, ::-1, 20:]
    assert kept.tolist() == [k for k in range(12) if expected[k].any()] != list(range(12))
    np.testing.assert_array_equal(found, expected[kept])


def test_polygons_in_a_box_that_covers_whole_pixels_are_those_of_the_image():
    ring = [[1, 1, 7, 1, 7, 6, 1, 6], [9, 2, 11, 2, 11, 5, 9, 5]]
    wanted = rasterize(ring, 12, 12)
    np.testing.assert_array_equal(rasterize_in_box(ring, [0, 0, 12, 12], 12), wanted)
    np.testing.assert_array_equal(rasterize_in_box(ring, [4, 2, 12, 10], 8), wanted[2:10, 4:12])


def test_polygons_in_a_box_are_finer_than_pixels():
    triangle = [[2.0, 2.0, 4.0, 2.0, 4.0, 4.0]]  # 2 x 2 pixels of the image
    inside = rasterize_in_box(triangle, [2, 2, 4, 4], 56)
    assert inside.shape == (56, 56) and inside.dtype == bool
    assert inside.mean() == pytest.approx(0.5, abs=0.02)
    assert inside[2, 53] and not inside[53, 2]


def test_a_box_without_area_counts_as_a_tenth_of_a_pixel():
    line = [[3.0, 1.0, 3.05, 1.0, 3.05, 5.0, 3.0, 5.0]]
    assert rasterize_in_box(line, [3.0, 1.0, 3.0, 5.0], 8)[:, :4].all()


@pytest.mark.parametrize("seed", range(40))
def test_a_window_holds_what_the_whole_image_would(seed):
    rng = np.random.default_rng(seed)
    center, spread = rng.uniform(-10, 60, 2), rng.choice([1, 5, 30])
    polygons = [(center + rng.normal(0, spread, (rng.integers(3, 9), 2))).round(1) for _ in range(rng.integers(1, 3))]
    expected = rasterize([p.ravel() for p in polygons], 50, 40)  # one decimal: every second number is a tie
    found = np.zeros((50, 40), bool)
    patch = rasterize_window(polygons, 50, 40)
    assert (patch is None) == (not expected.any())
    if patch is not None:
        x, y, pixels = patch
        assert pixels.any(axis=0)[[0, -1]].all() and pixels.any(axis=1)[[0, -1]].all()  # tight
        found[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    np.testing.assert_array_equal(found, expected)
