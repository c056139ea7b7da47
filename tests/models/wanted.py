"""Instances for the tests of the assemblies."""

from __future__ import annotations

from torch import Tensor

from b2inst.models.assembly.base import Instances


def wanted(boxes: Tensor, image: Tensor, params: Tensor, roi: Tensor | None = None) -> Instances:
    """Instances whose places do not matter."""
    return Instances(boxes, image, params, params.new_zeros(len(params), 2), params.new_ones(len(params)), roi)
