"""torchvision's weights: ImageNet ResNets for the backbone, its FCOS for the detector, and its Mask R-CNN."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from b2inst.interop.adelaidet import Report
from b2inst.models.backbone import ResNet
from b2inst.models.mask_rcnn import MaskRCNN
from b2inst.models.preset import PRESETS
from b2inst.models.segmenter import Segmenter

# Our name by the pattern of theirs, in the state dict of `torchvision.models.detection.fcos_resnet50_fpn`.
_FCOS = (
    (r"backbone\.fpn\.(inner_blocks|layer_blocks)\.(.+)", r"fpn.pyramid.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.p6\.(.+)", r"fpn.pyramid.extra_blocks.convs.0.\1"),
    (r"backbone\.fpn\.extra_blocks\.p7\.(.+)", r"fpn.pyramid.extra_blocks.convs.1.\1"),
    (r"head\.classification_head\.conv\.(.+)", r"detector.cls_tower.\1"),
    (r"head\.classification_head\.cls_logits\.(.+)", r"detector.cls_logits.\1"),
    (r"head\.regression_head\.conv\.(.+)", r"detector.box_tower.\1"),
    (r"head\.regression_head\.bbox_reg\.(.+)", r"detector.box_pred.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(.+)", r"detector.quality.\1"),
)
_FCOS_MARK = "head.classification_head.cls_logits.weight"
# The same of `maskrcnn_resnet50_fpn`, whose first files have older names for some layers.
_MASK_RCNN = (
    (r"backbone\.fpn\.(inner_blocks|layer_blocks)\.(\d)\.(?:0\.)?(weight|bias)", r"fpn.pyramid.\1.\2.0.\3"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"(rpn\.head\.(?:cls_logits|bbox_pred)\..+)", r"\1"),
    (r"(roi_heads\.box_.+)", r"\1"),
    (r"roi_heads\.mask_head\.(\d\.0\..+)", r"mask_head.head.\1"),
    (r"roi_heads\.mask_predictor\.(.+)", r"mask_head.predictor.\1"),
)
_MASK_RCNN_MARK = "roi_heads.mask_predictor.mask_fcn_logits.weight"
# Its outputs with a row, or four, for each category id.
_OF_CLASSES = ("roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred.",
               "roi_heads.mask_predictor.mask_fcn_logits.")  # fmt: skip
# Its locations are the upper left corners of the cells, ours their centers, half a stride further.
_SHIFT = (0.5, 0.5, -0.5, -0.5)


def resnet_names(backbone: ResNet) -> dict[str, str]:
    """Names that torchvision gives to the tensors of a ResNet backbone, by our names.

    Example:
        >>> resnet_names(ResNet(18, weights=None))["stages.1.0.bn2.bias"]
        'layer1.0.bn2.bias'
    """
    stem = {"0": "conv1", "1": "bn1"}
    names = {}
    for own in backbone.state_dict():
        _, stage, first, rest = own.split(".", 3)
        names[own] = f"{stem[first]}.{rest}" if stage == "0" else f"layer{stage}.{first}.{rest}"
    return names


def load_resnet(backbone: ResNet, state: Mapping[str, Tensor], source: str = "state dict") -> Report:
    """Copy an ImageNet classifier of torchvision into a backbone that is already built.

    Args:
        backbone: with the preset `torchvision`; the same is done at construction by `weights=imagenet` or a path.
        state: of the same depth; the classifier is left over.
        source: where it comes from, for messages.

    Raises:
        ValueError: for another preset, and for keys or shapes that do not fit; all are listed.
    """
    if backbone.preset != PRESETS["torchvision"]:
        raise ValueError(f"{source}: torchvision's weights want RGB, its mean and deviation and the stride in the 3x3 "
                         "convolution; build the backbone with preset=torchvision")  # fmt: skip
    names, own = resnet_names(backbone), backbone.state_dict()
    wanted = {k: v for k, v in names.items() if not v.endswith("num_batches_tracked")}
    known = set(names.values())
    left_over = [k for k in state if k.startswith("fc.") or k.endswith("num_batches_tracked")]
    problems = [k for k in state if k not in known and k not in left_over]
    problems += [f"{v} (not in the file)" for v in wanted.values() if v not in state]
    problems += [
        f"{v} {tuple(state[v].shape)} for {tuple(own[k].shape)}"
        for k, v in wanted.items() if v in state and state[v].shape != own[k].shape
    ]  # fmt: skip
    if problems:
        raise ValueError(f"{source}: does not fit this backbone: {', '.join(problems)}; check model.backbone.depth")
    backbone.load_state_dict({**own, **{k: state[v] for k, v in wanted.items()}})
    return Report(list(wanted), {}, left_over)


def is_fcos(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of torchvision's FCOS."""
    return _FCOS_MARK in state


