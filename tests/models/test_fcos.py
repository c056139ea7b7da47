import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss

from b2inst.losses.giou import giou_ltrb
from b2inst.models.detector_base import Locations
from b2inst.models.fcos import FCOS, FCOSOutputs, _iou_ltrb
from b2inst.models.fcos_targets import centerness
from models import build


def count(module):
    return sum(p.numel() for p in module.parameters())


def head(strides=(8, 16, 32, 64, 128), num_classes=3, num_params=0, **options):
    torch.manual_seed(0)
    return FCOS(32, num_classes, num_params, list(strides), **{"num_convs": 1, **options})


def test_parameters_of_the_published_size():
    strides = [8, 16, 32, 64, 128]
    detector = FCOS(256, 80, 4 * 196, strides)
    assert count(detector) - count(detector.params) == 4_920_661
    assert count(detector.params) == 1_807_120
    assert count(FCOS(256, 80, 5 * 196, strides)) - count(detector) == 451_780
    assert count(FCOS(256, 80, 4 * 196, strides, use_scale=True)) - count(detector) == 5


def test_shapes_and_start():
    detector = head()
    shapes = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    outputs = detector([torch.randn(2, 32, *shape) for shape in shapes])
    for name, channels in (("cls_logits", 3), ("ltrb", 4), ("quality_logits", 1), ("tower", 32)):
        assert [tuple(t.shape) for t in getattr(outputs, name)] == [(2, channels, *shape) for shape in shapes]
    assert all((level >= 0).all() for level in outputs.ltrb)
    assert detector.cls_logits.bias.tolist() == [pytest.approx(-math.log(99))] * 3
    assert detector.params is None


def test_scales_are_learned_per_level():
    detector = head(strides=(8, 16), sizes_of_interest=[64], use_scale=True)
    features = [torch.randn(1, 32, 4, 4)] * 2
    with torch.no_grad():
        detector.scales.copy_(torch.tensor([1.0, 3.0]))
    low, high = detector(features).ltrb
    torch.testing.assert_close(high, 3 * low)


def test_origins():
    places = Locations(*(torch.tensor([0, 2, 4]), torch.zeros(3, dtype=torch.int64), torch.tensor([1, 0, 1])),
                       torch.tensor([3, 2, 0]), torch.zeros(3, 4), torch.zeros(3), torch.zeros(3))  # fmt: skip
    points, reach = head().origins(places)
    assert points.tolist() == [[28, 12], [80, 16], [64, 192]]  # x and y, the middle of cells of 8, 32 and 128
    assert reach.tolist() == [64, 256, 1024]


