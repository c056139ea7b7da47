"""Every stage of our BlendMask, from the same weights and image, against a fixture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from b2inst.config import CHECKPOINT_TARGETS, build, plain
from b2inst.interop.adelaidet import export_adelaidet, load_adelaidet
from b2inst.interop.names import adelaidet_names
from b2inst.interop.variant import DEPTHS
from b2inst.models.assembly.base import Instances
from b2inst.models.segmenter import Outputs, Segmenter
from b2inst.ops.masks import paste_masks
from b2inst.ops.rasterize import rasterize, rasterize_in_box
from b2inst.paths import config_dir
from b2inst.structures import Batch, ImageBatch, Targets
from parity.fixture import Fixture
from parity.rule import digest, rule_state_dict

INFINITE = float("inf")
FORWARD, LOSS, GRADIENT, MASK = 1e-4, 1e-4, 1e-3, 1e-3
# Scores of two detections that are no further apart may change places: the reference itself varies by as much.
TIE = 2e-6
LOSSES = {"loss_basis_sem": "semantic", "loss_mask": "mask", "loss_fcos_cls": "cls", "loss_fcos_loc": "box",
          "loss_fcos_ctr": "quality"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: the largest error of a stage, and how large it may be."""

    stage: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within its tolerance; NaN is not."""
        return self.error <= self.tolerance


def build_model(fixture: Fixture, *overrides: str) -> Segmenter:
    """The published BlendMask of the fixture's depth, from `experiment=blendmask_r50_1x recipe=coco_1x`."""
    blocks = {m[1] for k in fixture.digests if (m := re.match(r"backbone\.bottom_up\.res4\.(\d+)\.", k))}
    depth = DEPTHS[any(".conv3." in k for k in fixture.digests), len(blocks)]
    settings = [f"model.backbone.depth={depth}", f"model.num_classes={fixture.shape('logits_0')[1]}", *overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        chosen = ["experiment=blendmask_r50_1x", "recipe=coco_1x", "name=parity", "output=parity"]
        config = compose("train", [*chosen, *settings])
        return build(plain(config)["model"], CHECKPOINT_TARGETS)


def fill(model: Segmenter, fixture: Fixture, weights: dict[str, Tensor] | None = None) -> Row:
    """Load the weights of the rule, or others, and compare their digests with those of the fixture."""
    if weights is None:
        weights = rule_state_dict({k: tuple(v.shape) for k, v in export_adelaidet(model).items()})
    load_adelaidet(model, weights)
    exported = {k: digest(v) for k, v in export_adelaidet(model).items()}
    wrong = [k for k in {**exported, **fixture.digests} if exported.get(k) != fixture.digests.get(k)]
    return Row("weights", len(wrong), 0, f"{len(exported)} tensors; wrong: {', '.join(wrong[:4]) or 'none'}")


def image_batch(fixture: Fixture) -> ImageBatch:
    """The image of the fixture, padded to a multiple of 32."""
    image = fixture["image_bgr_u8"].flip(0)
    height, width = image.shape[-2:]
    pixels = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=torch.uint8)
    pixels[0, :, :height, :width] = image
    size = torch.tensor([[height, width]])
    original = torch.tensor(fixture.shape("gt_basis_sem"))[None]
    return ImageBatch(pixels, size, original, torch.tensor([0]))


def targets(fixture: Fixture, images: ImageBatch, mask_size: int) -> Targets:
    """The instances of the fixture, larger boxes first, so that the smaller one owns a pixel of two.

    The masks in the boxes are drawn from the polygons, as published; our data would take them from the pixels.
    """
    boxes, labels = fixture["gt_boxes"], fixture["gt_classes"]
    order = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True, stable=True)
    polygons = [[fixture.arrays["gt_polys"][i].tolist()] for i in order.tolist()]
    height, width = images.pixels.shape[-2:]
    in_boxes = [rasterize_in_box(p, b, mask_size) for p, b in zip(polygons, boxes[order].tolist(), strict=True)]
    return Targets(
        boxes=boxes[order],
        labels=labels[order],
        image_index=torch.zeros(len(order), dtype=torch.int64),
        masks=torch.stack([torch.from_numpy(rasterize(p, height, width)) for p in polygons]),
        crowd=torch.zeros(1, height, width, dtype=torch.bool),
        roi_masks=torch.stack([torch.from_numpy(m) for m in in_boxes]).float(),
    )


