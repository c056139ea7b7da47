import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from b2inst.ops import masks
from b2inst.ops.masks import edges_to_rle, masks_to_rle, paste_masks, run_edges

HEIGHT, WIDTH = 37, 53


def random_case(seed, count=24, side=14):
    """Smooth masks; boxes inside, across every border, around the image, and outside of it."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(count, side, side, generator=generator)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([1.6 * WIDTH, 1.6 * HEIGHT]) - 15
    size = torch.rand(count, 2, generator=generator) * torch.tensor([0.8 * WIDTH, 0.8 * HEIGHT])
    boxes = torch.cat([low, low + size], dim=1)
    boxes[0] = torch.tensor([-30.0, -30.0, WIDTH + 30.0, HEIGHT + 30.0])
    boxes[1] = torch.tensor([-30.0, -30.0, -1.0, -1.0])
    boxes[2] = torch.tensor([WIDTH + 5.0, HEIGHT + 5.0, WIDTH + 20.0, HEIGHT + 20.0])
    return probs, boxes


def encode(mask):
    return coco_mask.encode(mask.numpy().astype("uint8", order="F"))["counts"].decode("ascii")


def test_paste_of_the_same_resolution_copies():
    probs = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))
    pasted = paste_masks(probs, torch.tensor([[2.0, 1.0, 6.0, 5.0]]), 8, 9)[0]
    torch.testing.assert_close(pasted[1:5, 2:6], probs[0], atol=1e-6, rtol=0)
    pasted[1:5, 2:6] = 0
    assert pasted.count_nonzero() == 0


def test_paste_samples_at_pixel_centers():
    # two cells of 2 pixels: the centers lie a quarter and three quarters into the cells
    pasted = paste_masks(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 4, 4)
    assert pasted[0, 1].tolist() == [0, 0.25, 0.75, 0.75]  # the last one fades towards the zeros outside


@pytest.mark.parametrize("seed", range(4))
def test_rle_is_the_encoded_paste(seed):
    probs, boxes = random_case(seed)
    pasted = paste_masks(probs, boxes, HEIGHT, WIDTH) >= 0.5
    codes = list(masks_to_rle(probs, boxes, HEIGHT, WIDTH))
    assert len(codes) == len(boxes)
    for code, mask in zip(codes, pasted, strict=True):
        assert code == {"size": [HEIGHT, WIDTH], "counts": encode(mask)}


def test_rle_with_a_low_threshold_keeps_what_fades_out_of_the_box():
    probs, boxes = random_case(5, side=3)
    pasted = paste_masks(probs.clamp(min=0.6), boxes, HEIGHT, WIDTH) >= 0.02
    for code, mask in zip(masks_to_rle(probs.clamp(min=0.6), boxes, HEIGHT, WIDTH, 0.02), pasted, strict=True):
        assert code["counts"] == encode(mask)


def test_boxes_outside_of_the_image_are_empty():
    probs, boxes = random_case(0)
    areas = [coco_mask.area(code) for code in masks_to_rle(probs.clamp(min=0.9), boxes, HEIGHT, WIDTH)]
    assert areas[0] == HEIGHT * WIDTH and areas[1] == 0 and areas[2] == 0


@pytest.mark.parametrize(
    "box", [[5.0, 5.0, 5.0, 5.0], [5.5, 5.5, 5.5, 5.5], [5.0, 5.0, 5.0, 20.0], [0.0, 0.0, 0.0, 0.0]]
)
def test_boxes_without_area(box):
    probs, boxes = torch.ones(1, 28, 28), torch.tensor([box])
    pasted = paste_masks(probs, boxes, HEIGHT, WIDTH)
    assert pasted.isfinite().all()
    (code,) = masks_to_rle(probs, boxes, HEIGHT, WIDTH)
    assert code["counts"] == encode(pasted[0] >= 0.5)
    assert coco_mask.area(code) == 0


def test_no_masks():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 6).shape == (0, 5, 6)
    assert list(masks_to_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), 5, 6)) == []


def assert_equals_the_paste(probs, boxes, height, width, threshold=0.5):
    codes = masks_to_rle(probs, boxes, height, width, threshold)
    for index, code in enumerate(codes):
        pasted = paste_masks(probs[index : index + 1], boxes[index : index + 1], height, width)[0]
        assert code == {"size": [height, width], "counts": encode(pasted >= threshold)}, index


@pytest.mark.parametrize("side", [1, 2, 7, 56])
def test_values_on_the_threshold_go_where_the_paste_puts_them(side):
    """Masks of 0, a half and 1 in boxes of whole pixels: many values equal the threshold, or miss it by rounding."""
    generator = torch.Generator().manual_seed(side)
    probs = torch.randint(0, 3, (30, side, side), generator=generator) / 2
    boxes = torch.randint(-5, 60, (30, 2), generator=generator).repeat(1, 2).float()
    boxes[:, 2:] += torch.randint(1, 60, (30, 2), generator=generator)
    boxes[20:] += 1 / 3
    assert_equals_the_paste(probs, boxes, 70, 50)
    assert_equals_the_paste(probs, boxes, 70, 50, threshold=0.25)


def test_large_boxes_in_strips(monkeypatch):
    monkeypatch.setattr(masks, "_STRIP", 1000)
    probs, boxes = random_case(7)
    assert_equals_the_paste(probs, boxes * 5, HEIGHT * 5, WIDTH * 5)


def test_large_coordinates():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(6, 28, 28, generator=generator)
    low = torch.rand(6, 2, generator=generator) * 50 + torch.tensor([3800.0, 250.0])
    boxes = torch.cat([low, low + torch.rand(6, 2, generator=generator) * 90], dim=1)
    assert_equals_the_paste(probs, boxes, 400, 4000)


def test_nan_stays_where_it_is():
    probs, boxes = random_case(8, count=4)
    probs[:, 3, 3] = torch.nan
    boxes[:] = torch.tensor([5.0, 5.0, 40.0, 30.0])
    assert_equals_the_paste(probs, boxes, HEIGHT, WIDTH)


def test_any_crop_is_encoded_as_the_image_would_be():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 9, 2)
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = rng.integers(top, height) + 1, rng.integers(left, width) + 1
        image = np.zeros((height, width), np.uint8)
        image[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.choice([0.3, 0.7, 1.0])
        edges = run_edges(image[top:bottom, left:right].T.astype(bool), top, left, height)
        expected = coco_mask.encode(np.asfortranarray(image))["counts"].decode("ascii")
        assert edges_to_rle(edges, int(height), int(width)) == {"size": [height, width], "counts": expected}


def test_memory_is_that_of_the_codes():
    """100 masks of an image of 4000 x 3000, 8 of them as large as it: less than a canvas of bytes."""
    height, width = 3000, 4000
    generator = torch.Generator().manual_seed(0)
    probs = torch.nn.functional.interpolate(torch.rand(100, 1, 5, 5, generator=generator), (56, 56), mode="bicubic")
    low = torch.rand(100, 2, generator=generator) * torch.tensor([width, height])
    boxes = torch.cat([low, low + 400], dim=1)
    boxes[:8] = torch.tensor([0.0, 0.0, width, height])
    tracemalloc.start()
    try:
        codes = list(masks_to_rle(probs[:, 0], boxes, height, width))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(codes) == 100 and coco_mask.area(codes[0]) > height * width / 4
    assert peak < 10e6 < height * width


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_refused(value):
    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0], [1.0, 1.0, value, 5.0]])
    with pytest.raises(ValueError, match=r"boxes\[1\] is \[1.0, 1.0, (nan|inf), 5.0\]"):
        next(masks_to_rle(torch.ones(2, 4, 4), boxes, HEIGHT, WIDTH))
