"""Results of one image, from hand-made detections: frames, masks, polygons and the formats of others."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from b2inst import Prediction
from b2inst.metrics.convert import to_records
from b2inst.ops.rasterize import rasterize
from b2inst.prediction import shown_size
from b2inst.structures import Detections

NAMES, IDS = ("disk", "box", "star"), (2, 3, 5)
SIZE = (40, 60)  # of the image; the network saw it at twice the size


@pytest.fixture()
def detections() -> Detections:
    """A full box, and a ring: hidden in the middle."""
    ring = torch.full((28, 28), 10.0)
    ring[9:19, 9:19] = -10
    return Detections(
        boxes=torch.tensor([[20.0, 10.0, 60.0, 50.0], [60.0, 24.0, 116.0, 80.0]]),
        labels=torch.tensor([2, 0]),
        scores=torch.tensor([0.75, 0.5]),
        box_scores=torch.tensor([0.875, 0.625]),
        mask_logits=torch.stack([torch.full((28, 28), 10.0), ring]),
        size=(80, 120),
    )


@pytest.fixture()
def found(detections: Detections) -> Prediction:
    return Prediction.from_detections(detections, SIZE, NAMES, IDS)


@pytest.fixture()
def nothing(detections: Detections) -> Prediction:
    return Prediction.from_detections(detections[:0], SIZE, NAMES, IDS)


def test_boxes_and_masks_are_in_pixels_of_the_image(found: Prediction) -> None:
    assert len(found) == 2 and found.size == SIZE
    assert found.boxes.tolist() == [[10, 5, 30, 25], [30, 12, 58, 40]]
    full, ring = np.zeros((2, *SIZE), bool)
    full[5:25, 10:30] = True
    ring[12:40, 30:58] = True
    ring[21:31, 39:49] = False
    masks = found.bool_masks()
    assert masks.dtype == bool and np.array_equal(masks, np.stack([full, ring]))


def test_what_belongs_to_an_instance(found: Prediction) -> None:
    assert found.scores.tolist() == [0.75, 0.5] and found.box_scores.tolist() == [0.875, 0.625]
    assert found.labels.tolist() == [2, 0] and found.class_names == ("star", "disk")
    assert found.category_ids.tolist() == [5, 2]
    with pytest.raises(AttributeError):
        found.size = (1, 1)


def test_polygons_fill_back_to_the_masks(found: Prediction) -> None:
    for pieces, mask in zip(found.polygons(), found.bool_masks(), strict=True):
        assert np.array_equal(rasterize([piece.ravel().tolist() for piece in pieces], *SIZE), mask)


def test_coco_records_are_those_of_the_evaluation(found: Prediction, detections: Detections) -> None:
    records = found.to_coco(7)
    assert records == to_records(detections.resized(SIZE), 7, IDS)
    assert json.loads(json.dumps(records))[0] == {
        "image_id": 7, "category_id": 5, "bbox": [10.0, 5.0, 20.0, 20.0], "score": 0.75, "box_score": 0.875,
        "segmentation": found.masks[0],
    }  # fmt: skip
    assert found.masks[0]["size"] == [40, 60] and isinstance(found.masks[0]["counts"], str)


def test_labelme_has_one_shape_a_piece(found: Prediction) -> None:
    content = found.to_labelme("a/b.jpg")
    assert json.loads(json.dumps(content)) == content
    shapes = content.pop("shapes")
    assert content == {
        "version": "5.5.0", "flags": {}, "imagePath": "a/b.jpg", "imageData": None, "imageHeight": 40, "imageWidth": 60,
    }  # fmt: skip
    assert shapes[0] == {
        "label": "star", "points": [[10.0, 5.0], [30.0, 5.0], [30.0, 25.0], [10.0, 25.0]], "group_id": 0,
        "description": "score 0.750", "shape_type": "polygon", "flags": {}, "mask": None,
    }  # fmt: skip
    assert [(shape["label"], shape["group_id"]) for shape in shapes] == [("star", 0), ("disk", 1)]


def test_nothing_found(nothing: Prediction) -> None:
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and nothing.bool_masks().shape == (0, *SIZE)
    assert nothing.to_coco(1) == [] and nothing.polygons() == [] and nothing.to_labelme("x")["shapes"] == []
    image = np.full((*SIZE, 3), 90, np.uint8)
    assert np.array_equal(np.asarray(nothing.draw(image)), image)


def test_the_picture_is_painted_where_the_masks_are(found: Prediction) -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    picture = found.draw(image)
    assert isinstance(picture, Image.Image) and picture.size == (60, 40)
    changed = (np.asarray(picture) != image).any(axis=2)
    assert changed[found.bool_masks().any(axis=0)].mean() > 0.95
    assert not changed[30:, :10].any()  # text is anywhere else


def test_the_picture_may_have_another_size(found: Prediction) -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    assert found.draw(image, max_side=30).size == (30, 20)
    assert found.draw(image, min_side=100).size == (180, 120)
    assert shown_size((3000, 4000), 2000, 320) == (1500, 2000)
    assert shown_size((10, 1500), 2000, 320) == (10, 1500)
    assert shown_size((64, 64), None, 320) == (320, 320)


@pytest.mark.parametrize("size", [SIZE, (20, 30), (17, 31), (120, 180), (1, 1)])
def test_patches_are_the_masks_at_any_size(found: Prediction, size: tuple[int, int]) -> None:
    for patch, mask in zip(found.patches_at(size), found.bool_masks(), strict=True):
        expected = cv2.resize(mask.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        placed = np.zeros(size, np.uint8)
        height, width = patch.mask.shape
        placed[patch.top : patch.top + height, patch.left : patch.left + width] = patch.mask.numpy()
        assert np.array_equal(placed, expected)
        ys, xs = np.nonzero(expected)
        extent = (xs.min(), ys.min(), xs.max(), ys.max()) if len(xs) else (0, 0, 0, 0)
        assert patch.extent == extent
        assert height * width <= (extent[2] - extent[0] + 3) * (extent[3] - extent[1] + 3)


def test_a_picture_of_another_image_is_refused(found: Prediction) -> None:
    with pytest.raises(ValueError, match="60 x 40.*40 x 60"):
        found.draw(np.zeros((60, 40, 3), np.uint8))


def test_labelme_can_be_written_beside_the_image(found: Prediction, tmp_path: Path) -> None:
    coarse = found.to_labelme("x.png", tolerance=1.0)["shapes"][1]["points"]
    assert 4 <= len(coarse) <= len(found.to_labelme("x.png")["shapes"][1]["points"])
