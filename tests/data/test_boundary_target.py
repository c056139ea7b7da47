from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from b2inst.data.boundary_target import BoundaryTarget
from b2inst.data.coco import Sample
from b2inst.data.collate import collate
from b2inst.ops.laplacian import laplacian
from b2inst.structures import Batch

RESOLUTIONS = ["stride", "full_maxpool", "detail"]


def _sample(size: tuple[int, int], *boxes: tuple[int, int, int, int], crowd=None) -> Sample:
    """Rectangles (y0, x0, y1, x1) as instances."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    crowded = torch.zeros(size, dtype=torch.bool)
    if crowd is not None:
        crowded[crowd[0] : crowd[2], crowd[1] : crowd[3]] = True
    return Sample(
        image=torch.zeros(3, *size, dtype=torch.uint8),
        masks=masks,
        boxes=torch.tensor([(x0, y0, x1, y1) for y0, x0, y1, x1 in boxes], dtype=torch.float32).reshape(-1, 4),
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        crowd=crowded,
        image_id=1,
        original_size=size,
        file_name="",
    )


def _target(batch: Batch, **options) -> Tensor:
    return BoundaryTarget(**options)(batch).targets.boundary


def _ring(height: int, width: int, y0: int, x0: int, y1: int, x1: int) -> Tensor:
    """One cell wide, in cells."""
    ring = torch.zeros(height, width)
    ring[y0:y1, x0:x1] = 1
    ring[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = 0
    return ring


def _blobs(size: tuple[int, int] = (64, 96), count: int = 5) -> Sample:
    """Irregular instances that overlap."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 8, 12, generator=generator)
    smooth = F.interpolate(noise, size=size, mode="bilinear", align_corners=False)[:, 0]
    return _with_masks(_sample(size, *[(0, 0, 1, 1)] * count), smooth > 0.2)


def _with_masks(sample: Sample, masks: Tensor) -> Sample:
    """Other masks, and their boxes."""
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # torchvision names the last pixel, we its far side
    return replace(sample, masks=masks, boxes=boxes)


# ------------------------------------------------------------------ exact maps


def test_a_rectangle_gives_its_inner_contour():
    batch = collate([_sample((64, 64), (8, 12, 40, 36))])
    result = BoundaryTarget()(batch)
    assert result.targets.boundary.dtype == result.targets.boundary_weight.dtype == torch.float32
    # cell c is inside when its center 4c + 2 is: rows 2 to 9, columns 3 to 8
    assert torch.equal(result.targets.boundary[0], _ring(16, 16, 2, 3, 10, 9))
    assert torch.equal(result.targets.boundary_weight, torch.ones(1, 16, 16))
    assert batch.targets.boundary is None  # the batch given is left as it is


def test_full_resolution_keeps_what_is_thinner_than_a_cell():
    thin = collate([_sample((32, 32), (4, 11, 20, 12), (25, 25, 26, 26))])  # a line and a pixel
    assert _target(thin).sum() == 0
    expected = torch.zeros(8, 8)
    expected[1:5, 2] = 1
    expected[6, 6] = 1
    assert torch.equal(_target(thin, resolution="full_maxpool")[0], expected)


def test_detail_is_the_or_of_two_strides():
    batch = collate([_sample((64, 64), (8, 12, 40, 36))])
    ring = _ring(16, 16, 2, 3, 10, 9)
    coarse = {s: ring[::s, ::s].repeat_interleave(s, dim=0).repeat_interleave(s, dim=1) for s in (2, 4)}
    assert torch.equal(_target(batch, resolution="detail")[0], torch.maximum(ring, coarse[2]))
    fused = 0.6 * ring + 0.3 * coarse[2] + 0.1 * coarse[4]
    torch.testing.assert_close(_target(batch, resolution="detail", soft=True)[0], fused)
    assert torch.equal(_target(batch, resolution="detail", threshold=0.5)[0], ring)


def test_soft_is_the_response_divided_by_its_maximum():
    batch = collate([_sample((64, 64), (8, 12, 40, 36))])
    soft = _target(batch, soft=True)[0]
    assert soft[2, 3] == 1 and soft[2, 5] == pytest.approx(3 / 5)  # of eight neighbors 5 and 3 are outside
    assert torch.equal(soft > 0, _ring(16, 16, 2, 3, 10, 9) > 0)


def test_any_stride():
    batch = collate([_sample((64, 64), (8, 12, 40, 36))])
    assert torch.equal(_target(batch, stride=1)[0], _ring(64, 64, 8, 12, 40, 36))
    assert torch.equal(_target(batch, stride=8)[0], _ring(8, 8, 1, 1, 5, 4))  # x centers 12 to 28 are inside [12, 36)


# ------------------------------------------------------------------ instances


def test_the_border_between_touching_objects_survives_the_maximum_but_not_the_union():
    batch = collate([_sample((64, 64), (8, 8, 40, 24), (8, 24, 40, 40))])
    kept, lost = _target(batch)[0], _target(batch, merge="union")[0]
    assert torch.equal(lost, _ring(16, 16, 2, 2, 10, 10))
    assert torch.equal(kept, torch.maximum(_ring(16, 16, 2, 2, 10, 6), _ring(16, 16, 2, 6, 10, 10)))
    assert kept[5, 5] == kept[5, 6] == 1 and lost[5, 5] == lost[5, 6] == 0


