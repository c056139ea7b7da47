"""YOLACT's published weights (its ResNets) into a segmenter.

Nothing is skipped in silence, as in `b2inst.interop.adelaidet`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from b2inst.interop.adelaidet import Report
from b2inst.interop.boundary_rows import with_boundary_rows
from b2inst.interop.names import Rename, renamed
from b2inst.interop.torchvision import resnet_names
from b2inst.models.backbone import ResNet
from b2inst.models.fpn_yolact import YolactFPN
from b2inst.models.preset import PRESETS
from b2inst.models.protonet_yolact import YolactProtonet
from b2inst.models.segmenter import Segmenter
from b2inst.models.yolact import Yolact

HEAD = "prediction_layers.0"
ANCHORS = 3  # per cell, in all published models
DEPTHS = {6: 50, 23: 101}  # by blocks of the third stage
# Our parts that have no counterpart there.
OURS_ALONE = ("scoring.", "boundary.", "terms.", "semantic.")
MAY_BE_MISSING = re.compile(r".*\.num_batches_tracked|semantic_seg_conv\..*")
# In files, of no use here: counters, the backbone's stages a second time, and what only training needs.
MAY_BE_LEFT_OVER = re.compile(r".*\.num_batches_tracked|backbone\.layer\d\..*|semantic_seg_conv\..*")
_EXTRA_LEVEL = re.compile(r"fpn\.downsample_layers\.(\d+)\..*")  # of the first release, which did not use them


def is_yolact(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of a YOLACT."""
    return f"{HEAD}.conf_layer.weight" in state


def yolact_overrides(state: Mapping[str, Tensor], source: str = "state dict") -> list[str]:
    """The settings for the sizes of a file, as on the command line; they go with `experiment=yolact_r50`.

    Raises:
        ValueError: if its backbone is none that b2inst has.
    """
    blocks = {m[1] for k in state if (m := re.fullmatch(r"backbone\.layers\.2\.(\d+)\.conv3\.weight", k))}
    if len(blocks) not in DEPTHS:
        raise ValueError(f"{source}: a YOLACT whose backbone is no ResNet-50 or ResNet-101; b2inst has no DarkNet")
    sizes = {
        "num_classes": classes_of(state),
        "num_bases": state[f"{HEAD}.mask_layer.weight"].shape[0] // ANCHORS,
        "backbone.depth": DEPTHS[len(blocks)],
        "backbone.weights": "null",
    }
    return [f"model.{key}={value}" for key, value in sizes.items()]


def classes_of(state: Mapping[str, Tensor]) -> int:
    """How many classes a YOLACT tells apart, without the background."""
    return state[f"{HEAD}.conf_layer.weight"].shape[0] // ANCHORS - 1


def yolact_names(model: Segmenter) -> dict[str, str]:
    """YOLACT's name of each tensor of a segmenter that has one there.

    There, the layers of the pyramid are listed from C5 down, and those of the protonet with a ReLU behind each.

    Args:
        model: YOLACT's parts on a ResNet.

    Returns:
        Their name by our name, in our order; what only we have (scoring heads) is left out.

    Raises:
        ValueError: for other parts, or layers that YOLACT's models do not have.
    """
    parts = {"fpn": YolactFPN, "detector": Yolact, "basis": YolactProtonet, "backbone": ResNet}
    if other := [name for name, kind in parts.items() if not isinstance(getattr(model, name), kind)]:
        raise ValueError(
            f"model.{', model.'.join(other)}: not YOLACT's; its weights are for experiment=yolact_r50, which the "
            "conversion takes by itself: leave `experiment` alone, and give boundary@model.boundary=global "
            "'loss@model.losses=[bce,dice,bf1]' for the boundary basis and scoring@model.scoring=iou_boundary for the "
            "scores"
        )
    levels, convs = len(model.fpn.lateral) - 1, len(model.basis.tower)
    rules: tuple[tuple[str, Rename], ...] = (
        (r"fpn\.lateral\.(\d)\.(.+)", lambda m: f"fpn.lat_layers.{levels - int(m[1])}.{m[2]}"),
        (r"fpn\.outputs\.(\d)\.0\.(.+)", lambda m: f"fpn.pred_layers.{levels - int(m[1])}.{m[2]}"),
        (r"fpn\.top\.(\d)\.(.+)", lambda m: f"fpn.downsample_layers.{m[1]}.{m[2]}"),
        (r"basis\.tower\.(\d)\.0\.(.+)", lambda m: f"proto_net.{2 * int(m[1])}.{m[2]}"),
        (r"basis\.upsampled\.0\.(.+)", lambda m: f"proto_net.{2 * convs + 2}.{m[1]}"),  # behind the up-sampling layer
        (r"basis\.bases\.(.+)", lambda m: f"proto_net.{2 * convs + 4}.{m[1]}"),
        (r"detector\.tower\.(\d)\.(.+)", lambda m: f"{HEAD}.upfeature.{m[1]}.{m[2]}"),
        (r"detector\.box_pred\.(.+)", lambda m: f"{HEAD}.bbox_layer.{m[1]}"),
        (r"detector\.cls_logits\.(.+)", lambda m: f"{HEAD}.conf_layer.{m[1]}"),
        (r"detector\.params\.(.+)", lambda m: f"{HEAD}.mask_layer.{m[1]}"),
        (r"semantic\.conv\.(.+)", lambda m: f"semantic_seg_conv.{m[1]}"),
    )
    names = {
        f"backbone.{own}": "backbone." + re.sub(r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}", name)
        for own, name in resnet_names(model.backbone).items()
    }
    nameless = []
    for own in (key for key in model.state_dict() if key not in names):
        found = renamed(own, rules)
        if found is not None:
            names[own] = found
        elif not own.startswith(OURS_ALONE):
            nameless.append(own)
    if nameless:
        raise ValueError(f"YOLACT has no place for {', '.join(nameless)}; its models have norm=none in model.fpn, "
                         "model.detector and model.basis")  # fmt: skip
    return names


