import pytest
import torch
from pycocotools import mask as coco_mask

from b2inst.ops.masks import masks_to_rle, paste_masks

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