@pytest.mark.parametrize("merge", ["per_instance_max", "union"])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_the_chunk_does_not_matter(merge, resolution):
    batch = collate([_blobs(), _sample((40, 40), (4, 4, 30, 30))])
    whole = _target(batch, merge=merge, resolution=resolution)
    assert torch.equal(whole, _target(batch, merge=merge, resolution=resolution, chunk=1))
    assert torch.equal(whole, _target(batch, merge=merge, resolution=resolution, chunk=2))
    assert 0 < whole.mean() < 1


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_images_without_instances_have_an_empty_map_and_stay_in_the_batch(resolution):
    samples = [_sample((32, 32)), _sample((32, 32), (8, 8, 24, 24)), _sample((32, 32))]
    boundary = _target(collate(samples), resolution=resolution)
    assert boundary.shape == (3, 8, 8) and boundary.sum(dim=(1, 2)).gt(0).tolist() == [False, True, False]
    for count in (1, 2):
        result = BoundaryTarget(resolution=resolution)(collate(samples[:1] * count)).targets
        assert torch.equal(result.boundary, torch.zeros(count, 8, 8))
        assert torch.equal(result.boundary_weight, torch.ones(count, 8, 8))


# ------------------------------------------------------------------ frame, padding, crowds


@pytest.mark.parametrize("size", [(48, 40), (45, 39), (46, 43), (47, 41)])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_the_frame_of_a_smaller_image_is_no_boundary(size, resolution):
    # taken from the padded canvas, the object would end at the frame of its image
    small = _sample(size, (0, 0, *size))
    batch = collate([small, _sample((96, 64), (8, 8, 80, 40))])
    assert _target(batch, resolution=resolution)[0].sum() == 0
    # the same image alone and in a batch has the same target
    cut = _sample(size, (20, 12, size[0], size[1]))
    alone = _target(collate([cut]), resolution=resolution)[0]
    padded = _target(collate([cut, _sample((96, 64))]), resolution=resolution)[0]
    assert padded.sum() > 0
    assert torch.equal(F.pad(alone, (0, 16 - alone.shape[1], 0, 24 - alone.shape[0])), padded)


def test_zero_padding_makes_the_frame_a_boundary():
    batch = collate([_sample((48, 40), (0, 0, 48, 40)), _sample((96, 64))])
    assert torch.equal(_target(batch, padding="zeros")[0], _ring(24, 16, 0, 0, 12, 10))


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_weight_and_target_are_zero_in_the_padding(resolution):
    batch = collate([_sample((45, 39), (0, 0, 45, 30)), _sample((64, 64), (0, 0, 9, 9))])
    targets = BoundaryTarget(resolution=resolution, padding="zeros")(batch).targets
    expected = torch.zeros(16, 16)
    expected[:11, :10] = 1  # the centers 42 < 45 and 38 < 39 are the last ones inside
    assert torch.equal(targets.boundary_weight[0], expected)
    assert torch.equal(targets.boundary_weight[1], torch.ones(16, 16))
    assert targets.boundary[0].sum() > 0 and (targets.boundary[0] * (1 - expected)).sum() == 0


def test_weight_is_zero_in_crowds():
    batch = collate([_sample((32, 32), (8, 8, 24, 24), crowd=(0, 0, 32, 12))])
    targets = BoundaryTarget()(batch).targets
    expected = torch.ones(8, 8)
    expected[:, :3] = 0
    assert torch.equal(targets.boundary_weight[0], expected)
    assert torch.equal(targets.boundary[0], _ring(8, 8, 2, 2, 6, 6))  # the weight hides it, the target stays


def test_images_smaller_than_a_cell():
    targets = BoundaryTarget()(collate([_sample((2, 40), (0, 0, 2, 20)), _sample((1, 1), (0, 0, 1, 1))])).targets
    assert targets.boundary.sum() == 0 and targets.boundary_weight.sum() == 0


# ------------------------------------------------------------------ alignment


@pytest.mark.parametrize("merge", ["per_instance_max", "union"])
def test_full_resolution_does_not_shift_under_a_flip(merge):
    sample = _blobs()
    flipped = _with_masks(sample, sample.masks.flip(2))
    options = {"resolution": "full_maxpool", "merge": merge}
    assert torch.equal(_target(collate([flipped]), **options), _target(collate([sample]), **options).flip(2))


