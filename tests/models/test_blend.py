import math

import pytest
import torch
from torch.nn import functional as F

from b2inst.models.assembly.blend import AttentionBlend
from models.wanted import bilinear, wanted


def by_hand(bases, box, params, attention_size, mask_size, stride):
    """One mask: bases (K, h, w), params (K * A * A,), basis-major and row by row."""
    x0, y0, x1, y1 = (v / stride for v in box)
    side, mask = attention_size, []
    for i in range(mask_size):
        row = []
        for j in range(mask_size):
            by = y0 + (i + 0.5) * (y1 - y0) / mask_size - 0.5
            bx = x0 + (j + 0.5) * (x1 - x0) / mask_size - 0.5
            ay, ax = ((v + 0.5) * side / mask_size - 0.5 for v in (i, j))
            weights, values = [], []
            for k in range(len(bases)):
                flat = params[k * side * side : (k + 1) * side * side]
                weights.append(math.exp(bilinear([flat[r * side : (r + 1) * side] for r in range(side)], ay, ax)))
                values.append(bilinear(bases[k], by, bx))
            row.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
        mask.append(row)
    return torch.tensor(mask)


def case(num_bases=3, boxes=2, attention_size=3):
    generator = torch.Generator().manual_seed(0)
    bases = torch.randn(2, num_bases, 16, 20, generator=generator)
    corners = torch.tensor([[9.0, 6.5, 40.0, 50.0], [20.0, 20.0, 31.0, 27.0]])[:boxes]
    params = torch.randn(boxes, num_bases * attention_size**2, generator=generator) * 2
    return bases, corners, torch.arange(boxes) % 2, params


def test_masks_by_hand():
    bases, boxes, image, params = case()
    masks = AttentionBlend(attention_size=3, mask_size=8)(bases, wanted(boxes, image, params))
    assert masks.shape == (2, 8, 8)
    for i in range(2):
        expected = by_hand(bases[image[i]].tolist(), boxes[i].tolist(), params[i].tolist(), 3, 8, 4)
        torch.testing.assert_close(masks[i], expected, atol=1e-4, rtol=1e-4)


def test_attention_sums_to_one_over_the_bases():
    attention = AttentionBlend(attention_size=3, mask_size=8).attention(case()[3])
    assert attention.shape == (2, 3, 8, 8)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 8, 8))
    assert attention.std(dim=1).min() > 0


def test_equal_attention_is_the_mean_of_the_bases():
    bases, boxes, image, params = case()
    assembly = AttentionBlend(attention_size=3, mask_size=8)
    masks = assembly(bases, wanted(boxes, image, params * 0))
    torch.testing.assert_close(masks, assembly.pool(bases, boxes, image).mean(1))


def test_rows_of_a_basis_turn_its_attention_on():
    bases, boxes, image, params = case()
    assembly = AttentionBlend(attention_size=3, mask_size=8)
    assert assembly.num_params(3) == params.shape[1] == 27 and assembly.rows_of_basis(1) == slice(9, 18)
    params = params * 0
    params[:, assembly.rows_of_basis(1)] = 50
    torch.testing.assert_close(assembly(bases, wanted(boxes, image, params)), assembly.pool(bases, boxes, image)[:, 1])


def test_published_sizes():
    assembly = AttentionBlend()
    assert (assembly.num_params(4), assembly.num_params(5), assembly.rows_of_basis(4)) == (784, 980, slice(784, 980))
    bases, *rest = case(num_bases=4, attention_size=14)
    assert assembly(bases, wanted(*rest)).shape == (2, 56, 56)


def test_a_map_has_a_cell_at_least():
    with pytest.raises(ValueError, match="attention_size=0: give a whole number of at least 1"):
        AttentionBlend(attention_size=0)


def test_locations_may_share_a_box():
    bases, boxes, image, _ = case()
    params = torch.randn(5, 27, generator=torch.Generator().manual_seed(1))
    roi = torch.tensor([1, 0, 0, 1, 0])
    assembly = AttentionBlend(attention_size=3, mask_size=8)
    shared = assembly(bases, wanted(boxes, image, params, roi))
    torch.testing.assert_close(shared, assembly(bases, wanted(boxes[roi], image[roi], params)))


def test_shared_boxes_have_the_gradient_of_repeated_ones():
    bases, boxes, image, _ = case()
    bases.requires_grad_()
    params = torch.randn(5, 27, generator=torch.Generator().manual_seed(1))
    roi = torch.tensor([1, 0, 0, 1, 0])
    assembly = AttentionBlend(attention_size=3, mask_size=8)
    (shared,) = torch.autograd.grad(assembly(bases, wanted(boxes, image, params, roi)).sin().sum(), bases)
    (repeated,) = torch.autograd.grad(assembly(bases, wanted(boxes[roi], image[roi], params)).sin().sum(), bases)
    torch.testing.assert_close(shared, repeated)


def test_loss_is_weighted_by_centerness():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 4, generator=generator)
    target = (torch.rand(3, 4, 4, generator=generator) > 0.5).float()
    weight = torch.tensor([1.0, 0.5, 0.0])
    values = [F.binary_cross_entropy_with_logits(a, b) for a, b in zip(logits, target, strict=True)]
    loss = AttentionBlend().loss(logits, target, weight, torch.tensor(3.0))
    assert loss.item() == pytest.approx((values[0] + 0.5 * values[1]).item() / 3, rel=1e-5)


@pytest.mark.parametrize("num_boxes", [0, 2])
def test_no_masks_stay_attached(num_boxes):
    bases, boxes, image, params = case()
    bases, params = bases.requires_grad_(), params[:0].requires_grad_()
    none = torch.zeros(0, dtype=torch.int64)
    assembly = AttentionBlend(attention_size=3, mask_size=8)
    masks = assembly(bases, wanted(boxes[:num_boxes], image[:num_boxes], params, none))
    assert masks.shape == (0, 8, 8)
    loss = assembly.loss(masks, torch.zeros(0, 8, 8), torch.zeros(0), torch.tensor(1e-6))
    assert loss.item() == 0
    loss.backward()
    assert bases.grad is not None and params.grad is not None
