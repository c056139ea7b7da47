import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import box_iou

from b2inst.models.detector_base import Locations
from b2inst.models.yolact import Yolact, YolactOutputs, _Grid
from b2inst.models.yolact_targets import anchor_shapes, decode, encode, match
from models import build

STRIDES = [8, 16, 32, 64, 128]
SMALL = [32, 64, 128, 256]


def count(module):
    return sum(p.numel() for p in module.parameters())


def head(strides=STRIDES, num_classes=3, num_params=0, **options):
    torch.manual_seed(0)
    return Yolact(32, num_classes, num_params, list(strides), **{"sizes_of_interest": SMALL, **options})


def grid_of(detector, outputs):
    return _Grid.of(outputs, detector.strides, detector.shapes)


def outputs_of(detector, height=64, width=96, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(math.ceil(height / s), math.ceil(width / s)) for s in detector.strides]
    return detector([torch.randn(images, 32, *shape, generator=generator) for shape in shapes])


def test_parameters_of_the_published_size():
    detector = Yolact(256, 80, 32, STRIDES)
    convolution = 256 * 9
    assert count(detector.tower) == convolution * 256 + 256
    assert count(detector.cls_logits) == (convolution + 1) * 3 * 81
    assert count(detector.box_pred) == (convolution + 1) * 12
    assert count(detector.params) == (convolution + 1) * 96
    assert count(Yolact(256, 80, 33, STRIDES)) - count(detector) == (convolution + 1) * 3
    assert detector.reaches == [64, 128, 256, 512, 1024]
    assert [shapes[0] for shapes in detector.shapes] == [(24, 24), (48, 48), (96, 96), (192, 192), (384, 384)]


def test_shapes_and_start():
    detector = head()
    outputs = detector([torch.randn(2, 32, *shape) for shape in [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]])
    for name, channels in (("cls_logits", 12), ("offsets", 12), ("tower", 32)):
        assert [t.shape[:2] for t in getattr(outputs, name)] == [(2, channels)] * 5
    assert detector.params is None and detector.param_biases() == []
    assert len(grid_of(detector, outputs).anchors) == 3 * (32 * 40 + 16 * 20 + 8 * 10 + 4 * 5 + 2 * 3)


def test_anchors_lie_around_the_cells():
    detector = head(strides=(8, 16), sizes_of_interest=[32], ratios=[1.0, 4.0], square_anchors=False)
    outputs = detector([torch.zeros(1, 32, 2, 3), torch.zeros(1, 32, 1, 2)])
    anchors = grid_of(detector, outputs).anchors
    wanted = []
    for stride, side, height, width in ((8, 12, 2, 3), (16, 24, 1, 2)):
        for y in range(height):
            for x in range(width):
                middle_x, middle_y = (x + 0.5) * stride, (y + 0.5) * stride
                for w, h in ((side, side), (2 * side, side / 2)):
                    wanted.append([middle_x - w / 2, middle_y - h / 2, middle_x + w / 2, middle_y + h / 2])
    assert anchors.tolist() == wanted


def test_sides_of_the_anchors_on_small_images():
    detector = head(ratios=[1.0])
    assert detector.shapes == [anchor_shapes(side, [1.0], True) for side in (12, 24, 48, 96, 192)]


def test_where_anchors_are():
    detector = head()
    outputs = outputs_of(detector)
    anchors = grid_of(detector, outputs).anchors
    index = torch.arange(1, len(anchors), 5).flip(0)
    places = grid_of(detector, outputs).places(index)
    for i, level, y, x, anchor in zip(index.tolist(), *(places[k].tolist() for k in ("level", "y", "x", "anchor")),
                                      strict=True):  # fmt: skip
        w, h = detector.shapes[level][anchor]
        middle = torch.tensor([x + 0.5, y + 0.5]) * STRIDES[level]
        half = torch.tensor([w / 2, h / 2])
        torch.testing.assert_close(anchors[i], torch.cat([middle - half, middle + half]))
    assert len(places["level"].unique()) == 5


