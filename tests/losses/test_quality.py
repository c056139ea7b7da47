import pytest
import torch

from b2inst.losses.quality import quality_regression


def test_by_hand_and_only_positive_targets_count():
    pred = torch.tensor([0.5, 0.0, -0.5, 0.9])
    target = torch.tensor([1.0, 0.5, 0.5, 0.0])
    assert quality_regression(pred, target).item() == pytest.approx((0.25 + 0.25 + 1.0) / 2 / 3)


@pytest.mark.parametrize("target", [torch.zeros(3), torch.zeros(0)], ids=["no positive", "no instance"])
def test_nothing_to_learn_gives_a_zero_attached_to_the_graph(target):
    pred = torch.ones(len(target), requires_grad=True)
    loss = quality_regression(pred, target)
    assert loss.shape == () and loss.item() == 0 and loss.requires_grad
    loss.backward()
    assert not pred.grad.any()


def test_no_gradient_into_the_target():
    pred = torch.tensor([0.2, 0.4], requires_grad=True)
    target = torch.tensor([0.5, 0.5], requires_grad=True)
    quality_regression(pred, target).backward()
    assert target.grad is None
    assert pred.grad.tolist() == pytest.approx([-0.15, -0.05])


def test_gradient_and_precision():
    pred = torch.rand(4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(quality_regression, (pred, target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quality_regression(pred.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        quality_regression(torch.zeros(3, 1), torch.zeros(3))