def load_yolact(
    model: Segmenter, state: Mapping[str, Tensor], *, source: str = "state dict", reset_classifier: bool = False,
    boundary_bias: float | None = None,
) -> Report:  # fmt: skip
    """Copy YOLACT's weights into a segmenter.

    With a boundary basis, the K prototypes and their coefficients are taken over. The boundary basis starts where its
    variant says, and its coefficient at 0, so that the masks begin as YOLACT's own.

    Args:
        model: as `experiment=yolact_r50` builds it, with the preset `yolact`.
        state: names and tensors.
        source: where it comes from, for messages.
        reset_classifier: let the class outputs start afresh where the file has another number of classes.
        boundary_bias: start of a boundary basis, a logit; None for the `basis_bias` of the boundary variant.

    Returns:
        What was loaded, what starts afresh, what was left over.

    Raises:
        ValueError: for another preset, another number of classes, and any key or shape that has no explanation; the
            message lists all of them. The model is unchanged then.
    """
    if boundary_bias is None:
        boundary_bias = model.boundary.basis_bias
    names, own = yolact_names(model), model.state_dict()
    if model.backbone.preset != PRESETS["yolact"]:
        raise ValueError(f"{source}: YOLACT's weights want its mean and deviation; build the backbone with "
                         "preset=yolact")  # fmt: skip
    fresh = {k: "has no counterpart in YOLACT" for k in own if k not in names}
    loaded: dict[str, Tensor] = {}
    problems = []
    for key, theirs in names.items():
        value, wanted = state.get(theirs), own[key]
        if value is None:
            fresh[key] = "not in the file"
            if not MAY_BE_MISSING.fullmatch(theirs):
                problems.append(f"{theirs} (not in the file)")
        elif value.shape == wanted.shape:
            loaded[key] = value
        elif (
            extended := with_boundary_rows(model, key, value, wanted, basis_bias=boundary_bias, params_bias=0.0)
        ) is not None:
            loaded[key] = extended
            fresh[key] = "rows of the boundary basis, which the file does not have"
        elif reset_classifier and key.startswith(("detector.cls_logits.", "semantic.")):
            fresh[key] = "another number of classes (reset_classifier)"
        else:
            problems.append(f"{theirs} {tuple(value.shape)} for {tuple(wanted.shape)}")
    left_over = [k for k in state if k not in names.values()]
    problems += [f"{k} (not in this model)" for k in left_over if not _may_be_left_over(model, k)]
    if problems:
        raise ValueError("\n  ".join([f"{source}: does not fit this model", *problems]))
    model.load_state_dict({**own, **loaded})
    return Report(list(loaded), fresh, left_over)


def _may_be_left_over(model: Segmenter, key: str) -> bool:
    extra = _EXTRA_LEVEL.fullmatch(key)
    return MAY_BE_LEFT_OVER.fullmatch(key) is not None or (extra is not None and int(extra[1]) >= len(model.fpn.top))
