"""YOLACT's parts together, with every boundary variant and every scoring."""

from __future__ import annotations

import pytest
import torch

from b2inst.models.assembly.blend import AttentionBlend
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, NoBoundary, UnsupervisedBoundary
from models import build

BOUNDARIES = {
    "none": NoBoundary, "unsupervised": UnsupervisedBoundary, "instance": InstanceBoundary, "global": GlobalBoundary,
}  # fmt: skip
MODES = [None, "iou", "boundary", "iou_boundary", "fcn_iou"]


def step(model, batch):
    torch.manual_seed(0)
    losses, stats = model.losses(model(batch.images), batch)
    model.total_loss(losses).backward()
    return losses, stats


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_combination_learns_and_detects(boundary, mode):
    model = build.yolact(BOUNDARIES[boundary](), mode).train()
    batch = build.batch(build.BATCHES["normal"])
    losses, _ = step(model, batch)
    names = {"cls", "box", "mask", "semantic"} | {f"score_{quality}" for quality in model.scoring.qualities}
    if boundary in ("instance", "global"):
        names |= {"boundary_bce", "boundary_dice"}
    assert losses.keys() == names and all(v.isfinite() and v.requires_grad for v in losses.values())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all()]
    idle = [name for name, g in gradients.items() if "weight" in name and not g.any()]
    assert all(name.startswith("fpn.top.") for name in idle)  # where no anchor is a positive or a hard negative
    assert model.detector.params.out_channels == 3 * (8 if boundary == "none" else 9)
    model.eval()
    with torch.no_grad():
        model.detector.cls_logits.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        found = model.detect(model(batch.images), batch.images)
    for detections in found:
        assert len(detections) > 3 and detections.mask_logits.shape == (len(detections), 28, 28)
        assert (detections.scores.diff() <= 0).all() and detections.mask_logits.std() > 0
        assert (detections.scores <= detections.box_scores + 1e-6).all()


@pytest.mark.parametrize("boxes", [name for name in build.BATCHES if name != "normal"])
def test_odd_batches(boxes):
    """Losses stay finite, and attached to every parameter."""
    model = build.yolact(GlobalBoundary(), "iou_boundary").train()
    losses, stats = step(model, build.batch(build.BATCHES[boxes]))
    assert all(v.isfinite() and v.requires_grad for v in losses.values())
    assert all(v.isfinite() for v in stats.values())
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_masks_are_those_of_the_anchors_coefficients():
    """Prototypes times tanh of what the layer gives at the cell, for the channels of the anchor."""
    model = build.yolact(NoBoundary()).eval()
    batch = build.batch(build.BATCHES["normal"])
    with torch.no_grad():
        outputs = model(batch.images)
        _, places, _ = model.detector.losses(outputs.detector, batch.targets)
        masks = model.masks_at(outputs, places, places.boxes)
        dense = [model.detector.params(tower) for tower in outputs.detector.tower]
        assert len(places.anchor.unique()) > 1 and len(places.level.unique()) > 1
        for p in range(len(places)):
            level, n, y, x, a = (int(getattr(places, k)[p]) for k in ("level", "image", "y", "x", "anchor"))
            coefficients = dense[level][n, 8 * a : 8 * a + 8, y, x].tanh()
            whole = (outputs.bases[n].clamp(min=0) * coefficients[:, None, None]).sum(dim=0)
            wanted = model.assembly.pool(whole[None, None], places.boxes[p][None], torch.tensor([0]))[0, 0]
            torch.testing.assert_close(masks[p], wanted, atol=1e-4, rtol=1e-4)


def test_the_start_of_the_boundary_is_set_for_every_anchor():
    assembly = AttentionBlend(attention_size=7, mask_size=28)
    model = build.yolact(GlobalBoundary(attention_bias=-4.0), num_bases=4, assembly=assembly)
    bias = model.detector.params.bias.unflatten(0, (3, 5, 49))
    assert (bias[:, :4] == 0).all() and (bias[:, 4] == -4).all()


def test_a_few_objects_are_learned_by_heart():
    """Boxes, classes and masks of ellipses on noise, from scratch."""
    model = build.yolact(NoBoundary(), detector={"sizes_of_interest": (64, 128, 256, 512), "norm": "gn"}).train()
    weights = {**build.WEIGHTS, "box": 1.5, "mask": 6.125, "semantic": 1.0}
    model.loss_weights = weights
    batch = build.batch(build.BATCHES["normal"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        step(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    model.eval()
    for part in model.modules():  # statistics of so few steps are not those of the images
        if isinstance(part, torch.nn.BatchNorm2d):
            part.train()
    with torch.no_grad():
        found = model.detect(model(batch.images), batch.images)
    targets = batch.targets
    for n, detections in enumerate(found):
        own = (targets.image_index == n).nonzero()[:, 0]
        best = detections[: len(own)]
        assert (best.box_scores > 0.5).all()
        for label, box in zip(best.labels.tolist(), best.boxes, strict=True):
            match = own[targets.labels[own] == label]
            assert len(match) == 1 and (box - targets.boxes[match[0]]).abs().max() < 8
        # an ellipse fills pi / 4 of its box
        area = (best.mask_logits > 0).float().mean(dim=(1, 2))
        assert ((area - torch.pi / 4).abs() < 0.12).all()