@torch.no_grad()
def inference(model: Segmenter, fixture: Fixture) -> Iterator[Row]:
    """Compare everything up to the final masks."""
    images = image_batch(fixture)
    outputs = model.eval()(images)
    detector = outputs.detector
    yield from _levels(fixture, "fpn_p", "FPN", outputs.features, first=3)
    yield from _levels(fixture, "logits_", "class logits", detector.cls_logits)
    yield from _levels(fixture, "reg_", "box distances", detector.ltrb)
    yield from _levels(fixture, "ctr_", "centerness logits", detector.quality_logits)
    yield from _levels(fixture, "top_", "attention features", [model.detector.params(t) for t in detector.tower])
    yield Row("bases", fixture.error("bases", outputs.bases), FORWARD)
    yield from _detections(model, fixture, outputs)
    yield from _final(model, fixture, outputs, images)


def _levels(fixture: Fixture, prefix: str, stage: str, found: list[Tensor], first: int = 0) -> Iterator[Row]:
    names = sorted(k for k in fixture.arrays if re.fullmatch(rf"{prefix}\d", k))
    if [f"{prefix}{first + i}" for i in range(len(found))] != names:
        yield Row(stage, INFINITE, FORWARD, f"{len(found)} levels, the fixture has {len(names)}")
        return
    for level, (name, tensor) in enumerate(zip(names, found, strict=True), start=3):
        yield Row(f"{stage} P{level}", fixture.error(name, tensor), FORWARD)


def _detections(model: Segmenter, fixture: Fixture, outputs: Outputs) -> Iterator[Row]:
    places = model.detector.select(outputs.detector)
    stride = torch.tensor(model.detector.strides)[places.level]
    where = torch.stack([places.x, places.y], dim=1) * stride[:, None] + stride[:, None] // 2
    found = _keys(places.level, where, places.labels)
    wanted = _keys(fixture["det_levels"], fixture["det_locations"], fixture["det_classes"])
    if sorted(found) != sorted(wanted):
        common = len(set(found) & set(wanted))
        yield Row("detections", INFINITE, 0, f"{len(found)}, the fixture has {len(wanted)}; {common} in common")
        return
    order = torch.tensor([found.index(key) for key in wanted])
    yield _order("detections", order, fixture["det_scores"])
    places = places.take(order)
    yield Row("detected boxes", fixture.error("det_boxes", places.boxes), FORWARD)
    yield Row("detection scores", fixture.error("det_scores", places.scores), FORWARD)
    params = model.detector.params_at(outputs.detector, places)
    yield Row("attention of detections", fixture.error("det_top_feat", params), FORWARD)
    pooled = model.assembly.pool(outputs.bases, places.boxes, places.image)
    yield Row("bases in the boxes", fixture.error("rois", pooled), FORWARD)
    logits = model.assembly(
        outputs.bases, Instances(places.boxes, places.image, params, *model.detector.origins(places))
    )
    yield Row("blended logits", fixture.error("blend_logits", logits.flatten(1)), FORWARD)


def _keys(level: Tensor, where: Tensor, label: Tensor) -> list[tuple[int, ...]]:
    """What makes a detection unique: level, location and class."""
    return list(zip(level.tolist(), *where.long().T.tolist(), label.tolist(), strict=True))


def _order(stage: str, order: Tensor, scores: Tensor) -> Row:
    """How many detections stand elsewhere than in the fixture; those with equal scores may."""
    moved = (order != torch.arange(len(order))).nonzero(as_tuple=True)[0]
    wrong = sum(1 for i in moved if (scores[i] - scores[order[i]]).abs() > TIE)
    return Row(stage, wrong, 0, f"{len(order)}, out of order; {len(moved) - wrong} more among equal scores")


