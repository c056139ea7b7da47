import numpy as np
import pytest
import torch

from b2inst.ops.distance import clipped_distance, signed_distance
from b2inst.ops.laplacian import boundary


def points(density, shape=(5, 23, 31), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def euclidean(mask):
    """Distance of each pixel to the nearest True pixel, without a limit."""
    ndimage = pytest.importorskip("scipy.ndimage")
    return np.stack([ndimage.distance_transform_edt(~one) for one in mask.numpy()])


@pytest.mark.parametrize("radius", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("density", [0.005, 0.05, 0.5])
def test_equals_the_exact_transform_clipped(radius, density):
    mask = points(density)
    mask[:, 7, 11] = True  # scipy has no answer for a map without a point
    expected = np.minimum(euclidean(mask), radius)
    np.testing.assert_allclose(clipped_distance(mask, radius).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("radius", [1, 4, 50])
def test_signed_distance_equals_its_definition(radius):
    mask = points(0.6)
    expected = np.where(mask.numpy(), -(euclidean(~mask) - 1), euclidean(mask)).clip(-radius, radius)
    np.testing.assert_allclose(signed_distance(mask, radius).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_a_knight_move_by_hand():
    mask = torch.zeros(1, 3, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    expected = torch.tensor([[0, 1, 4, 9], [1, 2, 5, 10], [4, 5, 8, 13]]).sqrt().clamp(max=3)
    torch.testing.assert_close(clipped_distance(mask, 3)[0], expected)


def test_maps_without_a_point_and_full_maps():
    mask = torch.stack([torch.zeros(4, 6), torch.ones(4, 6)]).bool()
    assert clipped_distance(mask, 3)[0].unique().tolist() == [3]
    assert clipped_distance(mask, 3)[1].unique().tolist() == [0]
    assert signed_distance(mask, 3)[0].unique().tolist() == [0]
    assert signed_distance(mask, 3)[1].unique().tolist() == [-3]


def test_signed_distance_of_a_contour_is_never_negative():
    y, x = torch.meshgrid(torch.arange(56), torch.arange(56), indexing="ij")
    disk = ((y - 27.5) ** 2 + (x - 27.5) ** 2 <= 400)[None]
    phi = signed_distance(boundary(disk) > 0, 100)
    assert phi.min() == 0
    assert 19 < phi.max() < 20
    assert phi.mean().item() == pytest.approx(6.5, abs=0.3)
    assert signed_distance(disk, 100).min() < -15  # the disk itself has an inside


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 1, 6), (2, 6, 1), (1, 1, 1)])
def test_small_shapes(shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    assert clipped_distance(mask, 4).shape == shape
    assert signed_distance(mask, 4).shape == shape
    assert clipped_distance(mask, 4).dtype == torch.float32


def test_chunks_give_the_same_maps():
    mask = points(0.05)
    whole = signed_distance(mask, 6)
    assert torch.equal(torch.cat([signed_distance(part, 6) for part in mask.split(2)]), whole)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="torch.float32.*torch.bool.*target > 0"):
        clipped_distance(torch.zeros(1, 2, 2), 3)
    with pytest.raises(ValueError, match="radius=0"):
        signed_distance(torch.zeros(1, 2, 2, dtype=torch.bool), 0)
