"""Losses are computed in float32, also where autocast gives them logits of half the width."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.bf1 import BF1
from b2inst.losses.dice import Dice
from b2inst.losses.edge_agreement import EdgeAgreement
from b2inst.losses.kervadec import Kervadec
from b2inst.losses.term import Term
from b2inst.models import fcos, scoring
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary
from models import build

BOXES = [[(8, 8, 40, 40)], [(4, 4, 30, 30), (50, 10, 90, 60)]]
TERMS = {"bce": BinaryCrossEntropy, "dice": Dice, "bf1": BF1, "kervadec": Kervadec, "edges": EdgeAgreement}
FUNCTIONS = {  # every function that a loss ends in, and how often it is called: boxes, qualities, masks, pixels
    (fcos, "sigmoid_focal_loss"): 1, (fcos, "giou_ltrb"): 1, (scoring, "quality_regression"): 2,
    (F, "binary_cross_entropy_with_logits"): 3, (F, "cross_entropy"): 1,
}  # fmt: skip


def floating(values):
    return [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]


@pytest.fixture
def calls(monkeypatch):
    """Calls of the functions and terms: name, what went in, what came out."""
    seen = []

    def spy(holder, name, key):
        original = getattr(holder, name)

        def wrapped(*args, **kwargs):
            value = original(*args, **kwargs)
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                wide = [v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in args]
                seen.append((key, floating(args), value, original(*wide, **kwargs)))
            return value

        monkeypatch.setattr(holder, name, wrapped)

    for holder, name in FUNCTIONS:
        spy(holder, name, name)
    for name, cls in TERMS.items():
        spy(cls, "forward", name)
    return seen


@pytest.mark.parametrize("boundary", [GlobalBoundary, InstanceBoundary])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_loss_of_the_model(calls, boundary, dtype):
    """What goes in is float32 (terms on maps cast first), and the value is that of the same logits in float32."""
    terms: dict[str, Term] = {name: cls() for name, cls in TERMS.items()}
    model, batch = build.segmenter(boundary(), "iou_boundary", losses=terms), build.batch(BOXES)
    with torch.autocast("cpu", dtype):
        outputs = model(batch.images)
        losses, _ = model.losses(outputs, batch)
        total = model.total_loss(losses)
    assert outputs.bases.dtype == outputs.detector.cls_logits[0].dtype == dtype, "autocast was at work"
    assert total.dtype == torch.float32 and total.isfinite()
    assert {name: value.dtype for name, value in losses.items()} == dict.fromkeys(model.weights(), torch.float32)
    names = [key for key, *_ in calls]
    assert all(names.count(name) >= count for (_, name), count in FUNCTIONS.items()) and set(TERMS) <= set(names)
    for key, given, value, in_full in calls:
        if key not in TERMS:  # these have tests of their own, with logits of half the width
            assert {v.dtype for v in given} == {torch.float32}, key
        assert value.dtype == torch.float32 and torch.equal(value, in_full), key
