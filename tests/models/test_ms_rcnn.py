"""`scoring=iou` is the scoring head of Mask Scoring R-CNN: its layers, its target and its loss, written plainly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from b2inst.models.scoring import ScoringHead
from b2inst.models.scoring_learn import crops_of_predicted_boxes
from b2inst.paths import config_dir
from models import build
from models.wanted import bilinear, convolution

STRIDES = [8, 16, 32, 64, 128]
BOXES = torch.tensor([[16.0, 24, 90, 100], [0, 10, 250, 240]])
IMAGE, LABELS = torch.tensor([1, 0]), torch.tensor([2, 0])


def head(in_channels: int = 2, classes: int = 3, **changes: object) -> ScoringHead:
    """As the configuration has it, but for what is changed."""
    given: dict[str, object] = {}
    for name in ("iou_boundary", "iou"):
        given |= yaml.safe_load((config_dir() / f"scoring/{name}.yaml").read_text())
    options = {k: v for k, v in given.items() if k not in ("_target_", "_partial_", "defaults")}
    torch.manual_seed(0)
    return ScoringHead(in_channels, classes, STRIDES, **{**options, **changes})


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def pooled(feature: torch.Tensor, box: list[float], stride: int) -> torch.Tensor:
    """(C, 14, 14) means of 2 x 2 samples per bin of a (C, h, w) map."""
    x0, y0, x1, y1 = (v / stride for v in box)
    result = torch.zeros(len(feature), 14, 14)
    for c, grid in enumerate(feature.tolist()):
        for i in range(14):
            for j in range(14):
                samples = [
                    bilinear(grid, y0 + (i + a) * (y1 - y0) / 14 - 0.5, x0 + (j + b) * (x1 - x0) / 14 - 0.5)
                    for a in (0.25, 0.75)
                    for b in (0.25, 0.75)
                ]
                result[c, i, j] = sum(samples) / 4
    return result


def test_the_head_is_its_plain_twin() -> None:
    """Features of 14 x 14 and the mask of 28 x 28, pooled by its maxima; four convolutions, three linear layers."""
    scoring = head(channels=3, fc_channels=5)
    features = [numbers(2, 2, 256 // stride, 256 // stride) for stride in STRIDES]
    logits = numbers(2, 28, 28)
    found = scoring(features, build.scored(logits, BOXES, IMAGE, LABELS))
    assert found.keys() == {"iou"}
    convs = [layer for layer in scoring.convs if isinstance(layer, nn.Conv2d)]
    linear = [layer for layer in scoring.branches["iou"] if isinstance(layer, nn.Linear)]
    assert (len(convs), len(linear)) == (4, 3)
    for i, level in enumerate((0, 1)):  # boxes of sides near 75 and 240 are of P3 and P4
        probs = 1 / (1 + (-logits[i]).exp())
        smaller = torch.tensor(
            [[probs[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max() for x in range(14)] for y in range(14)]
        )
        maps = torch.cat([pooled(features[level][IMAGE[i]], BOXES[i].tolist(), STRIDES[level]), smaller[None]])
        for number, layer in enumerate(convs):
            maps = convolution(
                maps, layer.weight.detach(), layer.bias.detach(), stride=2 if number == 3 else 1, padding=1
            )
        assert maps.shape == (3, 7, 7)
        values = maps.flatten().tolist()
        for number, layer in enumerate(linear):
            rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            values = [sum(w * v for w, v in zip(row, values, strict=True)) + bias for row, bias in rows]
            values = values if number == 2 else [max(v, 0.0) for v in values]
        assert found["iou"][i].item() == pytest.approx(values[LABELS[i]], rel=1e-3, abs=1e-5)


def test_sizes_and_start_of_the_published_head() -> None:
    scoring = head(256, 80)
    convs = [layer for layer in scoring.convs if isinstance(layer, nn.Conv2d)]
    first, second, last = (layer for layer in scoring.branches["iou"] if isinstance(layer, nn.Linear))
    assert [tuple(c.weight.shape) for c in convs] == [(256, 257, 3, 3)] + 3 * [(256, 256, 3, 3)]
    shapes = [tuple(layer.weight.shape) for layer in (first, second, last)]
    assert shapes == [(1024, 256 * 7 * 7), (1024, 1024), (80, 1024)]
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    for layer, inputs in ((first, 256 * 7 * 7), (second, 1024)):
        assert layer.weight.abs().max().item() == pytest.approx((3 / inputs) ** 0.5, rel=0.01)
    assert last.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(layer.bias.any() for layer in (*convs, first, second, last))


def test_target_with_the_area_outside_of_the_box_by_hand() -> None:
    """An object of 32 x 32 px; a box sees its left half, and there the mask finds the upper half and 2 rows too many.

    Found: 18 rows of 16 px, 288 px, of which 256 are of the object. Union: 1024 px of the whole object and 32 more.
    """
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 8:40] = True
    targets = replace(build.targets([[(8, 8, 40, 40)]], 64, 64), masks=masks)
    box = torch.tensor([[8.0, 4.0, 24.0, 44.0]])  # 4 rows above the object and 4 below
    crops, outside = crops_of_predicted_boxes(targets, torch.tensor([0]), box, 40)
    assert crops.sum() == 32 * 40 and outside.tolist() == [32 * 40]  # cells are 1 px high and 0.4 px wide
    found = torch.full((1, 40, 40), -2.0)
    found[:, 2:20] = 0.1  # rows 2 and 3 lie above the object, and 4 to 19 are its upper half
    target = head(channels=3, fc_channels=5).targets(found, crops, outside)["iou"].item()
    assert target == pytest.approx(256 / (1024 + 32))


def test_loss_by_hand() -> None:
    """Half the squared error; instances whose mask meets nothing do not count, in the sum and in the number."""
    predicted, target = [0.3, 0.9, -0.2, 1.4], [0.5, 0.0, 0.6, 1.0]
    errors = [0.5 * (p - t) ** 2 for p, t in zip(predicted, target, strict=True) if t > 0]
    scoring = head(channels=3, fc_channels=5)
    losses = scoring.losses({"iou": torch.tensor(predicted)}, {"iou": torch.tensor(target)})
    assert losses["iou"].item() == pytest.approx(sum(errors) / 3)


def test_scores() -> None:
    """Class score times IoU, as it was predicted: Mask Scoring R-CNN limits nothing."""
    scores, found = torch.tensor([0.5, 0.8]), {"iou": torch.tensor([0.6, 1.1])}
    assert head(channels=3, clamp=False).combine(scores, found).tolist() == pytest.approx([0.3, 0.88])
    assert head(channels=3).combine(scores, found).tolist() == pytest.approx([0.3, 0.8])