def load_fcos(
    model: Segmenter, state: Mapping[str, Tensor], category_ids: Sequence[int], source: str = "state dict"
) -> Report:
    """Copy torchvision's FCOS into backbone, pyramid and detector of a segmenter.

    Its class output has a row for each category id; the rows of our classes are taken, the others left over. Its
    locations lie half a stride off ours, which the bias of the box output makes good (exactly, where a box reaches at
    least half a stride to its right and below). Everything that makes masks starts afresh.

    Args:
        model: ResNet-50 with preset `torchvision`, five levels of 256 channels, four convolutions a tower, no scale.
        state: of `torchvision.models.detection.fcos_resnet50_fpn`.
        category_ids: of our classes, in their order, for instance COCO's 80.
        source: where it comes from, for messages.

    Raises:
        ValueError: for another preset or other sizes; all keys that do not fit are listed.
    """
    body = {k.removeprefix("backbone.body."): v for k, v in state.items() if k.startswith("backbone.body.")}
    own = model.state_dict()
    rows = _class_rows(state[_FCOS_MARK], category_ids, source)
    loaded, problems = {}, []
    for key, name in _names(state, _FCOS).items():
        value = state[key][rows] if "cls_logits" in key else state[key]
        if name not in own or own[name].shape != value.shape:
            problems.append(f"{key} {tuple(value.shape)}")
        else:
            loaded[name] = value
    parts = ("fpn.", "detector.")
    ours_alone = ("detector.params.", "detector.moving_positives")
    missing = [k for k in own if k.startswith(parts) and k not in loaded and not k.startswith(ours_alone)]
    if problems or missing:
        raise ValueError(f"{source}: does not fit this model. In the file: {', '.join(problems) or 'all fit'}. "
                         f"In the model alone: {', '.join(missing) or 'none'}")  # fmt: skip
    report = load_resnet(model.backbone, body, source)
    loaded["detector.box_pred.bias"] = loaded["detector.box_pred.bias"] + torch.tensor(_SHIFT)
    model.load_state_dict({**model.state_dict(), **loaded})
    taken = [*(f"backbone.{k}" for k in report.loaded), *loaded]
    fresh = {k: "masks, which the file does not have" for k in own if k not in taken}
    unused = [f"{_FCOS_MARK} row {row}" for row in range(len(state[_FCOS_MARK])) if row not in rows]
    return Report(taken, fresh, [*report.left_over, *unused])


def is_mask_rcnn(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of torchvision's Mask R-CNN."""
    return _MASK_RCNN_MARK in state


def load_mask_rcnn(
    model: MaskRCNN, state: Mapping[str, Tensor], category_ids: Sequence[int], source: str = "state dict"
) -> Report:
    """Copy torchvision's Mask R-CNN; the model then finds what torchvision's does.

    Its class outputs have a row for each category id and one for the background; the rows of our classes are taken. The
    published file was made without the epsilon of batch norm, so that its outputs differ a little.

    Args:
        model: ResNet-50 with preset `torchvision`, P2 to P6 with `top=pool`, the sizes of `model=mask_rcnn`.
        state: of `torchvision.models.detection.maskrcnn_resnet50_fpn`.
        category_ids: of our classes, in their order, for instance COCO's 80.
        source: where it comes from, for messages.

    Raises:
        ValueError: for another preset or other sizes; all keys that do not fit are listed.
    """
    body = {k.removeprefix("backbone.body."): v for k, v in state.items() if k.startswith("backbone.body.")}
    own = model.state_dict()
    rows = [0, *_class_rows(state[_MASK_RCNN_MARK], category_ids, source)]
    loaded, problems = {}, []
    for key, name in _names(state, _MASK_RCNN).items():
        value = state[key]
        if key.startswith(_OF_CLASSES):
            value = value.unflatten(0, (len(state[_MASK_RCNN_MARK]), -1))[rows].flatten(0, 1)
        if name not in own or own[name].shape != value.shape:
            problems.append(f"{key} {tuple(value.shape)}")
        else:
            loaded[name] = value
    missing = [k for k in own if not k.startswith("backbone.") and k not in loaded]
    if problems or missing:
        raise ValueError(f"{source}: does not fit this model. In the file: {', '.join(problems) or 'all fit'}. "
                         f"In the model alone: {', '.join(missing) or 'none'}")  # fmt: skip
    report = load_resnet(model.backbone, body, source)
    model.load_state_dict({**model.state_dict(), **loaded})
    unused = [f"{_MASK_RCNN_MARK} row {row}" for row in range(len(state[_MASK_RCNN_MARK])) if row not in rows]
    return Report([*(f"backbone.{k}" for k in report.loaded), *loaded], {}, [*report.left_over, *unused])


def _names(state: Mapping[str, Tensor], patterns: Sequence[tuple[str, str]]) -> dict[str, str | None]:
    """Our name of each tensor outside of the backbone, None for what we do not know."""
    keys = [key for key in state if not key.startswith("backbone.body.")]
    return {k: next((re.sub(p, to, k) for p, to in patterns if re.fullmatch(p, k)), None) for k in keys}


def _class_rows(weight: Tensor, category_ids: Sequence[int], source: str) -> list[int]:
    if not category_ids or max(category_ids) >= len(weight):
        given = list(category_ids)
        raise ValueError(f"{source}: has rows for category ids below {len(weight)}, not for {given}; give COCO's ids")
    return list(category_ids)