def test_the_head_equals_a_plain_twin():
    """Each output read at its anchor by hand: channels go anchor by anchor, places row by row."""
    detector = head(num_convs=2, num_params=5)
    features = [torch.randn(2, 32, 3, 4), torch.randn(2, 32, 2, 2)]
    outputs = detector(features + [torch.zeros(2, 32, 1, 1)] * 3)
    probs = detector._by_anchor(outputs.cls_logits)
    offsets = detector._by_anchor(outputs.offsets)
    row = 0
    for feature in features:
        x = feature
        for convolution in (detector.tower[0], detector.tower[2]):
            x = F.conv2d(x, convolution.weight, convolution.bias, padding=1).clamp(min=0)
        logits = F.conv2d(x, detector.cls_logits.weight, detector.cls_logits.bias, padding=1)
        boxes = F.conv2d(x, detector.box_pred.weight, detector.box_pred.bias, padding=1)
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                for a in range(3):
                    torch.testing.assert_close(probs[:, row], logits[:, 4 * a : 4 * a + 4, i, j])
                    torch.testing.assert_close(offsets[:, row], boxes[:, 4 * a : 4 * a + 4, i, j])
                    row += 1


def test_parameters_of_an_anchor():
    detector = head(num_params=5)
    outputs = outputs_of(detector)
    level, image, y, x, anchor = (torch.tensor(v) for v in ([0, 1, 0], [1, 0, 0], [3, 2, 7], [5, 0, 11], [2, 0, 1]))
    places = Locations(level, image, y, x, torch.zeros(3, 4), image, torch.ones(3), anchor=anchor)
    dense = [detector.params(tower) for tower in outputs.tower]
    wanted = [dense[i][n, 5 * a : 5 * a + 5, v, u] for i, n, v, u, a in zip(level, image, y, x, anchor, strict=True)]
    torch.testing.assert_close(detector.params_at(outputs, places), torch.stack(wanted))
    torch.testing.assert_close(detector.params_at(outputs, places.take(torch.tensor([2]))), wanted[2][None])


def test_biases_of_the_parameters_are_views():
    detector = head(num_params=5)
    biases = detector.param_biases()
    assert [len(bias) for bias in biases] == [5, 5, 5]
    biases[1].fill_(7.0)
    assert detector.params.bias.tolist() == [0] * 5 + [7] * 5 + [0] * 5


def test_norm_of_the_tower():
    assert [type(m).__name__ for m in head(norm="gn", num_convs=1).tower] == ["Conv2d", "GroupNorm", "ReLU"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"norm": "bn"}, "'bn' of the detector; allowed: none, gn"), ({"sizes_of_interest": [64]}, "5 levels need 4")],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)


# ---- losses -----------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    detector = head()
    outputs = outputs_of(detector)
    targets = build.targets(build.BATCHES["normal"])
    losses, positives, normalizer = detector.losses(outputs, targets)
    anchors = grid_of(detector, outputs).anchors
    instance = match(anchors, targets, 2, 0.5, 0.4, 0.7)
    logits, offsets = detector._by_anchor(outputs.cls_logits), detector._by_anchor(outputs.offsets)

    cls = box = 0.0
    number = 0
    for n in range(2):
        negatives = []
        for a, owner in enumerate(instance[n].tolist()):
            entropy = -logits[n, a].log_softmax(0)
            if owner >= 0:
                number += 1
                cls = cls + entropy[targets.labels[owner] + 1]
                wanted = encode(targets.boxes[owner][None], anchors[a][None])[0]
                box = box + F.smooth_l1_loss(offsets[n, a], wanted, reduction="sum")
            elif owner == -1:
                negatives.append(entropy[0])
        kept = 3 * int((instance[n] >= 0).sum())
        cls = cls + torch.stack(negatives).sort(descending=True).values[:kept].sum()
    assert number == len(positives) == normalizer.item() == 4
    torch.testing.assert_close(losses["cls"], cls / number)
    torch.testing.assert_close(losses["box"], box / number)
    assert losses.keys() == {"cls", "box"}


def test_positives():
    detector = head()
    outputs = outputs_of(detector)
    targets = build.targets(build.BATCHES["normal"])
    _, positives, _ = detector.losses(outputs, targets)
    assert set(positives.instance.tolist()) == {0, 1, 2} and (positives.scores == 1).all()
    assert torch.equal(positives.labels, targets.labels[positives.instance])
    assert torch.equal(positives.image, targets.image_index[positives.instance])
    names = ("level", "image", "y", "x", "anchor")
    i, n, y, x, a = (int(getattr(positives, name)[1]) for name in names)
    w, h = detector.shapes[i][a]
    anchor = torch.tensor([[-w, -h, w, h]]) / 2 + torch.tensor([x + 0.5, y + 0.5]).repeat(2) * STRIDES[i]
    assert box_iou(anchor, targets.boxes[positives.instance[1]][None]) >= 0.5
    offsets = outputs.offsets[i][n, 4 * a : 4 * a + 4, y, x]
    torch.testing.assert_close(positives.boxes[1:2], decode(offsets[None], anchor))
    assert not positives.boxes.requires_grad


