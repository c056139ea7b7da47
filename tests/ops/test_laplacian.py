import pytest
import torch
import torch.nn.functional as F

from b2inst.ops.laplacian import any_boundary, boundary, laplacian, soft_boundary


def blobs(count=4, height=13, width=17, seed=0):
    """Random masks with thick and thin parts, some of them at the border."""
    noise = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)[:, 0] > 0.48


def by_convolution(masks, padding):
    kernel = -torch.ones(1, 1, 3, 3, dtype=masks.dtype)
    kernel[0, 0, 1, 1] = 8
    mode = {"replicate": "replicate", "zeros": "constant"}[padding]
    return F.conv2d(F.pad(masks[:, None], (1, 1, 1, 1), mode=mode), kernel)[:, 0]


def disk(side=56, radius=20):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    center = (side - 1) / 2
    return ((y - center) ** 2 + (x - center) ** 2 <= radius**2)[None]


def test_response_of_a_corner():
    mask = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]], dtype=torch.uint8)
    assert laplacian(mask)[0].tolist() == [[0, 3, -3], [3, 5, -2], [-3, -2, -1]]
    assert laplacian(mask, padding="zeros")[0].tolist() == [[5, 5, -2], [5, 5, -2], [-2, -2, -1]]


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_equals_a_convolution(padding):
    masks = blobs()
    assert torch.equal(laplacian(masks, padding), by_convolution(masks.float(), padding))
    soft = torch.rand(3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(laplacian(soft, padding), by_convolution(soft, padding))


def test_inner_band_is_mask_minus_erosion():
    masks = blobs()
    # -max_pool(-x) ignores what is outside the map, as replicate padding does
    eroded = -F.max_pool2d(-masks.float()[:, None], 3, 1, 1)[:, 0] > 0.5
    assert torch.equal(boundary(masks) > 0, masks & ~eroded)


@pytest.mark.parametrize("band", ["inner", "both", "dilate_2"])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_shifts_of_bool_masks_equal_the_filter(band, padding):
    masks = blobs()
    by_filter = boundary(masks.float(), padding=padding, band=band)
    assert 0 < by_filter.mean() < 1
    assert torch.equal(boundary(masks, padding=padding, band=band), by_filter)
    assert torch.equal(boundary(masks.to(torch.uint8), padding=padding, band=band), by_filter)


def test_a_mask_that_fills_its_crop():
    full = torch.ones(1, 56, 56, dtype=torch.bool)
    for mask in (full, full.float()):
        assert boundary(mask, padding="zeros").sum() == 220
        assert boundary(mask, padding="replicate").sum() == 0


@pytest.mark.parametrize("threshold", [0, 0.1, 0.9])
def test_every_threshold_below_one_gives_the_same_map(threshold):
    masks = blobs()
    assert torch.equal(boundary(masks.float(), threshold), boundary(masks.float(), 0.5))


def test_threshold_above_one_counts_neighbors():
    corner = torch.zeros(1, 5, 5)
    corner[0, 1:4, 1:4] = 1  # corners of the square respond with 5, its sides with 3
    assert boundary(corner, 4)[0, 1].tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(boundary(corner.bool(), 4), boundary(corner, 4))


def test_bands_of_a_dot():
    dot = torch.zeros(1, 7, 7, dtype=torch.bool)
    dot[0, 3, 3] = True
    assert boundary(dot).sum() == 1
    assert boundary(dot, band="both").sum() == 9
    assert boundary(dot, band="dilate_1").sum() == 9
    assert boundary(dot, band="dilate_2").sum() == 25


def test_boundary_dice_of_a_disk_moved_by_one_pixel():
    def dice(band):
        here, moved = (boundary(mask, band=band) for mask in (disk(), disk().roll(1, dims=2)))
        return (2 * (here * moved).sum() / (here.sum() + moved.sum())).item()

    assert 0.4 < dice("inner") < 0.6  # a contour of one pixel is a strict measure, one of two less so
    assert 0.7 < dice("both") < 0.85


def test_soft_boundary_is_divided_by_the_maximum_of_each_map():
    masks = torch.zeros(3, 5, 5)
    masks[0, 2, 2] = 1
    masks[1, 1:4, 1:4] = 0.5
    masks[2] = 0.3  # constant: responses are rounding noise and must not be blown up
    edges = boundary(masks, soft=True)
    assert edges[0].max() == 1 and edges[0].sum() == 1
    assert edges[1, 1].tolist() == pytest.approx([0, 1, 0.6, 1, 0])
    assert edges[2].max() < 0.05
    assert boundary(masks, soft=True, band="both")[0].sum() == 2  # 8 / 8 and eight times 1 / 8


def test_soft_boundary_of_an_empty_mask_is_zero():
    assert torch.equal(boundary(torch.zeros(2, 4, 4, dtype=torch.bool), soft=True), torch.zeros(2, 4, 4))


def test_differentiable_soft_boundary():
    mask = torch.zeros(1, 5, 5)
    mask[0, 1:4, 1:4] = 1
    assert soft_boundary(mask)[0, 1].tolist() == [0, 5 / 8, 3 / 8, 5 / 8, 0]
    probs = torch.rand(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_boundary, (probs,))
    assert torch.autograd.gradcheck(lambda x: laplacian(x, "zeros"), (probs,))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_output_is_float32_also_under_autocast(dtype):
    masks = blobs().to(dtype)
    expected = laplacian(masks.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert laplacian(masks).dtype == torch.float32
        assert torch.equal(laplacian(masks), expected)
        assert boundary(masks, band="dilate_1").dtype == torch.float32
        assert soft_boundary(torch.rand(1, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("options", [{}, {"band": "both"}, {"band": "dilate_3"}, {"soft": True}, {"padding": "zeros"}])
def test_no_instances(dtype, options):
    assert boundary(torch.zeros(0, 6, 4, dtype=dtype), **options).shape == (0, 6, 4)


def test_the_input_is_left_as_it_was():
    masks = blobs()
    before = masks.clone()
    boundary(masks, band="both", padding="zeros")
    assert torch.equal(masks, before)


def test_one_pixel_map():
    one = torch.ones(1, 1, 1, dtype=torch.bool)
    assert boundary(one).item() == 0
    assert boundary(one, padding="zeros").item() == 1


def test_errors_name_the_remedy():
    masks = torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\).*\(B, H, W\)"):
        boundary(masks[None])
    with pytest.raises(ValueError, match="'reflect'.*'replicate' or 'zeros'"):
        laplacian(masks, "reflect")
    for band in ("outer", "dilate_0", "dilate_x"):
        with pytest.raises(ValueError, match=f"{band}.*'inner', 'both' or 'dilate_<k>'"):
            boundary(masks, band=band)
    with pytest.raises(ValueError, match=r"threshold=25.*\[0, 8\)"):
        boundary(masks, threshold=25)


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("seed", range(3))
def test_any_boundary_is_the_maximum_of_the_convolutions(padding, seed):
    masks = blobs(seed=seed)
    masks[1] = False  # an empty one, one that is everything, and one of a single pixel in a corner
    masks[2] = seed == 0
    masks[3] = False
    masks[3, -1, -1] = True
    expected = (by_convolution(masks.float(), padding) > 0.1).any(dim=0).float()
    assert torch.equal(any_boundary(masks, padding), expected)
    assert torch.equal(any_boundary(masks[:, 1:, 2:-1], padding), boundary(masks[:, 1:, 2:-1], padding=padding).amax(0))
    bounds = torch.tensor([[0, 0, 17, 13], [4, 4, 4, 4], [-3, -2, 20, 30], [16, 12, 17, 13]])
    assert torch.equal(any_boundary(masks, padding, bounds), expected)
    strided = masks[:, 1::2, ::3]
    assert torch.equal(any_boundary(strided, padding), boundary(strided, padding=padding).amax(dim=0))


def test_any_boundary_of_nothing():
    assert torch.equal(any_boundary(torch.zeros(0, 3, 4, dtype=torch.bool)), torch.zeros(3, 4))
    assert any_boundary(torch.zeros(2, 0, 4, dtype=torch.bool)).shape == (0, 4)
