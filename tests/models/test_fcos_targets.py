import math
from dataclasses import replace

import pytest
import torch

from b2inst.models.fcos_targets import assign, centerness
from b2inst.ops.points import locations
from models import build

STRIDES = [8, 16, 32, 64, 128]
RANGES = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)]
HEIGHT, WIDTH = 256, 320


def grid():
    """Points, strides and ranges of all locations, and the level of each."""
    points, level = [], []
    for i, stride in enumerate(STRIDES):
        found = locations(math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride), stride)
        points.append(found)
        level += [i] * len(found)
    level = torch.tensor(level)
    return torch.cat(points), torch.tensor(STRIDES).float()[level], torch.tensor(RANGES)[level], level


def made_targets(boxes, image_index):
    empty = build.targets([[], []])
    return replace(empty, boxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.int64), image_index=image_index)


def random_targets(seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(16, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    size = torch.rand(16, 2, generator=generator).square() * 300 + 1
    low = (center - size / 2).clamp(min=0)
    high = (center + size / 2).minimum(torch.tensor([WIDTH, HEIGHT]))
    return made_targets(torch.cat([low, high], dim=1), torch.arange(16) // 9)


def by_loop(points, strides, ranges, targets, num_images, radius):
    instances, ltrb = [], []
    for n in range(num_images):
        for (x, y), stride, (smallest, largest) in zip(points.tolist(), strides.tolist(), ranges.tolist(), strict=True):
            winner, best, sides = -1, math.inf, [0.0] * 4
            for i, (x0, y0, x1, y1) in enumerate(targets.boxes.tolist()):
                distances = [x - x0, y - y0, x1 - x, y1 - y]
                if targets.image_index[i] != n or not smallest <= max(distances) <= largest:
                    continue
                if radius > 0:
                    cx, cy, reach = (x0 + x1) / 2, (y0 + y1) / 2, radius * stride
                    x0, y0, x1, y1 = max(x0, cx - reach), max(y0, cy - reach), min(x1, cx + reach), min(y1, cy + reach)
                area = (distances[0] + distances[2]) * (distances[1] + distances[3])
                if x0 < x < x1 and y0 < y < y1 and area < best:
                    winner, best, sides = i, area, [d / stride for d in distances]
            instances.append(winner)
            ltrb.append(sides)
    return torch.tensor(instances).view(num_images, -1), torch.tensor(ltrb).view(num_images, -1, 4)


@pytest.mark.parametrize("radius", [1.5, 0.0])
@pytest.mark.parametrize("seed", range(2))
def test_assignment_equals_a_loop(seed, radius):
    points, strides, ranges, _ = grid()
    targets = random_targets(seed)
    found = assign(points, strides, ranges, targets, 2, radius)
    instance, ltrb = by_loop(points, strides, ranges, targets, 2, radius)
    assert torch.equal(found.instance, instance)
    positive = instance >= 0
    assert 30 < positive.sum() and len(instance[positive].unique()) > 8
    torch.testing.assert_close(found.ltrb[positive], ltrb[positive])


def levels_of(box, radius=1.5):
    points, strides, ranges, level = grid()
    found = assign(points, strides, ranges, made_targets(torch.tensor([box]), torch.tensor([0])), 1, radius)
    return level[found.instance[0] == 0]


def test_reach_of_64_belongs_to_both_levels():
    assert levels_of([4.0, 4.0, 132.0, 132.0]).bincount(minlength=5).tolist() == [1, 9, 0, 0, 0]  # (68, 68)
    assert levels_of([8.0, 8.0, 136.0, 136.0]).bincount(minlength=5).tolist() == [0, 9, 0, 0, 0]  # (72, 72)


def test_border_of_a_box_is_outside():
    assert len(levels_of([4.0, 4.0, 12.0, 12.0])) == 0  # its corners are locations
    assert len(levels_of([3.9, 3.9, 12.1, 12.1])) == 4


def test_the_smallest_box_wins():
    points, strides, ranges, _ = grid()
    boxes = torch.tensor([[20.0, 20.0, 60.0, 60.0], [30.0, 30.0, 50.0, 50.0], [20.0, 20.0, 61.0, 60.0]])
    found = assign(points, strides, ranges, made_targets(boxes, torch.zeros(3, dtype=torch.int64)), 1, 0)
    at = {tuple(p): int(i) for p, i in zip(points.tolist(), found.instance[0], strict=True)}
    assert at[(44.0, 44.0)] == 1 and at[(28.0, 28.0)] == 0


def test_no_instances():
    points, strides, ranges, _ = grid()
    found = assign(points, strides, ranges, made_targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), 2)
    assert found.instance.shape == (2, len(points)) and (found.instance == -1).all()
    assert found.ltrb.shape == (2, len(points), 4)


def test_centerness():
    ltrb = torch.tensor([[3.0, 3.0, 3.0, 3.0], [1.0, 4.0, 4.0, 1.0], [1.0, 1.0, 9.0, 1.0], [0.0, 1.0, 9.0, 1.0]])
    assert centerness(ltrb).tolist() == pytest.approx([1, 0.25, 1 / 3, 0])
