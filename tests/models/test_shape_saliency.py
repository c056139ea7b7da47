import pytest
import torch
from torch.nn import functional as F

from b2inst.models.assembly.shape_saliency import ShapeSaliency, logit_of_product
from models.wanted import bilinear, in_box, maps_and_boxes, numbers, wanted


@pytest.mark.parametrize("num_bases", [1, 3])
def test_masks_by_hand(num_bases):
    """The probability of the shape times that of the saliency, to which further bases are added."""
    bases, boxes, image = maps_and_boxes(num_bases)
    params = numbers(3, 16 + num_bases - 1)
    assembly = ShapeSaliency(shape_size=4, mask_size=8)
    assert assembly.num_params(num_bases) == params.shape[1]
    probs = assembly(bases, wanted(boxes, image, params)).sigmoid()
    cells = [(i + 0.5) / 2 - 0.5 for i in range(8)]
    for p in range(3):
        grid = params[p, :16].reshape(4, 4).tolist()
        shape = torch.tensor([[bilinear(grid, y, x) for x in cells] for y in cells])
        whole = bases[image[p], 0] + sum(bases[image[p], k] * params[p, 15 + k] for k in range(1, num_bases))
        saliency = in_box(whole, boxes[p], 8, 4)
        torch.testing.assert_close(probs[p], shape.sigmoid() * saliency.sigmoid(), atol=1e-5, rtol=1e-4)


def test_logits_of_products():
    a, b = numbers(50, seed=1).double() * 4, numbers(50, seed=2).double() * 4
    product = a.sigmoid() * b.sigmoid()
    torch.testing.assert_close(logit_of_product(a, b), torch.logit(product))


def test_logits_stay_finite_and_have_a_gradient():
    """Also where the product of the probabilities is 0 or 1 in float32."""
    values = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0])
    a, b = (grid.flatten().requires_grad_() for grid in torch.meshgrid(values, values, indexing="ij"))
    logits = logit_of_product(a, b)
    F.binary_cross_entropy_with_logits(logits, (torch.arange(25) % 2).float()).backward()
    assert logits.isfinite().all() and a.grad.isfinite().all() and b.grad.isfinite().all()
    # The lesser of the two decides, also where both are all but certain.
    torch.testing.assert_close(logits[[0, 4, 20]].detach(), torch.tensor([-400.0, -200.0, -200.0]))
    assert logits[24].item() == pytest.approx(200, abs=1)


def test_a_shape_has_a_cell_at_least():
    with pytest.raises(ValueError, match="shape_size=0: give a whole number of at least 1"):
        ShapeSaliency(shape_size=0)
