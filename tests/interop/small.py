"""Small segmenters that AdelaiDet's weights fit in shape, and such weights."""

from __future__ import annotations

import torch
from parity.rule import rule_state_dict
from torch import Tensor

from b2inst.interop.adelaidet import export_adelaidet
from b2inst.interop.names import BOTTOM_UP
from b2inst.models.backbone import ResNet
from b2inst.models.basis import SemanticHead
from b2inst.models.boundary import NoBoundary
from b2inst.models.segmenter import Segmenter
from models import build


def blendmask(boundary=None, *, num_classes: int = 3, detector=None, **parts) -> Segmenter:
    """ResNet-18, 64 channels, no boundary unless given."""
    parts.setdefault("backbone", ResNet(18, preset="msra", weights=None))
    parts.setdefault("semantic", SemanticHead)
    boundary = NoBoundary() if boundary is None else boundary
    return build.segmenter(boundary, num_classes=num_classes, detector=detector, losses={}, **parts)


def weights(model: Segmenter | None = None, **options) -> dict[str, Tensor]:
    """Weights by the rule under AdelaiDet's names, with those of a small BlendMask as the default."""
    return rule_state_dict({k: tuple(v.shape) for k, v in export_adelaidet(model or blendmask(**options)).items()})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same keys and values."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def detectron2_state() -> dict[str, Tensor]:
    """The backbone alone, as detectron2 names an ImageNet ResNet."""
    return {k.removeprefix(f"{BOTTOM_UP}."): v for k, v in weights().items() if k.startswith(BOTTOM_UP)}
