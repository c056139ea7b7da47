import pytest
import torch

from b2inst.models.assembly.linear import LinearCombination
from b2inst.models.assembly.quadrant import QuadrantCombination
from models.wanted import in_box, maps_and_boxes, numbers, wanted


def test_masks_quadrant_by_quadrant():
    bases, boxes, image = maps_and_boxes(5)
    boxes = boxes / 2  # of stride 4 to stride 2
    params = numbers(3, 20)
    masks = QuadrantCombination(mask_size=8)(bases, wanted(boxes, image, params))
    for p in range(3):
        for q in range(4):  # upper left, upper right, lower left, lower right
            whole = sum(bases[image[p], k].clamp(min=0) * params[p, 5 * q + k] for k in range(5))
            rows = slice(0, 4) if q < 2 else slice(4, 8)
            columns = slice(4, 8) if q % 2 else slice(0, 4)
            expected = in_box(whole, boxes[p], 8, 2)[rows, columns]
            torch.testing.assert_close(masks[p, rows, columns], expected, atol=1e-5, rtol=1e-4)


def test_equal_quadrants_are_one_combination():
    bases, boxes, image = maps_and_boxes(5)
    params = 0.01 * numbers(3, 5)  # so small that tanh changes little
    masks = QuadrantCombination(mask_size=8, basis_stride=4)(bases, wanted(boxes, image, params.repeat(1, 4)))
    linear = LinearCombination(mask_size=8)(bases, wanted(boxes, image, params))
    torch.testing.assert_close(masks, linear, atol=1e-4, rtol=1e-3)


def test_sizes():
    assembly = QuadrantCombination()
    assert (assembly.usual_bases, assembly.basis_stride) == (32, 2)
    assert (assembly.num_params(32), assembly.num_params(33)) == (128, 132)
    with pytest.raises(ValueError, match="mask_size=27.*even"):
        QuadrantCombination(mask_size=27)
