"""Polygons that follow the augmentation point by point, against bitmaps that follow it pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import albumentations as A  # noqa: N812
import numpy as np
import pytest
import torch

from b2inst.data.augment import Augment, Crop, Rescale, Resize, color, flip, flip_vertical, rotate90
from b2inst.data.coco import augment_objects
from b2inst.data.index import CocoObject
from b2inst.ops.rasterize import assemble, rasterize
from b2inst.ops.rois import crop_masks
from data.make_coco import write_coco

SIZE = (60, 84)
PIPELINES = {
    "nothing": {},
    "flip": {"flip": flip(1.0)},
    "vertical": {"flip": flip_vertical(1.0), "color": color()},
    "turn": {"turn": rotate90()},
    "crop": {"crop": Crop(40)},
    "larger": {"resize": Resize(155), "flip": flip(1.0)},
    "smaller": {"resize": Rescale(0.5), "turn": rotate90()},
    "all": {"crop": Crop((30, 50)), "resize": Resize([64, 96], sampling="range"), "flip": flip(), "turn": rotate90()},
}


def _squares() -> np.ndarray:
    """An index map with a different number in each square of 6 pixels."""
    rows, columns = np.arange(SIZE[0]) // 6, np.arange(SIZE[1]) // 6
    return (rows[:, None] * 14 + columns[None] + 1).astype(np.uint16)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", PIPELINES)
def test_points_go_where_the_pixels_go(name, seed):
    augment, squares = Augment(PIPELINES[name]), _squares()
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    moved, maps, matrix = augment.with_matrix(image, squares[None], seed)
    same, same_maps = augment(image, squares[None], seed)
    np.testing.assert_array_equal(moved, same)
    np.testing.assert_array_equal(maps, same_maps)
    scale = abs(np.linalg.det(matrix[:, :2]))
    for value in range(1, squares.max() + 1):
        where = np.argwhere(maps[0] == value)
        if len(where) < 36 * scale * 0.99:  # cut by the frame
            continue
        y, x = np.argwhere(squares == value).mean(axis=0) + 0.5
        center = where.mean(axis=0) + 0.5
        tolerance = 1e-4 if name not in ("larger", "smaller", "all") else 0.51
        np.testing.assert_allclose((matrix @ (x, y, 1))[::-1], center, atol=tolerance)


def test_other_transforms_take_the_bitmaps():
    assert Augment({"flip": flip(), "noise": A.GaussNoise()}).moves_points
    assert not Augment({"flip": flip(), "turn": A.Rotate(10)}).moves_points
    assert not Augment({"one": A.OneOf([flip(), A.Rotate(10)])}).moves_points


def _objects() -> list[CocoObject]:
    angle = np.arange(12) / 12 * 2 * np.pi
    circle = np.stack([20 + 14 * np.cos(angle), 25 + 14 * np.sin(angle)], axis=1)
    square = np.array([[50.0, 10], [74, 10], [74, 30], [50, 30]])
    bitmap = np.zeros(SIZE, np.uint8)
    bitmap[36:52, 44:78] = 1
    runs = np.diff(np.flatnonzero(np.diff(bitmap.T.ravel(), prepend=0)), prepend=0)
    counts = [*runs.tolist(), bitmap.size - int(runs.sum())]
    return [
        CocoObject(1, 0, False, [circle.ravel()]),
        CocoObject(2, 1, False, {"size": list(SIZE), "counts": counts}),
        CocoObject(3, 0, True, [square.ravel() + 2]),
        CocoObject(4, 2, False, [square.ravel()]),
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PIPELINES)
def test_objects_agree_with_those_moved_as_bitmaps(name, seed):
    image, augment, objects = np.zeros((*SIZE, 3), np.uint8), Augment(PIPELINES[name]), _objects()
    ours = augment_objects(image, objects, augment, seed)
    # a function is all that is known of other augmentations
    theirs = augment_objects(image, objects, lambda image, maps, seed: augment(image, maps, seed), seed)
    np.testing.assert_array_equal(ours[2], theirs[2])
    size = ours[0].shape[:2]
    (a, a_boxes, a_kept), (b, b_boxes, b_kept) = assemble(ours[1], *size), assemble(theirs[1], *size)
    assert a_kept.tolist() == b_kept.tolist()
    for ours_one, theirs_one, a_box, b_box in zip(a, b, a_boxes, b_boxes, strict=True):
        y, x = np.nonzero(ours_one)
        assert a_box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert np.abs(a_box - b_box).max() <= 3  # the bitmap is as coarse as the file
        if theirs_one.sum() > 100:
            assert (ours_one & theirs_one).sum() / (ours_one | theirs_one).sum() > 0.85


def _ious(objects: list[np.ndarray], scale: float, follow: bool) -> np.ndarray:
    """IoU of 56 x 56 mask targets with those from masks drawn eight times as large."""
    size, fine = (96, 128), 8
    augment = Augment({"resize": Rescale(scale)})
    moved = augment if follow else lambda image, maps, seed: augment(image, maps, seed)
    found = [CocoObject(k, 0, False, [p.ravel()]) for k, p in enumerate(objects)]
    image, patches, _ = augment_objects(np.zeros((*size, 3), np.uint8), found, moved, 0)
    masks, boxes, kept = assemble(patches, *image.shape[:2])
    boxes = torch.from_numpy(boxes)
    ours = crop_masks(torch.from_numpy(masks), boxes, 56).bool()
    large = [rasterize([objects[k].ravel() * scale * fine], *(side * fine for side in image.shape[:2])) for k in kept]
    theirs = crop_masks(torch.from_numpy(np.stack(large)), boxes * fine, 56).bool()
    return ((ours & theirs).sum((1, 2)) / (ours | theirs).sum((1, 2))).numpy()


def test_mask_targets_are_those_of_fine_masks():
    rng = np.random.default_rng(0)
    objects = []
    for radius in np.geomspace(8, 40, 30):  # pixels of the file
        angle = np.sort(rng.random(24)) * 2 * np.pi
        reach = radius * rng.uniform(0.75, 1.2, 24)
        objects.append(np.stack([64 + reach * np.cos(angle), 48 + reach * np.sin(angle)], axis=1).clip(0, [128, 96]))
    points, bitmaps = (_ious(objects, 5 / 3, follow) for follow in (True, False))
    assert points.mean() >= 0.95
    assert points.mean() > bitmaps.mean()


def test_the_set_has_polygons_and_rle(tmp_path: Path):
    from b2inst.data.coco import CocoDataset
    from b2inst.data.index import CocoIndex

    root = write_coco(tmp_path)
    index = CocoIndex.read(root / "annotations/instances_train.json")
    plain = CocoDataset(index, root / "train")
    as_bitmaps = CocoDataset(index, root / "train", lambda image, maps, seed: (image, maps))
    for ours, theirs in zip(plain, as_bitmaps, strict=False):  # without a change of geometry they are the same
        assert torch.equal(ours.masks, theirs.masks) and torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.crowd, theirs.crowd)
