import pytest
import torch

from b2inst.losses.giou import giou_ltrb


def one_box(pred, target):
    """The same in corners around the origin, one number at a time."""
    (px0, py0, px1, py1), (tx0, ty0, tx1, ty1) = ((-b[0], -b[1], b[2], b[3]) for b in (pred, target))
    intersection = (min(px1, tx1) - max(px0, tx0)) * (min(py1, ty1) - max(py0, ty0))
    union = (px1 - px0) * (py1 - py0) + (tx1 - tx0) * (ty1 - ty0) - intersection
    enclosing = (max(px1, tx1) - min(px0, tx0)) * (max(py1, ty1) - min(py0, ty0))
    return 1 - ((intersection + 1) / (union + 1) - (enclosing - union) / enclosing)


def boxes(count=50, seed=0):
    return torch.rand(2, count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 8


def test_equals_a_loop():
    pred, target = boxes()
    expected = [one_box(p, t) for p, t in zip(pred.tolist(), target.tolist(), strict=True)]
    assert giou_ltrb(pred, target).tolist() == pytest.approx(expected)


def test_by_hand():
    pred = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [2.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    target = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    # equal; 4 in 16; a cross: I = 4, U = 12, C = 16; an empty prediction: I = 0, U = C = 4
    assert giou_ltrb(pred, target).tolist() == pytest.approx([0, 1 - 5 / 17, 1 - 5 / 13 + 4 / 16, 1 - 1 / 5])


def test_empty_boxes_and_no_boxes():
    pred = torch.zeros(2, 4, requires_grad=True)
    loss = giou_ltrb(pred, torch.zeros(2, 4))
    assert loss.tolist() == [0, 0]
    loss.sum().backward()
    assert pred.grad.isfinite().all()
    none = torch.zeros(0, 4, requires_grad=True)
    assert giou_ltrb(none, torch.zeros(0, 4)).shape == (0,)
    giou_ltrb(none, torch.zeros(0, 4)).sum().backward()


def test_gradient_and_precision():
    pred, target = boxes(5)
    assert torch.autograd.gradcheck(giou_ltrb, (pred.requires_grad_(), target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert giou_ltrb(pred.half(), target.half()).dtype == torch.float32
    large = torch.full((1, 4), 200.0, dtype=torch.float16)  # its area, 160,000, does not fit fp16
    assert giou_ltrb(large, large).item() == 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(1, 4\)"):
        giou_ltrb(torch.zeros(3, 4), torch.zeros(1, 4))
