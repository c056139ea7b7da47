"""YOLACT++'s scoring head: what it sees, what it answers, and what it learns from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from b2inst.models.boundary import NoBoundary
from b2inst.models.scoring_fcn import MaskFCN
from b2inst.ops.masks import paste_masks
from models import build
from models.wanted import convolution

STRIDES = [8, 16, 32, 64, 128]


def head(classes=3, **options):
    torch.manual_seed(0)
    return MaskFCN(8, classes, STRIDES, **options)


def logits(count=3, side=14, seed=0):
    return 3 * torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))


BOXES = torch.tensor([[10.0, 20, 200, 230], [0, 0, 256, 256], [100, 100, 140, 180]])
IMAGE = torch.tensor([0, 1, 1])
LABELS = torch.tensor([2, 0, 1])


def test_parameters():
    """1 -> 8 -> 16 -> 32 -> 64 -> 128 of 3 x 3, and 80 classes."""
    pairs = [(1, 8), (8, 16), (16, 32), (32, 64), (64, 128)]
    wanted = sum(9 * a * b + b for a, b in pairs) + 128 * 80 + 80
    assert sum(p.numel() for p in head(80).parameters()) == wanted == 108_560


def test_against_a_plain_twin():
    """The mask pasted on a square picture of its image, loops for convolutions, the largest value of the class."""
    scoring = head(channels=[4, 6, 8], canvas=31)
    sizes = torch.tensor([[256, 300], [200, 320]])
    found = scoring([], replace(build.scored(logits(), BOXES, IMAGE, LABELS), sizes=sizes))
    assert found.keys() == {"iou"}
    layers = [layer for layer in scoring.net if isinstance(layer, torch.nn.Conv2d)]
    assert len(layers) == 4
    for i in range(3):
        height, width = sizes[IMAGE[i]].tolist()
        x0, y0, x1, y1 = BOXES[i].tolist()
        box = torch.tensor([[x0 / width, y0 / height, x1 / width, y1 / height]]) * 31
        maps = paste_masks(logits()[i : i + 1].sigmoid(), box, 31, 31)
        for layer in layers:
            maps = convolution(maps, layer.weight.detach(), layer.bias.detach(), 2 if layer is not layers[-1] else 1)
        assert maps.shape == (3, 3, 3)
        assert found["iou"][i].item() == pytest.approx(maps[LABELS[i]].max().item(), rel=1e-4, abs=1e-5)


def test_the_largest_cell_is_found_in_bfloat16():
    """From 1/2 on it has steps of 1/256: cells would be equal by rounding, and share the gradient of their maximum."""
    scoring, masks = head(), build.scored(logits(), BOXES, IMAGE, LABELS)
    found = scoring([], masks)["iou"]
    (gradient,) = torch.autograd.grad(found.sum(), scoring.net[8].bias)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = scoring([], masks)["iou"]
    (same,) = torch.autograd.grad(rounded.sum(), scoring.net[8].bias)
    torch.testing.assert_close(rounded, found, rtol=0, atol=5e-4)
    torch.testing.assert_close(same, gradient, rtol=0.02, atol=0.02 * gradient.abs().max().item())


def test_the_network_sees_138_cells_as_the_original_does():
    seen = []
    scoring = head()
    scoring.net.register_forward_hook(lambda module, given, result: seen.append((given[0].shape, result.shape)))
    scoring([], build.scored(logits(), BOXES, IMAGE, LABELS))
    assert seen == [((3, 1, 138, 138), (3, 3, 3, 3))]  # 138, 68, 33, 16, 7, 3


def test_where_a_mask_lies_and_how_large_it_is_matters():
    scoring, same = head(), logits(1).expand(3, -1, -1)
    moved = torch.tensor([[10.0, 20, 110, 120], [140, 100, 240, 200], [10, 20, 60, 70]])
    found = scoring([], build.scored(same, moved, IMAGE * 0, LABELS * 0))["iou"]
    assert len({round(v, 5) for v in found.tolist()}) == 3
    # but not in how many pixels the image is given
    twice = scoring([], build.scored(same, 2 * moved, IMAGE * 0, LABELS * 0, size=(512, 512)))["iou"]
    torch.testing.assert_close(twice, found)


def test_the_mask_is_not_thresholded():
    soft = head()([], build.scored(logits(), BOXES, IMAGE, LABELS))["iou"]
    sharp = head()([], build.scored(100 * logits(), BOXES, IMAGE, LABELS))["iou"]
    assert (soft - sharp).abs().min() > 1e-4


def test_every_class_answers_at_the_start():
    """A class whose last layer is 0 for all masks would never learn, and all of its masks would score 0."""
    for seed in range(5):
        torch.manual_seed(seed)
        scoring = MaskFCN(8, 20, STRIDES)
        labels = torch.arange(20)
        found = scoring([], build.scored(logits(20), BOXES[:1].expand(20, -1), labels * 0, labels))["iou"]
        assert (found > 0).all()


# ---- what is learned --------------------------------------------------------------------------------------------


def test_loss_by_hand():
    predicted = {"iou": torch.tensor([0.5, 2.5, 0.0])}
    loss = head().losses(predicted, {"iou": torch.tensor([0.9, 0.5, 0.0])})["iou"]
    # a quality of 0 counts, and beyond 1 the loss is linear
    assert loss.item() == pytest.approx((0.5 * 0.4**2 + (2.0 - 0.5) + 0) / 3)


def test_the_target_is_the_iou_of_the_thresholded_mask():
    found = torch.tensor([[[0.2, 5.0, -0.1], [-4.0, 0.3, 0.0]]])  # 4 cells are at 0.5 or above
    true = torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]])
    assert head().targets(found, true)["iou"].item() == pytest.approx(2 / 6)
    assert head().targets(found, true, torch.tensor([4.0]))["iou"].item() == pytest.approx(2 / 10)


def test_small_masks_are_left_out():
    """More than 25 of 138 x 138 cells, whatever the image is measured in."""
    cells = torch.tensor([24.0, 25.0, 26.0, 0.0, 138**2])
    assert head().learned(cells / 138**2 * (1 + 1e-6)).tolist() == [False, True, True, False, True]
    assert head().learned(cells / 138**2 * (1 - 1e-6)).tolist() == [False, False, True, False, True]
    assert head(canvas=69, min_area=25).learned(torch.tensor([24.0, 26.0]) / 69**2).tolist() == [False, True]


class Seen:
    """A scoring head that notes what it is asked for."""

    def __init__(self, model):
        self.labels, self.logits, self.boxes = [], [], []
        model.scoring.register_forward_pre_hook(self.note)

    def note(self, module, given):
        masks = given[1]
        self.labels.extend(masks.labels.tolist())
        self.logits.append(masks.logits)
        self.boxes.append(masks.boxes)


def segmenter(**options):
    return build.segmenter(NoBoundary(), "fcn_iou", score=options, losses={})


# Ellipses of pi / 4 * 36 * 40 = 1131 and pi / 4 * 10 * 12 = 94 pixels, on 64 x 96 pixels = 48 x 48 cells: 424 and 35.
SIZES = [[(4, 4, 40, 44), (50, 12, 60, 24)]]


@pytest.mark.parametrize(("least", "labels"), [(25, {0, 1}), (45, {0}), (500, set())])
def test_which_positives_of_a_batch_are_scored(least, labels):
    model = segmenter(min_area=least)
    seen, batch = Seen(model), build.batch(SIZES)
    losses, stats = model.losses(model(batch.images), batch)
    assert set(seen.labels) == labels
    assert bool(losses["score_iou"] > 0) == bool(labels) == ("score_iou_target" in stats)
    losses["score_iou"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.scoring.parameters())


@pytest.mark.parametrize("detached", [True, False])
def test_gradient_into_the_masks(detached):
    model, batch = segmenter(detach_masks=detached), build.batch(build.BATCHES["normal"])
    losses, _ = model.losses(model(batch.images), batch)
    losses["score_iou"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.scoring.parameters())
    reached = [p for p in model.basis.parameters() if p.grad is not None and p.grad.any()]
    assert bool(reached) != detached


def test_predicted_boxes_are_the_frames_where_they_are_asked_for():
    batch = build.batch(build.BATCHES["normal"])
    frames = {}
    for boxes in ("gt_box", "pred_box"):
        model = segmenter(boxes=boxes)
        seen = Seen(model)
        losses, _ = model.losses(model(batch.images), batch)
        assert losses["score_iou"].isfinite()
        frames[boxes] = {tuple(box) for box in torch.cat(seen.boxes).tolist()}
    true = {tuple(box) for box in batch.targets.boxes.tolist()}
    assert frames["gt_box"] == true and not frames["pred_box"] & true


def test_the_mask_score_is_class_score_times_iou():
    scores, qualities = torch.tensor([0.9, 0.8]), {"iou": torch.tensor([0.5, 1.3])}
    assert head().combine(scores, qualities).tolist() == pytest.approx([0.45, 0.8])
    assert head(clamp=False).combine(scores, qualities).tolist() == pytest.approx([0.45, 1.04])


def test_detections_carry_the_score_of_the_picture_of_their_own_image():
    """The images of a batch have different sizes; the IoU that a detection has is that of its image alone."""
    model = segmenter().eval()
    torch.nn.init.constant_(model.detector.cls_logits.bias, 1.0)
    torch.nn.init.constant_(model.detector.box_pred.bias, 3.0)
    pictures = build.images(2, 64, 96, sizes=[(64, 96), (64, 64)])
    with torch.no_grad():
        found = model.detect(model(pictures), pictures)
        for n, (height, width) in enumerate([(64, 96), (64, 64)]):
            one = found[n]
            given = build.scored(one.mask_logits, one.boxes, one.labels * 0, one.labels, size=(height, width))
            wanted = one.box_scores * model.scoring([], given)["iou"].clamp(0, 1)
            assert len(one) > 3 and wanted.std() > 0
            torch.testing.assert_close(one.scores, wanted)


def test_it_learns_how_good_masks_are():
    """Disks with more and less of them found: after a few steps the order of the predictions is that of the IoUs."""
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    radius = (x.square() + y.square()).sqrt()
    true = (radius <= 12).float().expand(8, -1, -1)
    found = torch.stack([12 - radius - 1.3 * k for k in range(8)])
    scoring = head(1, channels=[4, 8, 16], canvas=48)
    given = build.scored(found, BOXES[:1].expand(8, -1), IMAGE[:1].expand(8), torch.zeros(8, dtype=torch.int64))
    wanted = scoring.targets(found, true)
    optimizer = torch.optim.Adam(scoring.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        scoring.losses(scoring([], given), wanted)["iou"].backward()
        optimizer.step()
    assert wanted["iou"].min() < 0.1 and wanted["iou"].max() > 0.9
    assert (scoring([], given)["iou"] - wanted["iou"]).abs().max() < 0.1


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="allowed: gt_box, pred_box"):
        head(boxes="box")
    with pytest.raises(ValueError, match="canvas=62: 5 convolutions need at least 63 cells"):
        head(canvas=62)
    least = head(canvas=63)
    assert math.isfinite(least([], build.scored(logits(), BOXES, IMAGE, LABELS))["iou"].sum().item())
