import pytest
import torch
from torch import nn

from b2inst.ops.points import conv3x3_at, locations


def test_locations_are_row_major_and_shifted_by_half_a_stride():
    points = locations(2, 3, 16)
    assert points.dtype == torch.float32
    assert points.tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]


@pytest.mark.parametrize("bias", [True, False])
def test_conv_at_cells_equals_the_dense_convolution(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    features = torch.randn(2, 5, 4, 6)
    image, y, x = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(6), indexing="ij")
    values = conv3x3_at(conv, features, image.flatten(), y.flatten(), x.flatten())  # corners and borders included
    dense = conv(features).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(values, dense)


def test_conv_at_cells_has_the_gradients_of_the_dense_convolution():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    features = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    cell = torch.tensor([0, 2, 2])
    at = conv3x3_at(conv, features, cell * 0, cell, cell.flip(0))
    dense = conv(features)[0][:, cell, cell.flip(0)].T
    wanted = [features, conv.weight, conv.bias]
    gradients = [torch.autograd.grad(values.sin().sum(), wanted) for values in (at, dense)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_conv_at_no_cells_stays_attached():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    none = torch.zeros(0, dtype=torch.int64)
    values = conv3x3_at(conv, torch.randn(1, 3, 3, 3), none, none, none)
    assert values.shape == (0, 4)
    values.sum().backward()
    assert conv.weight.grad.abs().sum() == 0
