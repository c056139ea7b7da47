from __future__ import annotations

import pytest
import torch

from b2inst.data.coco import Sample
from b2inst.data.collate import collate


def _sample(height: int, width: int, instances: int, image_id: int = 1) -> Sample:
    masks = torch.zeros(instances, height, width, dtype=torch.bool)
    masks[:, 1:3, 2:4] = True
    crowd = torch.zeros(height, width, dtype=torch.bool)
    crowd[-1, -1] = True
    return Sample(
        image=torch.full((3, height, width), 7, dtype=torch.uint8),
        masks=masks,
        boxes=torch.tensor([[2.0, 1.0, 4.0, 3.0]]).repeat(instances, 1),
        labels=torch.arange(instances),
        crowd=crowd,
        image_id=image_id,
        original_size=(2 * height, 2 * width),
        file_name=f"{image_id}.jpg",
    )


def test_images_are_padded_to_the_right_and_below():
    batch = collate([_sample(20, 40, 2, image_id=5), _sample(33, 10, 1, image_id=9)])
    images = batch.images
    assert images.pixels.shape == (2, 3, 64, 64) and images.pixels.dtype == torch.uint8
    assert (images.pixels[0, :, :20, :40] == 7).all() and int(images.pixels[0].sum()) == 7 * 3 * 20 * 40
    assert images.sizes.tolist() == [[20, 40], [33, 10]] and images.sizes.dtype == torch.int64
    assert images.original_sizes.tolist() == [[40, 80], [66, 20]]
    assert images.image_ids.tolist() == [5, 9] and images.file_names == ("5.jpg", "9.jpg")


def test_instances_of_all_images_are_in_one_list():
    targets = collate([_sample(20, 40, 2), _sample(32, 10, 0), _sample(8, 8, 1)]).targets
    assert targets.masks.shape == (3, 32, 64) and targets.masks.dtype == torch.bool
    assert targets.image_index.tolist() == [0, 0, 2] and targets.image_index.dtype == torch.int64
    assert targets.labels.tolist() == [0, 1, 0]
    assert targets.boxes.shape == (3, 4) and targets.boxes.dtype == torch.float32
    assert targets.masks.sum(dim=(1, 2)).tolist() == [4, 4, 4] and targets.masks[:, 1:3, 2:4].all()
    assert targets.crowd.shape == (3, 32, 64)
    assert torch.nonzero(targets.crowd).tolist() == [[0, 19, 39], [1, 31, 9], [2, 7, 7]]
    assert targets.boundary is None and targets.boundary_weight is None


@pytest.mark.parametrize("count", [1, 2])
def test_batches_without_any_instance(count):
    batch = collate([_sample(20, 40, 0)] * count)
    targets = batch.targets
    assert len(batch) == count and len(targets) == 0
    assert targets.boxes.shape == (0, 4) and targets.labels.shape == (0,) and targets.image_index.shape == (0,)
    assert targets.masks.shape == (0, 32, 64) and targets.crowd.shape == (count, 32, 64)
    assert targets.labels.dtype == targets.image_index.dtype == torch.int64


def test_the_divisor_is_a_choice_and_exact_sizes_are_not_padded():
    assert collate([_sample(20, 40, 1)], divisor=8).images.pixels.shape == (1, 3, 24, 40)
    assert collate([_sample(32, 64, 1)]).images.pixels.shape == (1, 3, 32, 64)


def test_a_batch_can_be_moved():
    batch = collate([_sample(20, 40, 2)]).to("meta")
    assert batch.targets.masks.device.type == batch.images.sizes.device.type == "meta"