def test_share_tower_is_used():
    detector = head(strides=(8,), sizes_of_interest=[], num_share_convs=1, num_convs=0)
    features = torch.randn(1, 32, 4, 4)
    torch.testing.assert_close(detector([features]).tower[0], detector.share_tower(features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_quality": "center"}, "'center'.*ctrness, iou"),
        ({"normalizer": "mean"}, "'mean'.*fg, moving_fg, all"),
        ({"sizes_of_interest": [64]}, "5 levels need 4"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)


SMALL = [24, 48, 96, 192]  # with these, the instances of small images belong to several levels

# ---- losses -----------------------------------------------------------------------------------------------------


def outputs_of(detector, height=64, width=96, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(math.ceil(height / s), math.ceil(width / s)) for s in detector.strides]
    return detector([torch.randn(images, 32, *shape, generator=generator) for shape in shapes])


def by_cell(levels, places):
    """(P, C): values of each place."""
    return torch.stack([levels[i][n, :, y, x] for i, n, y, x in zip(*cells(places), strict=True)])


def cells(places):
    return places.level.tolist(), places.image.tolist(), places.y.tolist(), places.x.tolist()


def test_losses_by_hand():
    detector = head(sizes_of_interest=SMALL)
    outputs = outputs_of(detector)
    targets = build.targets(build.BATCHES["normal"])
    losses, positives, normalizer = detector.losses(outputs, targets)
    assert set(positives.instance.tolist()) == {0, 1, 2} and len(positives.level.unique()) > 1
    assert torch.equal(positives.labels, targets.labels[positives.instance])
    assert torch.equal(positives.image, targets.image_index[positives.instance])

    stride = torch.tensor(detector.strides)[positives.level]
    point = torch.stack([positives.x, positives.y], 1) * stride[:, None] + stride[:, None] // 2
    boxes = targets.boxes[positives.instance]
    wanted = torch.cat([point - boxes[:, :2], boxes[:, 2:] - point], 1) / stride[:, None]
    assert (wanted > 0).all()
    weight = centerness(wanted)
    torch.testing.assert_close(positives.scores, weight)
    torch.testing.assert_close(normalizer, weight.sum())

    found = by_cell(outputs.ltrb, positives)
    torch.testing.assert_close(losses["box"], (giou_ltrb(found, wanted) * weight).sum() / weight.sum())
    quality = F.binary_cross_entropy_with_logits(by_cell(outputs.quality_logits, positives)[:, 0], weight)
    torch.testing.assert_close(losses["quality"], quality)

    onehot = [torch.zeros_like(level) for level in outputs.cls_logits]
    for (i, n, y, x), label in zip(zip(*cells(positives), strict=True), positives.labels.tolist(), strict=True):
        onehot[i][n, label, y, x] = 1
    focal = sum(
        sigmoid_focal_loss(a, b, 0.25, 2.0, reduction="sum") for a, b in zip(outputs.cls_logits, onehot, strict=True)
    )
    torch.testing.assert_close(losses["cls"], focal / len(positives))


def test_boxes_of_positives_are_decoded_and_carry_no_gradient():
    detector = head()
    outputs = outputs_of(detector)
    _, positives, _ = detector.losses(outputs, build.targets(build.BATCHES["normal"]))
    i, n, y, x = (int(v[0]) for v in (positives.level, positives.image, positives.y, positives.x))
    stride = detector.strides[i]
    left, top, right, bottom = (outputs.ltrb[i][n, :, y, x] * stride).tolist()
    px, py = x * stride + stride // 2, y * stride + stride // 2
    assert positives.boxes[0].tolist() == pytest.approx([px - left, py - top, px + right, py + bottom], abs=1e-4)
    assert not positives.boxes.requires_grad


def test_normalizers_of_the_class_loss():
    targets = build.targets(build.BATCHES["normal"])
    values = {}
    for name in ("fg", "all", "moving_fg"):
        detector = head(normalizer=name)
        losses, positives, _ = detector.losses(outputs_of(detector), targets)
        values[name] = losses["cls"].item()
    locations = 2 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1)
    assert values["all"] * locations == pytest.approx(values["fg"] * len(positives), rel=1e-5)
    running = 0.9 * 100 + 0.1 * len(positives)
    assert values["moving_fg"] * running == pytest.approx(values["fg"] * len(positives), rel=1e-5)
    assert detector.moving_positives.item() == pytest.approx(running)
    detector.eval().losses(outputs_of(detector), targets)
    assert detector.moving_positives.item() == pytest.approx(running)  # validation does not move it
    assert "moving_positives" in detector.state_dict() and "moving_positives" not in head().state_dict()


def test_quality_may_be_the_iou():
    detector = head(box_quality="iou")
    outputs = outputs_of(detector)
    targets = build.targets(build.BATCHES["normal"])
    losses, positives, _ = detector.losses(outputs, targets)
    iou = box_iou(positives.boxes, targets.boxes[positives.instance]).diagonal()
    wanted = F.binary_cross_entropy_with_logits(by_cell(outputs.quality_logits, positives)[:, 0], iou)
    torch.testing.assert_close(losses["quality"], wanted)


def test_iou_of_distances():
    a = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    b = torch.tensor([[1.0, 1, 1, 3], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert _iou_ltrb(a, b).tolist() == pytest.approx([0.5, 1, 0])


@pytest.mark.parametrize("boxes", [[[], []], [[(11, 11, 12, 12)], []]])
def test_losses_without_positives(boxes):
    detector = head()
    losses, positives, normalizer = detector.losses(outputs_of(detector), build.targets(boxes))
    assert len(positives) == 0 and normalizer.item() == pytest.approx(1e-6)
    assert losses["box"].item() == losses["quality"].item() == 0 and losses["cls"].item() > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in detector.parameters())


# ---- inference --------------------------------------------------------------------------------------------------


def logit(probability):
    return math.log(probability / (1 - probability))


def one_level(cells, height=8, width=8, classes=2, ltrb=2.0, images=1):
    """Outputs of a level that are improbable but at [(image, y, x, class, class probability, quality)]."""
    cls_logits = torch.full((images, classes, height, width), -20.0)
    quality = torch.full((images, 1, height, width), -20.0)
    for n, y, x, label, probability, good in cells:
        cls_logits[n, label, y, x] = logit(probability)
        quality[n, 0, y, x] = logit(good)
    box = torch.full((images, 4, height, width), ltrb)
    return FCOSOutputs([cls_logits], [box], [quality], [torch.zeros(images, 32, height, width)])


def selector(**options):
    return head(strides=(8,), sizes_of_interest=[], num_classes=2, **options)


def test_score_is_the_root_of_the_product():
    found = selector().select(one_level([(0, 2, 3, 1, 0.8, 0.5)]))
    assert found.scores.tolist() == [pytest.approx(math.sqrt(0.4))]
    assert (found.level.tolist(), found.y.tolist(), found.x.tolist(), found.labels.tolist()) == ([0], [2], [3], [1])
    assert found.boxes.tolist() == [[28 - 16, 20 - 16, 28 + 16, 20 + 16]]
    assert found.instance is None


def test_threshold_is_on_the_product():
    outputs = one_level([(0, 2, 3, 1, 0.2, 0.2)])
    assert len(selector().select(outputs)) == 0
    assert len(selector(score_threshold=0.039).select(outputs)) == 1
    by_class = selector(threshold_with_quality=False).select(outputs)
    assert by_class.scores.tolist() == [pytest.approx(0.2)]


def test_suppression_is_class_wise():
    # boxes of 32 pixels, 8 apart: IoU 24 / 40 = 0.6
    same_place = [(0, 2, 2, 0, 0.9, 0.9), (0, 2, 2, 1, 0.8, 0.9)]
    assert selector().select(one_level(same_place)).labels.tolist() == [0, 1]
    neighbors = [(0, 2, 2, 0, 0.9, 0.9), (0, 2, 3, 0, 0.8, 0.9)]
    assert len(selector(nms_threshold=0.61).select(one_level(neighbors))) == 2
    (kept,) = selector(nms_threshold=0.59).select(one_level(neighbors)).scores.tolist()
    assert kept == pytest.approx(0.9)
    assert len(selector(nms_threshold=0.59).select(one_level([neighbors[0], (0, 2, 3, 1, 0.8, 0.9)]))) == 2


def test_limits_and_order():
    cells = [(n, i // 8, i % 8, 0, 0.3 + 0.01 * ((i * 13) % 64), 0.9) for n in range(2) for i in range(64)]
    outputs = one_level(cells, ltrb=0.4, images=2)  # too small to overlap
    found = selector(detections_per_image=10).select(outputs)
    assert found.image.tolist() == [0] * 10 + [1] * 10
    wanted = [math.sqrt((0.93 - 0.01 * i) * 0.9) for i in range(10)]
    assert found.scores.tolist() == [pytest.approx(score) for score in wanted * 2]
    assert len(selector(pre_nms_topk=7).select(outputs)) == 14
    many = one_level([(0, i // 16, i % 16, 0, 0.5, 0.5) for i in range(256)], 16, 16, ltrb=0.4)
    assert len(selector().select(many)) == 100


def test_topk_is_per_level():
    strides = (8, 16)
    levels = [one_level([(0, y, 0, 0, 0.5 + 0.1 * y, 0.9) for y in range(3)], ltrb=0.4) for _ in strides]
    outputs = FCOSOutputs(*[[getattr(level, n)[0] for level in levels] for n in vars(levels[0])])
    detector = head(strides=strides, sizes_of_interest=[64], num_classes=2, pre_nms_topk=2)
    found = detector.select(outputs)
    assert sorted(zip(found.level.tolist(), found.y.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_selection_equals_a_loop_over_images_and_levels():
    torch.manual_seed(0)
    strides, sizes = (8, 16, 32), [(8, 12), (4, 6), (2, 3)]
    outputs = FCOSOutputs(
        [torch.randn(2, 3, h, w) for h, w in sizes], [4 * torch.rand(2, 4, h, w) for h, w in sizes],
        [torch.randn(2, 1, h, w) for h, w in sizes], [torch.zeros(2, 32, h, w) for h, w in sizes],
    )  # fmt: skip
    options = {"sizes_of_interest": [64, 128], "num_classes": 3, "pre_nms_topk": 15, "detections_per_image": 20}
    detector = head(strides=strides, score_threshold=0.3, **options)
    found = detector.select(outputs)
    for n in range(2):
        boxes, scores, labels, levels = [], [], [], []
        for level, stride in enumerate(strides):
            joint = outputs.cls_logits[level][n].sigmoid() * outputs.quality_logits[level][n].sigmoid()
            flat = joint.permute(1, 2, 0).flatten()  # location by location, as the head counts
            for value, at in zip(*(part.tolist() for part in flat.topk(15)), strict=True):
                y, x = divmod(at // 3, sizes[level][1])
                left, top, right, bottom = (outputs.ltrb[level][n, :, y, x] * stride).tolist()
                if value > 0.3:
                    center = (x * stride + stride // 2, y * stride + stride // 2)
                    boxes.append([center[0] - left, center[1] - top, center[0] + right, center[1] + bottom])
                    scores.append(value**0.5), labels.append(at % 3), levels.append(level)
        boxes, scores, labels = torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels)
        kept = batched_nms(boxes, scores, labels, 0.6)[:20]
        mine = found.take((found.image == n).nonzero(as_tuple=True)[0])
        assert 5 < len(mine) == len(kept) < len(boxes)
        torch.testing.assert_close(mine.boxes, boxes[kept])
        torch.testing.assert_close(mine.scores, scores[kept])
        assert mine.labels.tolist() == labels[kept].tolist()
        assert mine.level.tolist() == [levels[k] for k in kept.tolist()]


def test_nothing_found():
    found = selector().select(one_level([], images=2))
    assert len(found) == 0 and found.boxes.shape == (0, 4)


def test_params_at_equals_the_dense_layer():
    detector = head(num_params=6, sizes_of_interest=SMALL)
    outputs = outputs_of(detector)
    _, positives, _ = detector.losses(outputs, build.targets(build.BATCHES["normal"]))
    assert len(positives.level.unique()) > 1
    positives = positives.take(torch.randperm(len(positives), generator=torch.Generator().manual_seed(0)))
    dense = by_cell([detector.params(tower) for tower in outputs.tower], positives)
    torch.testing.assert_close(detector.params_at(outputs, positives), dense)
    assert head().params_at(outputs, positives).shape == (len(positives), 0)
