import pytest
import torch

from b2inst.structures import Batch, Detections, ImageBatch, Targets


def images(sizes=((5, 9), (8, 16)), height=8, width=16):
    sizes = torch.tensor(sizes)
    pixels = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    return ImageBatch(pixels, sizes, sizes.clone(), torch.arange(len(sizes)), ("a.png", "b.png"))


def detections():
    return Detections(
        boxes=torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 15.0, 10.0]]),
        labels=torch.tensor([1, 2]),
        scores=torch.tensor([0.9, 0.8]),
        box_scores=torch.tensor([0.95, 0.85]),
        mask_logits=torch.zeros(2, 4, 4),
        size=(20, 40),
    )


def test_valid_area_counts_sample_points():
    area = images().valid_area()
    assert area.shape == (2, 8, 16) and area[0].sum() == 45 and area[1].all()
    # points at 2, 6 down and 2, 6, 10, 14 across, in an area of 5 x 9
    assert images().valid_area(4)[0].tolist() == [[True, True, False, False], [False] * 4]


def test_nested_batches_travel_and_keep_what_is_no_tensor():
    targets = Targets(*[torch.zeros(1)] * 5)
    moved = Batch(images(), targets).to("meta")
    assert len(moved) == 2 and len(moved.targets) == 1
    assert moved.images.pixels.device.type == moved.targets.crowd.device.type == "meta"
    assert moved.images.file_names == ("a.png", "b.png") and moved.targets.boundary is None
    assert Batch(images()).to("cpu").targets is None


def test_resized_scales_the_boxes_alone():
    resized = detections().resized((40, 20))
    assert resized.size == (40, 20)
    assert resized.boxes.tolist() == [[0, 0, 5, 40], [2.5, 10, 7.5, 20]]
    assert torch.equal(resized.mask_logits, detections().mask_logits)


@pytest.mark.parametrize("index", [slice(1, 2), torch.tensor([1]), torch.tensor([False, True])])
def test_index_picks_from_every_field(index):
    picked = detections()[index]
    assert len(picked) == 1 and picked.size == (20, 40)
    assert (picked.labels.item(), picked.mask_logits.shape) == (2, (1, 4, 4))
    assert picked.box_scores.item() == pytest.approx(0.85)