@pytest.mark.parametrize("boxes", [[[], []], [[(11, 11, 12, 12)], []]])
def test_losses_of_little_or_nothing(boxes):
    detector = head(num_params=3)
    outputs = outputs_of(detector)
    losses, positives, normalizer = detector.losses(outputs, build.targets(boxes))
    assert len(positives) == len(boxes[0]) and normalizer == 1
    assert (losses["box"].item() > 0) == (losses["cls"].item() > 0) == bool(boxes[0])
    (sum(losses.values()) + detector.params_at(outputs, positives).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


# ---- inference --------------------------------------------------------------------------------------------------


def random_outputs(detector, height=64, width=96, images=2, spread=2.0):
    """Outputs that do not depend on features."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(math.ceil(height / s), math.ceil(width / s)) for s in detector.strides]
    channels = detector.num_anchors * (detector.num_classes + 1)

    def draw(count, factor):
        return [factor * torch.randn(images, count, h, w, generator=generator) for h, w in shapes]

    return YolactOutputs(draw(channels, spread), draw(12, 1.0), draw(32, 1.0))


@pytest.mark.parametrize(("threshold", "threshold_all", "most"), [(0.6, False, 25), (0.9, True, 100)])
def test_selection_equals_loops(threshold, threshold_all, most):
    options = {"nms_topk": 30, "detections_per_image": most, "score_threshold": threshold}
    detector = head(threshold_all=threshold_all, **options)
    outputs = random_outputs(detector)
    found = detector.select(outputs)
    anchors = grid_of(detector, outputs).anchors
    probs = detector._by_anchor(outputs.cls_logits).softmax(2)
    boxes = torch.stack([decode(o, anchors) for o in detector._by_anchor(outputs.offsets)])
    for n in range(2):
        kept = []
        looked_at = [a for a in range(len(anchors)) if max(probs[n, a, 1:].tolist()) > threshold]
        for label in range(3):
            best = sorted(looked_at, key=lambda a: -probs[n, a, label + 1].item())[:30]
            overlaps = box_iou(boxes[n, best], boxes[n, best])
            for i, a in enumerate(best):
                score = probs[n, a, label + 1].item()
                if all(overlaps[i, j] <= 0.5 for j in range(i)) and (score > threshold or not threshold_all):
                    kept.append((score, label, a))
        kept = sorted(kept, reverse=True)[:most]
        own = found.take((found.image == n).nonzero()[:, 0])
        assert own.scores.tolist() == [score for score, _, _ in kept]
        assert own.labels.tolist() == [label for _, label, _ in kept]
        torch.testing.assert_close(own.boxes, boxes[n, [a for _, _, a in kept]])
        cells = grid_of(detector, outputs).places(torch.tensor([a for _, _, a in kept]))
        assert all(torch.equal(getattr(own, name), values) for name, values in cells.items())
        assert (len(kept) == most) != threshold_all and len(kept) > 5


def test_nothing_is_probable():
    detector = head()
    outputs = random_outputs(detector, spread=0.0)
    assert len(detector.select(outputs)) == 2 * 100  # each class has probability 1 / 4 everywhere
    for logits in outputs.cls_logits:
        logits[:, ::4] = 20.0  # the background
    found = detector.select(outputs)
    assert len(found) == 0 and found.boxes.shape == (0, 4)


@pytest.mark.parametrize("options", [{}, {"threshold_all": True, "nms_topk": 5}, {"detections_per_image": 7}])
def test_all_images_at_once(options):
    """What the graph does; where one image has detections and the next has none."""
    detector = head(score_threshold=0.9, **options)
    outputs = random_outputs(detector, images=3)
    for logits in outputs.cls_logits:
        logits[1, ::4] = 20.0
    found, wanted = detector.select_in_graph(outputs), detector.select(outputs)
    assert set(wanted.image.tolist()) == {0, 2}
    for name in ("image", "level", "y", "x", "anchor", "labels", "scores", "boxes"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
