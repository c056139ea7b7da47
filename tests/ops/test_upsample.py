import pytest
import torch

from b2inst.ops.upsample import aligned_bilinear


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