@pytest.mark.parametrize("merge", ["per_instance_max", "union"])
def test_stride_sampling_does_not_shift_under_a_flip(merge):
    # Masks that are constant over the cells: their samples are symmetric, so that nothing may move at all.
    sample = _blobs()
    coarse = sample.masks[:, ::4, ::4].repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    straight, flipped = _with_masks(sample, coarse), _with_masks(sample, coarse.flip(2))
    assert torch.equal(_target(collate([flipped]), merge=merge), _target(collate([straight]), merge=merge).flip(2))
    # Any mask: the sample is half a pixel beside the center of an even cell, so the border moves by a cell at places,
    # but not on the whole.
    square = [_sample((64, 64), (8, x, 40, x + 24)) for x in range(4, 36)]
    back = [_with_masks(s, s.masks.flip(2)) for s in square]
    columns = torch.arange(16) + 0.5
    difference = [
        (a * columns).sum() / a.sum() - (b * columns).sum() / b.sum()
        for a, b in zip(_target(collate(square)), _target(collate(back)).flip(2), strict=True)
    ]
    assert abs(torch.stack(difference).mean()) <= 0.25 + 1e-6  # of a cell: twice the half pixel


def test_samples_round_trip_to_the_locations_of_the_grid():
    cells = torch.rand(16, 16, generator=torch.Generator().manual_seed(1)) < 0.5
    sample = _sample((64, 64), (0, 0, 1, 1))
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 2::4, 2::4] = cells  # drawn at the locations stride // 2 + 4k only
    batch = collate([_with_masks(sample, masks)])
    union = F.pad(cells[None, None].float(), (1, 1, 1, 1), mode="replicate")
    eroded = -F.max_pool2d(-union, 3, stride=1)[0, 0]
    assert torch.equal(_target(batch)[0], cells.float() - eroded)


# ------------------------------------------------------------------ precision, errors


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_autocast_changes_nothing(resolution):
    batch = collate([_blobs()])
    expected = _target(batch, resolution=resolution, soft=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_target(batch, resolution=resolution, soft=True), expected)
    assert expected.dtype == torch.float32


def test_wrong_values_are_refused():
    for options in ({"merge": "mean"}, {"resolution": "half"}, {"padding": "reflect"}):
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name}='{value}'.*choose one of"):
            BoundaryTarget(**options)
    with pytest.raises(ValueError, match="chunk=0"):
        BoundaryTarget(chunk=0)
    with pytest.raises(ValueError, match="no targets"):
        BoundaryTarget()(Batch(collate([_sample((8, 8))]).images))


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
@pytest.mark.parametrize("merge", ["per_instance_max", "union"])
@pytest.mark.parametrize("resolution", ["stride", "full_maxpool"])
def test_the_route_of_a_cpu_equals_that_of_a_device(resolution, merge, padding, monkeypatch):
    batch = collate([_blobs((61, 90)), _sample((64, 96)), _blobs((50, 40), count=3)])
    ours = _target(batch, resolution=resolution, merge=merge, padding=padding)

    def by_filter(masks: Tensor, padding: str, boxes: Tensor | None) -> Tensor:
        return (laplacian(masks.float(), padding) > 0.1).any(dim=0).float()

    monkeypatch.setattr("b2inst.data.boundary_target.any_boundary", by_filter)
    assert 0 < ours.mean() < 1
    assert torch.equal(ours, _target(batch, resolution=resolution, merge=merge, padding=padding))


# ---------------------------------------------------------------------------------------------------------- by class


def _two_images() -> Batch:
    """Blobs of the labels 0, 2, 0, 2, 4, and two squares of label 1 that touch; an image between them has none."""
    first, last = _blobs(), _sample((40, 48), (4, 4, 20, 20), (4, 20, 20, 36))
    first = replace(first, labels=torch.tensor([0, 2, 0, 2, 4]))
    last = replace(last, labels=torch.tensor([1, 1]))
    return collate([first, _sample((40, 48)), last])


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"soft": True}, {"merge": "union"}, {"padding": "zeros", "stride": 2}], ids=str
)
def test_the_map_of_a_class_is_the_target_of_its_instances_alone(resolution: str, options: dict) -> None:
    batch = _two_images()
    made = BoundaryTarget(resolution=resolution, classes=True, **options)(batch).targets
    assert made.class_boundary_index.tolist() == [[0, 0], [0, 2], [0, 4], [2, 1]]
    for (image, label), found in zip(made.class_boundary_index.tolist(), made.class_boundary, strict=True):
        own = (batch.targets.labels == label) & (batch.targets.image_index == image)
        parts = {name: getattr(batch.targets, name)[own] for name in ("boxes", "labels", "image_index", "masks")}
        alone = replace(batch, targets=replace(batch.targets, **parts))
        assert torch.equal(found, _target(alone, resolution=resolution, **options)[image]) and found.any()
    plain = BoundaryTarget(resolution=resolution, **options)(batch).targets
    assert torch.equal(made.boundary, plain.boundary) and plain.class_boundary is None


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_the_maximum_over_the_classes_is_the_boundary_of_all(resolution: str) -> None:
    made = BoundaryTarget(resolution=resolution, classes=True)(_two_images()).targets
    largest = torch.zeros_like(made.boundary)
    for (image, _), found in zip(made.class_boundary_index.tolist(), made.class_boundary, strict=True):
        largest[image] = torch.maximum(largest[image], found)
    assert torch.equal(largest, made.boundary)


def test_a_batch_without_instances_has_no_map_of_a_class() -> None:
    made = BoundaryTarget(classes=True)(collate([_sample((32, 64))])).targets
    assert made.class_boundary.shape == (0, 8, 16) and made.class_boundary_index.shape == (0, 2)
