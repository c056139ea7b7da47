import pytest
import torch

from b2inst.ops.rois import crop_masks, fpn_level, with_image_index


def test_image_index_comes_first():
    rois = with_image_index(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([7]))
    assert rois.tolist() == [[7, 1, 2, 3, 4]]


def test_crop_of_the_whole_mask_is_the_mask():
    mask = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    square = mask[:, :, :6]
    box = torch.tensor([[0.0, 0.0, 6.0, 6.0]]).repeat(3, 1)
    assert torch.equal(crop_masks(mask, box, 6), square.float())


def test_cells_are_compared_with_half_their_area():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :4, :2] = True  # the upper left cell of 4 x 4 pixels is half covered
    box = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    assert crop_masks(mask, box, 2).tolist() == [[[1, 0], [0, 0]]]
    mask[0, 0, 0] = False
    assert crop_masks(mask, box, 2).tolist() == [[[0, 0], [0, 0]]]


def test_crop_is_zero_outside_of_the_image():
    crops = crop_masks(torch.ones(1, 8, 8, dtype=torch.bool), torch.tensor([[-8.0, 0.0, 8.0, 8.0]]), 4)
    assert crops[0, 0].tolist() == [0, 0, 1, 1]


def test_chunks_do_not_change_the_crops():
    masks = torch.rand(7, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    boxes = torch.tensor([[1.0, 2.0, 9.5, 14.0]]).repeat(7, 1) + torch.arange(7.0)[:, None] / 4
    crops = crop_masks(masks, boxes, 5, chunk=3)
    one_by_one = [crop_masks(masks[i : i + 1], boxes[i : i + 1], 5) for i in range(7)]
    assert torch.equal(crops, torch.cat(one_by_one))


def test_no_masks():
    assert crop_masks(torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, 4), 5).shape == (0, 5, 5)


@pytest.mark.parametrize(
    ("side", "level"), [(0, 3), (32, 3), (223, 3), (224, 4), (447, 4), (448, 5), (2000, 5)]
)  # fmt: skip
def test_fpn_level(side, level):
    assert fpn_level(torch.tensor([[10.0, 10.0, 10.0 + side, 10.0 + side]])).tolist() == [level]
