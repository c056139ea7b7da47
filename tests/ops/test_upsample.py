import pytest
import torch

from b2inst.ops.upsample import aligned_bilinear, onto_image


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_by_hand(factor):
    row = torch.randn(5, generator=torch.Generator().manual_seed(0))
    column = torch.tensor([2.0, -1.0, 3.0])
    enlarged = aligned_bilinear((column[:, None] * row)[None, None], factor)[0, 0]

    def at(values, i):
        place = min(max((i - factor // 2) / factor, 0), len(values) - 1)
        low = int(place)
        return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)

    expected = [[at(column, i) * at(row, j) for j in range(5 * factor)] for i in range(3 * factor)]
    torch.testing.assert_close(enlarged, torch.tensor(expected))


def test_maps_onto_the_image_that_they_show():
    """A ramp over the cells stays one, the padding is cut off, and the image has the scale of its file."""
    x = torch.arange(8.0) * 4 + 2  # centers of the cells in pixels of the input, 32 wide
    maps = torch.stack([x.expand(6, 8), torch.full((6, 8), 0.5)])
    shown = onto_image(maps, (24, 32), (20, 28), (20, 28))
    assert shown.shape == (2, 20, 28)
    torch.testing.assert_close(shown[0, 3, 2:], torch.arange(2, 28) + 0.5)
    halved = onto_image(maps, (24, 32), (20, 28), (10, 14))
    assert halved.shape == (2, 10, 14) and (halved[1] == 0.5).all()
    torch.testing.assert_close(halved[0, 3, 1:], (torch.arange(1, 14) + 0.5) * 2)