def _final(model: Segmenter, fixture: Fixture, outputs: Outputs, images: ImageBatch) -> Iterator[Row]:
    wanted = fixture.masks()
    height, width = wanted.shape[1:]
    found = model.detect(outputs, images)[0].resized((height, width))
    if len(found) != len(wanted):
        yield Row("final detections", INFINITE, 0, f"{len(found)}, the fixture has {len(wanted)}")
        return
    # the nearest box of the same class: one location may be two detections with one box
    far = 1e6 * (fixture["out_classes"][:, None] != found.labels)
    order = (torch.cdist(fixture["out_boxes"], found.boxes, p=INFINITE) + far).argmin(dim=1)
    yield _order("final detections", order, fixture["out_scores"])
    found = found[order]
    differing = int((found.labels != fixture["out_classes"]).sum())
    yield Row("final classes", differing, 0, "out of place")
    yield Row("final boxes", fixture.error("out_boxes", found.boxes), FORWARD)
    yield Row("final scores", fixture.error("out_scores", found.scores), FORWARD)
    masks = paste_masks(found.mask_logits.sigmoid(), found.boxes, height, width) >= 0.5
    differing, union = int((masks != wanted).sum()), int((masks | wanted).sum())
    note = f"share of mask pixels that differ: {differing} of {union:,} ({masks.numel():,} pixels in all)"
    yield Row("final masks", differing / max(union, 1), MASK, note)


def training(model: Segmenter, fixture: Fixture) -> Iterator[Row]:
    """Compare the semantic target, the losses and the gradient norms; batch statistics are those of the image."""
    images = image_batch(fixture)
    truth = targets(fixture, images, model.assembly.mask_size)
    target = model.semantic.target(images, truth)[0]
    wanted = fixture["gt_basis_sem"].long()[:: model.semantic.stride, :: model.semantic.stride]
    differing = int((target[: wanted.shape[0], : wanted.shape[1]] != wanted).sum())
    yield Row("semantic target", differing, 0, "cells that differ")
    losses, _ = model.train().losses(model(images), Batch(images, truth))
    factors = model.weights()
    if set(LOSSES) != set(fixture.losses) or set(LOSSES.values()) != set(losses):
        yield Row("losses", INFINITE, LOSS, f"{sorted(losses)}, the fixture has {sorted(fixture.losses)}")
        return
    for theirs, ours in LOSSES.items():
        found, wanted_loss = factors[ours] * losses[ours].item(), fixture.losses[theirs]
        note = f"{found:.7f}, reference {wanted_loss:.7f}"
        yield Row(theirs, abs(found - wanted_loss) / abs(wanted_loss), LOSS, note)
    model.zero_grad()
    model.total_loss(losses).backward()
    yield from _gradients(model, fixture)


def _gradients(model: Segmenter, fixture: Fixture) -> Iterator[Row]:
    names = adelaidet_names(model)
    norms = {names[k]: p.grad.norm().item() for k, p in model.named_parameters() if p.grad is not None}
    if norms.keys() != fixture.grad_norms.keys():
        differing = sorted(norms.keys() ^ fixture.grad_norms.keys())
        yield Row("gradient norms", INFINITE, GRADIENT, f"trained in one alone: {', '.join(differing[:4])}")
        return
    errors = {k: abs(norms[k] - v) / max(abs(v), 1e-12) for k, v in fixture.grad_norms.items()}
    worst = max(errors, key=lambda k: errors[k])
    yield Row("gradient norms", errors[worst], GRADIENT, f"{len(errors)} parameters, largest at {worst}")


def all_rows(fixture: Fixture, weights: dict[str, Tensor] | None = None, *overrides: str) -> list[Row]:
    """Compare every stage of a fixture."""
    model = build_model(fixture, *overrides)
    return [fill(model, fixture, weights), *inference(model, fixture), *training(model, fixture)]
