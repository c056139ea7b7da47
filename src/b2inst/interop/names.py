"""What a tensor of ours is called in AdelaiDet's state dicts of FCOS, BlendMask and CondInst."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from b2inst.models.assembly.base import Assembly
from b2inst.models.assembly.blend import AttentionBlend
from b2inst.models.assembly.dynamic import DynamicConvolutions
from b2inst.models.backbone import ResNet
from b2inst.models.fcos import FCOS
from b2inst.models.segmenter import Segmenter

Rename = Callable[[re.Match[str]], str]

HEAD = "proposal_generator.fcos_head"
BOTTOM_UP = "backbone.bottom_up"
# Parts of ours that have no counterpart there.
OURS_ALONE = ("scoring.", "boundary.", "terms.", "detector.moving_positives")

# Pattern of our name, and its name there. What we count from 0 has the name of its level or stage there.
_RULES: tuple[tuple[str, Rename], ...] = (
    (r"backbone\.stages\.0\.0\.(.+)", lambda m: f"{BOTTOM_UP}.stem.conv1.{m[1]}"),
    (r"backbone\.stages\.0\.1\.(.+)", lambda m: f"{BOTTOM_UP}.stem.conv1.norm.{m[1]}"),
    (r"backbone\.stages\.(\d)\.(\d+\..+)", lambda m: f"{BOTTOM_UP}.res{int(m[1]) + 1}.{_in_block(m[2])}"),
    (r"fpn\.pyramid\.inner_blocks\.(\d)\.0\.(.+)", lambda m: f"backbone.fpn_lateral{int(m[1]) + 3}.{m[2]}"),
    (r"fpn\.pyramid\.layer_blocks\.(\d)\.0\.(.+)", lambda m: f"backbone.fpn_output{int(m[1]) + 3}.{m[2]}"),
    (r"fpn\.pyramid\.extra_blocks\.convs\.(\d)\.(.+)", lambda m: f"backbone.top_block.p{int(m[1]) + 6}.{m[2]}"),
    (r"detector\.(share_tower|cls_tower|cls_logits)\.(.+)", lambda m: f"{HEAD}.{m[1]}.{m[2]}"),
    (r"detector\.box_(tower|pred)\.(.+)", lambda m: f"{HEAD}.bbox_{m[1]}.{m[2]}"),
    (r"detector\.quality\.(.+)", lambda m: f"{HEAD}.ctrness.{m[1]}"),
    (r"detector\.scales", lambda m: f"{HEAD}.scales"),
)
# What makes masks: the basis head and the layer that predicts the parameters.
_MASK_PARTS: dict[type[Assembly], tuple[str, str]] = {
    AttentionBlend: ("basis_module", "top_layer"),
    DynamicConvolutions: ("mask_branch", "controller"),
}
# Ours where AdelaiDet has no such assembly, or no such loss.
OTHER_MASKS = ("basis.", "detector.params.", "semantic.")


def has_masks(model: Segmenter) -> bool:
    """Whether AdelaiDet has a model that makes masks in this way."""
    return type(model.assembly) in _MASK_PARTS


def _mask_rules(model: Segmenter) -> tuple[tuple[str, Rename], ...]:
    """Rules for the parts that make masks; none for an assembly that AdelaiDet does not have."""
    if not has_masks(model):
        return ()
    basis, params = _MASK_PARTS[type(model.assembly)]
    # The up-sampling layer, which CondInst does not have, has a number there, but no tensors.
    behind = len(model.basis.tower) + (basis == "basis_module")
    rules = (
        (r"detector\.params\.(.+)", lambda m: f"{params}.{m[1]}"),
        (r"basis\.(refine|tower)\.(.+)", lambda m: f"{basis}.{m[1]}.{m[2]}"),
        (r"basis\.upsampled\.(.+)", lambda m: f"{basis}.tower.{behind}.{m[1]}"),
        (r"basis\.bases\.(.+)", lambda m: f"{basis}.tower.{behind + 1}.{m[1]}"),
    )
    if basis == "mask_branch":
        return rules  # its semantic head has another loss and no class for the background
    return (
        *rules,
        # Convolution, norm and ReLU of a semantic layer are three entries of one list there.
        (r"semantic\.layers\.([01])\.([01])\.(.+)", lambda m: f"{basis}.seg_head.{3 * int(m[1]) + int(m[2])}.{m[3]}"),
        (r"semantic\.layers\.2\.(.+)", lambda m: f"{basis}.seg_head.6.{m[1]}"),
    )


def _in_block(name: str) -> str:
    """Name within a stage, torchvision's turned into detectron2's."""
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")


def renamed(own: str, rules: Sequence[tuple[str, Rename]]) -> str | None:
    """What the first rule that fits makes of our name; None where none does."""
    return next((rename(match) for pattern, rename in rules if (match := re.fullmatch(pattern, own))), None)


def adelaidet_names(model: Segmenter) -> dict[str, str]:
    """AdelaiDet's name of each tensor of a segmenter that has one there; the map from theirs is its inverse.

    A learned factor per level is one tensor here and one for each level there; it is listed as `...fcos_head.scales`.

    Args:
        model: with a ResNet of any depth, any number of levels and of convolutions.

    Returns:
        Their name by our name, in our order. What only we have (scoring heads, running counts) is left out,
        and so is what makes masks where AdelaiDet has no such assembly.

    Raises:
        ValueError: if the model has a backbone, a detector or layers that AdelaiDet's models do not have.

    Example:
        >>> adelaidet_names(model)["detector.quality.bias"]  # doctest: +SKIP
        'proposal_generator.fcos_head.ctrness.bias'
    """
    if not isinstance(model.backbone, ResNet):
        raise ValueError(f"backbone {type(model.backbone).__name__}: AdelaiDet's weights are for ResNets")
    if not isinstance(model.detector, FCOS):
        raise ValueError(f"detector {type(model.detector).__name__}: AdelaiDet's weights are for FCOS")
    rules = (*_RULES, *_mask_rules(model))
    names, nameless = {}, []
    for own in model.state_dict():
        found = renamed(own, rules)
        if found is not None:
            names[own] = found
        elif not own.startswith((*OURS_ALONE, *OTHER_MASKS)):
            nameless.append(own)
    if nameless:
        raise ValueError(
            f"AdelaiDet has no place for {', '.join(nameless)}; its models have model.fpn.norm=none, and "
            "model.backbone.norm=frozen_bn or bn"
        )
    return names
