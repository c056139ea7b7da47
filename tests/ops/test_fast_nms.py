import pytest
import torch
from torchvision.ops import box_iou

from b2inst.ops.fast_nms import fast_nms, pairwise_iou


def boxes(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = 30 * torch.rand(*shape, 2, generator=generator)
    return torch.cat([corner, corner + 1 + 20 * torch.rand(*shape, 2, generator=generator)], dim=-1)


def test_iou_is_torchvisions():
    a, b = boxes(2, 7), boxes(2, 5, seed=1)
    found = pairwise_iou(a, b)
    for n in range(2):
        torch.testing.assert_close(found[n], box_iou(a[n], b[n]))


def test_empty_boxes_overlap_nothing():
    empty = torch.tensor([[3.0, 3.0, 3.0, 3.0], [9.0, 9.0, 2.0, 2.0]])
    assert not pairwise_iou(empty, torch.cat([empty, torch.tensor([[0.0, 0.0, 9.0, 9.0]])])).any()


def test_a_suppressed_box_suppresses_still():
    """The third overlaps the second alone; the usual suppression would keep it."""
    chain = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0], [6.0, 0.0, 16.0, 10.0]])
    assert box_iou(chain, chain)[0].tolist() == pytest.approx([1, 70 / 130, 40 / 160])
    assert fast_nms(chain, 0.5).tolist() == [True, False, False]
    assert fast_nms(chain, 70 / 130 + 1e-3).tolist() == [True, True, True]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_equals_a_loop(threshold):
    groups = boxes(3, 40)
    kept = fast_nms(groups, threshold)
    for group, found in zip(groups, kept, strict=True):
        iou = box_iou(group, group)
        wanted = [all(iou[i, j] <= threshold for j in range(i)) for i in range(len(group))]
        assert found.tolist() == wanted and 1 < sum(wanted) < len(wanted)


def test_no_boxes():
    assert fast_nms(torch.zeros(3, 0, 4), 0.5).shape == (3, 0)
