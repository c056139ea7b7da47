"""Which model a state dict of AdelaiDet belongs to, read off its keys and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from b2inst.interop.names import BOTTOM_UP, HEAD

DEPTHS = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101}  # by (bottlenecks, blocks of res4)
BORDERS = (64, 128, 256, 512)  # px, between the levels' ranges; models with fewer levels leave out the last ones


@dataclass(frozen=True)
class Variant:
    """Sizes of a published model.

    Attributes:
        depth: of the ResNet.
        num_classes: C.
        num_bases: K; None for an FCOS, which has no masks.
        levels: of the pyramid, from P3.
        channels: of the pyramid.
        num_convs: of each tower.
        num_share_convs: before the towers part.
        use_scale: a learned factor per level.
        basis_convs: of the basis head at stride 8.
        basis_channels: of its hidden layers.
        attention_size: side of an attention map; None without attention.
        dynamic: whether it is a CondInst.
        norm: of the backbone, `frozen_bn` or `bn`.
    """

    depth: int
    num_classes: int
    num_bases: int | None
    levels: int
    channels: int
    num_convs: int
    num_share_convs: int
    use_scale: bool
    basis_convs: int
    basis_channels: int
    attention_size: int | None
    dynamic: bool
    norm: str

    def overrides(self) -> list[str]:
        """The settings of the group `model`, and the assembly, as on the command line."""
        settings = {
            "num_classes": self.num_classes,
            "backbone.depth": self.depth, "backbone.norm": self.norm, "backbone.preset": "msra",
            "backbone.weights": "null", "backbone.freeze_at": 2,
            "fpn.channels": self.channels, "fpn.top_levels": self.levels - 3, "fpn.norm": "none",
            "detector.num_convs": self.num_convs, "detector.num_share_convs": self.num_share_convs,
            "detector.use_scale": str(self.use_scale).lower(),
            "detector.sizes_of_interest": f"[{','.join(map(str, BORDERS[: self.levels - 1]))}]",
            "basis.num_convs": self.basis_convs, "basis.channels": self.basis_channels, "basis.norm": "bn",
        }  # fmt: skip
        if self.attention_size is not None:
            settings["assembly.attention_size"] = self.attention_size
        if self.dynamic:
            settings["basis.aligned"] = "true"
        if self.num_bases is not None:
            settings["num_bases"] = self.num_bases
        else:
            settings["detector.threshold_with_quality"] = "false"
        assembly = ["assembly@model.assembly=dynamic"] if self.dynamic else []
        return [*assembly, *(f"model.{key}={value}" for key, value in settings.items())]


def variant_of(state: Mapping[str, Tensor], source: str = "state dict") -> Variant:
    """Read the sizes off a state dict with AdelaiDet's present names.

    Raises:
        ValueError: for a model that is none of FCOS, BlendMask and CondInst on a plain ResNet.
    """
    if offsets := [k for k in state if "conv2_offset" in k]:
        raise ValueError(
            f"{source}: has deformable convolutions ({offsets[0]}, ...), which b2inst does not have; "
            "take a model without dcn in its name"
        )
    needed = (f"{BOTTOM_UP}.res4.0.conv1.weight", f"{HEAD}.cls_logits.weight", "backbone.fpn_lateral3.weight")
    if absent := [k for k in needed if k not in state]:
        raise ValueError(
            f"{source}: none of FCOS, BlendMask and CondInst of AdelaiDet, for it lacks {', '.join(absent)}"
        )
    form = (f"{BOTTOM_UP}.res4.0.conv3.weight" in state, _count(state, rf"{BOTTOM_UP}\.res4\.(\d+)\.conv1\.weight"))
    if form not in DEPTHS:
        raise ValueError(f"{source}: a ResNet with {form[1]} blocks in res4; b2inst has depths {[*DEPTHS.values()]}")
    bases = _bases(state)
    dynamic = bases is not None and bases.startswith("mask_branch.")
    rows = state["top_layer.weight"].shape[0] if "top_layer.weight" in state else 0
    return Variant(
        depth=DEPTHS[form],
        num_classes=state[f"{HEAD}.cls_logits.weight"].shape[0],
        num_bases=state[bases].shape[0] if bases else None,
        levels=3 + _count(state, r"backbone\.top_block\.p(\d)\.weight"),
        channels=state["backbone.fpn_lateral3.weight"].shape[0],
        num_convs=_convs(state, f"{HEAD}.cls_tower"),
        num_share_convs=_convs(state, f"{HEAD}.share_tower"),
        use_scale=f"{HEAD}.scales.0.scale" in state,
        basis_convs=int(bases.split(".")[2]) - (1 if dynamic else 2) if bases else 3,
        basis_channels=state[bases].shape[1] if bases else 128,
        attention_size=None if dynamic else math.isqrt(rows // state[bases].shape[0]) if bases else 14,
        dynamic=dynamic,
        norm="bn" if f"{BOTTOM_UP}.stem.conv1.norm.num_batches_tracked" in state else "frozen_bn",
    )


def _bases(state: Mapping[str, Tensor]) -> str | None:
    """Key of the last layer of the basis head, the one without a norm; None in an FCOS."""
    return next((k for k in state if re.fullmatch(r"(basis_module|mask_branch)\.tower\.\d+\.weight", k)), None)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m[1] for k in state if (m := re.fullmatch(pattern, k))})


def _convs(state: Mapping[str, Tensor], tower: str) -> int:
    return sum(1 for k, v in state.items() if k.startswith(f"{tower}.") and v.ndim == 4)
