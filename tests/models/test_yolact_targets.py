import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from b2inst.models.yolact_targets import anchor_shapes, decode, encode, hard_negatives, match
from models import build


def random_boxes(count, extent=90.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 0.7 * extent * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + 4 + 0.3 * extent * torch.rand(count, 2, generator=generator)], dim=1)


def targets_of(*images):
    """Integer boxes, listed image by image."""
    return build.targets(images)


def matched(anchors, targets, num_images=1, positive=0.5, negative=0.4, crowd=0.7):
    return match(torch.tensor(anchors, dtype=torch.float32), targets, num_images, positive, negative, crowd)


# ---- shapes and offsets -----------------------------------------------------------------------------------------


def test_shapes_of_the_anchors():
    wide = math.sqrt(2) * 24
    assert anchor_shapes(24, [1, 0.5, 2], square=True) == [
        (24, 24), (pytest.approx(wide / 2),) * 2, (pytest.approx(wide),) * 2,
    ]  # fmt: skip
    assert anchor_shapes(24, [1, 0.5, 2], square=False) == [
        (24, 24), (pytest.approx(wide / 2), pytest.approx(wide)), (pytest.approx(wide), pytest.approx(wide / 2)),
    ]  # fmt: skip


def test_offsets_by_hand():
    anchors = torch.tensor([[10.0, 10.0, 30.0, 50.0]])  # center (20, 30), 20 wide, 40 high
    box = torch.tensor([[14.0, 18.0, 34.0, 98.0]])  # center (24, 58), 20 wide, 80 high
    offsets = encode(box, anchors)
    assert offsets[0].tolist() == pytest.approx([4 / 20 / 0.1, 28 / 40 / 0.1, 0, math.log(2) / 0.2], abs=1e-5)
    assert decode(torch.zeros(1, 4), anchors).tolist() == anchors.tolist()


def test_offsets_there_and_back():
    boxes, anchors = random_boxes(50), random_boxes(50, seed=1)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-4, rtol=1e-5)
    offsets = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(encode(decode(offsets, anchors), anchors), offsets, atol=1e-4, rtol=1e-4)


def test_wild_offsets_give_finite_boxes():
    box = decode(torch.tensor([[0.0, 0.0, 1e4, -1e4]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]]))[0].tolist()
    assert box == pytest.approx([8 - 500, 8, 8 + 500, 8])


# ---- matching ---------------------------------------------------------------------------------------------------


def test_thresholds_by_hand():
    # The box is 20 x 20; anchors inside of it have their area over 400 as overlap.
    anchors = [[0, 0, 20, 20], [0, 0, 20, 10], [0, 0, 20, 9.9], [0, 0, 20, 8], [0, 0, 20, 7.9], [50, 50, 60, 60]]
    assert matched(anchors, targets_of([(0, 0, 20, 20)])).tolist() == [[0, 0, -2, -2, -1, -1]]


def test_each_instance_has_its_best_anchor_at_least():
    anchors = [[0, 0, 20, 20], [40, 40, 80, 80], [60, 0, 90, 30]]
    found = matched(anchors, targets_of([(0, 0, 20, 20), (58, 58, 60, 60)]))
    assert found.tolist() == [[0, 1, -1]]  # 4 of 1600 pixels


def test_who_overlaps_more_has_an_anchor_that_two_want():
    """Both overlap the first anchor most; the one that has to yield takes its second best."""
    anchors = [[0, 0, 20, 20], [0, 0, 40, 20]]
    for boxes, wanted in ([(0, 0, 20, 18), (0, 0, 20, 16)], [0, 1]), ([(0, 0, 20, 16), (0, 0, 20, 18)], [1, 0]):
        assert matched(anchors, targets_of(boxes)).tolist() == [wanted]


def test_instances_are_counted_through_the_batch():
    anchors = [[0, 0, 20, 20], [40, 0, 60, 20]]
    targets = targets_of([(40, 0, 60, 20)], [], [(40, 0, 60, 20), (0, 0, 20, 20)])
    assert matched(anchors, targets, num_images=3).tolist() == [[-1, 0], [-1, -1], [2, 1]]


def test_background_in_crowds_is_neutral():
    anchors = [[0, 0, 20, 20], [40, 0, 60, 20], [40, 30, 60, 50], [80, 0, 120, 20], [70, 40, 90, 60]]
    targets = targets_of([(0, 0, 20, 20)])
    crowd = targets.crowd.clone()
    crowd[0, :20, :20] = True  # around an instance: still positive
    crowd[0, :15, 40:60] = True  # 3 of 4 cells
    crowd[0, 30:44, 40:60] = True  # 7 of 10 cells, which is not more than 0.7
    crowd[0, :20, 80:96] = True  # all of the part in the image, which is 16 of 40
    targets = replace(targets, crowd=crowd)
    assert matched(anchors, targets).tolist() == [[0, -2, -1, -1, -1]]
    assert matched(anchors, targets, crowd=0.3).tolist() == [[0, -2, -2, -2, -1]]


def by_loops(anchors, boxes, positive, negative):
    """The rule, anchor by anchor and instance by instance."""
    iou = box_iou(boxes, anchors)
    found = []
    for a in range(len(anchors)):
        best = max(range(len(boxes)), key=lambda g: iou[g, a].item())
        found.append(best if iou[best, a] >= positive else -2 if iou[best, a] >= negative else -1)
    pairs = [(iou[g, a].item(), g, a) for g in range(len(boxes)) for a in range(len(anchors))]
    served, taken = set(), set()
    for _, g, a in sorted(pairs, reverse=True):
        if g not in served and a not in taken:
            found[a] = g
            served.add(g)
            taken.add(a)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(seed):
    anchors, boxes = random_boxes(60, seed=seed), random_boxes(9, seed=100 + seed)
    targets = replace(build.targets([[(0, 0, 9, 9)] * 9]), boxes=boxes)
    found = match(anchors, targets, 1, 0.4, 0.3, 0.7)[0].tolist()
    assert found == by_loops(anchors, boxes, 0.4, 0.3)
    assert {-2, -1} < set(found) and set(range(9)) < set(found)


# ---- hard negatives ---------------------------------------------------------------------------------------------


def test_hard_negatives_by_hand():
    instance = torch.tensor([[0, -1, -1, -2, -1, -1], [-1, -1, -1, -1, -1, -1], [3, 4, -2, -1, -1, -1]])
    difficulty = torch.tensor([[9.0, 1, 3, 9, 2, 0], [5, 5, 5, 5, 5, 5], [9, 9, 9, 1, 0, 2]])
    assert hard_negatives(difficulty, instance, 2).tolist() == [
        [False, False, True, False, True, False],
        [False] * 6,  # without positives there are none
        [False, False, False, True, True, True],  # all there are
    ]


def test_ratio_of_hard_negatives():
    generator = torch.Generator().manual_seed(0)
    instance = torch.randint(-2, 1, (3, 400), generator=generator)
    instance[:, 20:][instance[:, 20:] >= 0] = -1  # few positives
    difficulty = torch.rand(3, 400, generator=generator)
    chosen = hard_negatives(difficulty, instance, 3)
    assert torch.equal(chosen.sum(1), 3 * (instance >= 0).sum(1))
    for n in range(3):
        left_out = difficulty[n][(instance[n] == -1) & ~chosen[n]]
        assert difficulty[n][chosen[n]].min() > left_out.max()
