import torch

from b2inst.ops.canvas import masks_on_canvas
from b2inst.ops.masks import paste_masks


def numbers(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_by_hand():
    """An image of 8 x 16 pixels on 4 x 4 cells: these are of 2 x 4 pixels, with centers at 1, 3, 5, 7 and 2, 6, ..."""
    mask = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    box = torch.tensor(
        [[2.0, 2.0, 10.0, 6.0]]
    )  # cells of the mask: x 2 to 6 to 10, y 2 to 4 to 6, centers 4, 8 and 3, 5
    found = masks_on_canvas(mask, box, torch.tensor([[8, 16]]), 4)
    # x = 2 is half a cell left of the first center (weight 1/2 of what is there, 1/2 of the 0 beyond), x = 6 between
    # both, x = 10 half a cell right of the last one; y = 3 and 5 are centers, y = 1 and 7 one cell away.
    rows = [[0, 0, 0, 0], [0.5, 1.5, 1, 0], [1.5, 3.5, 2, 0], [0, 0, 0, 0]]
    assert torch.equal(found[0], torch.tensor(rows))


def test_the_canvas_is_what_pasting_gives_on_a_squeezed_image():
    boxes = torch.tensor([[3.0, 5.0, 90.0, 60.0], [-4.0, 2.0, 30.0, 70.0], [50.0, 40.0, 50.5, 40.25], [0.0, 0, 96, 64]])
    probs, side = numbers(4, 7, 7), 33
    sizes = torch.tensor([[64, 96], [64, 96], [64, 96], [30, 50]])
    found = masks_on_canvas(probs, boxes, sizes, side)
    scaled = boxes * side / sizes.flip(1).repeat(1, 2)
    torch.testing.assert_close(found, paste_masks(probs, scaled, side, side), atol=1e-5, rtol=1e-4)


def test_no_masks_and_half_precision():
    none = masks_on_canvas(torch.zeros(0, 7, 7), torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64), 9)
    assert none.shape == (0, 9, 9)
    given = numbers(1, 7, 7), torch.tensor([[3.0, 5.0, 90.0, 60.0]]), torch.tensor([[64, 96]])
    with torch.autocast("cpu", torch.bfloat16):
        low = masks_on_canvas(*given, 33)
    assert torch.equal(low, masks_on_canvas(*given, 33))
