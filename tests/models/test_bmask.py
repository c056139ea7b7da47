"""The boundary branch against one that is wired by hand, and what it learns from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from b2inst.models.bmask import BoundaryMaskHead
from b2inst.models.mask_head import Features, MaskHead, Rois
from models import build
from models.two_stage import bmask

SIZE = (64, 64)
BOXES = [torch.tensor([[4.0, 6.0, 40.0, 38.0], [10.0, 2.0, 22.0, 30.0]]), torch.tensor([[1.0, 1.0, 60.0, 62.0]])]


@pytest.fixture
def head() -> BoundaryMaskHead:
    torch.manual_seed(0)
    head = BoundaryMaskHead(8, build.CLASSES, 4, channels=6)
    for name, value in head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.3)
    return head


@pytest.fixture
def features() -> Features:
    generator = torch.Generator().manual_seed(0)
    levels = {str(i): torch.randn(2, 8, 16 // 2**i, 16 // 2**i, generator=generator) for i in range(4)}
    return Features(levels, torch.zeros(2, 3, *SIZE), [SIZE, SIZE])


def rois() -> Rois:
    return Rois(BOXES, torch.tensor([1, 3, 2]), torch.tensor([0, 1, 2]))


def by_hand(head: BoundaryMaskHead, features: Features) -> tuple[Tensor, Tensor]:
    """Mask logits and boundary logits; small boxes are pooled from P2, as both features are then."""
    state = head.state_dict()
    listed = torch.cat([torch.cat([torch.full((len(b), 1), float(n)), b], dim=1) for n, b in enumerate(BOXES)])

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options).relu()

    def predict(name: str, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(x, state[f"{name}.conv5_mask.weight"], state[f"{name}.conv5_mask.bias"], 2).relu()
        return F.conv2d(x, state[f"{name}.mask_fcn_logits.weight"], state[f"{name}.mask_fcn_logits.bias"])

    masks = roi_align(features.levels["0"], listed, 14, 1 / 4, sampling_ratio=2)
    for i in range(4):
        masks = conv(f"head.{i}.0", masks, padding=1)
    edges = conv(
        "boundary_reduce", roi_align(features.levels["0"], listed, 28, 1 / 4, sampling_ratio=2), stride=2, padding=1
    )
    edges = edges + conv("mask_to_boundary", masks)
    for i in range(2):
        edges = conv(f"boundary_head.{i}.0", edges, padding=1)
    masks = conv("fusion", masks + conv("boundary_to_mask", edges), padding=1)
    return predict("predictor", masks), predict("boundary_predictor", edges)


def test_the_branch_is_wired_as_published(head: BoundaryMaskHead, features: Features) -> None:
    masks, edges = by_hand(head, features)
    torch.testing.assert_close(head(features, BOXES), masks)
    target = torch.zeros(3, 28, 28)
    target[:, 5:20, 8:] = 1
    terms = bmask().terms
    losses = head.losses(features, rois(), target, terms)
    chosen = torch.stack([edges[0, 1], edges[1, 3], edges[2, 2]])
    outline = torch.zeros(28, 28)  # of the rectangle, closed where it touches the frame
    outline[5:20, 8:] = 1
    outline[6:19, 9:27] = 0
    probs, wanted = chosen.sigmoid(), outline.expand(3, -1, -1)
    bce = -(wanted * probs.log() + (1 - wanted) * (1 - probs).log()).mean()
    overlap = (probs * wanted).sum((1, 2))
    dice = (1 - (2 * overlap + 1) / (probs.sum((1, 2)) + wanted.sum((1, 2)) + 1)).mean()
    assert losses["boundary_bce"].item() == pytest.approx(bce.item(), rel=1e-4)
    assert losses["boundary_dice"].item() == pytest.approx(dice.item(), rel=1e-4)
    plain = MaskHead.losses(head, features, rois(), target, {})
    assert losses["mask"].item() == pytest.approx(plain["mask"].item(), rel=1e-5)


@pytest.mark.parametrize(("padding", "cells"), [("zeros", 4 * 27), ("replicate", 0)])
def test_the_frame_of_the_box(padding: str, cells: int, features: Features) -> None:
    """A mask that fills its box has the frame as its boundary, or none."""
    head, seen = BoundaryMaskHead(8, build.CLASSES, 4, channels=6, padding=padding), []

    def term(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        seen.append((target, weight))
        return logits.sum()

    term.supervises = "boundary"
    head.losses(features, rois(), torch.ones(3, 28, 28), {"seen": term})
    target, weight = seen[0]
    assert target.flatten(1).sum(1).tolist() == [cells] * 3 and weight.all()


@pytest.mark.parametrize("options", [{"padding": "reflect"}, {"threshold": 8.0}], ids=str)
def test_unknown_options(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        BoundaryMaskHead(8, build.CLASSES, 4, **options)


def test_the_boundary_is_learned_and_used() -> None:
    model, batch = bmask(), build.batch(build.BATCHES["normal"])
    losses, _ = model.losses(model(batch.images), batch)
    head = model.mask_head
    losses["mask"].backward(retain_graph=True)
    used = [head.boundary_reduce, head.mask_to_boundary, head.boundary_to_mask, head.boundary_head[0][0]]
    assert all(layer.weight.grad.any() for layer in used)
    assert head.boundary_predictor.conv5_mask.weight.grad is None
    model.zero_grad()
    (losses["boundary_bce"] + losses["boundary_dice"]).backward()
    assert head.boundary_predictor.conv5_mask.weight.grad.any() and head.head[0][0].weight.grad.any()
    assert head.predictor.conv5_mask.weight.grad is None and head.fusion.weight.grad is None


@torch.no_grad()
def test_the_boundary_logits_are_not_computed_at_test_time() -> None:
    model, images = bmask().eval(), build.images(1, 64, 96)
    calls = []
    model.mask_head.boundary_predictor.register_forward_hook(lambda *call: calls.append(call))
    model.detect(model(images), images)
    assert not calls


def test_no_positives(head: BoundaryMaskHead, features: Features) -> None:
    none = Rois([torch.zeros(0, 4)] * 2, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    losses = head.losses(features, none, torch.zeros(0, 28, 28), bmask().terms)
    assert [value.item() for value in losses.values()] == [0, 0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
