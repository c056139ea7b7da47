"""Rows of a boundary basis, for weights of models that have none."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst.models.segmenter import Segmenter

NEW_ROW_STD = 0.01


def with_boundary_rows(
    model: Segmenter, key: str, value: Tensor, wanted: Tensor, *, basis_bias: float, params_bias: float
) -> Tensor | None:
    """What a file has for K bases, with rows for the boundary basis.

    New weights are small in the basis head, and 0 where its parameters are predicted.

    Args:
        model: with a boundary basis.
        key: our name of a tensor.
        value: (rows, ...) of the file.
        wanted: (rows, ...) that the model has there now.
        basis_bias: start of the boundary basis, a logit.
        params_bias: start of its parameters.

    Returns:
        A tensor like `wanted`; None if these are not rows of bases, or something else differs.
    """
    if not key.startswith(("basis.bases.", "detector.params.")) or value.shape[1:] != wanted.shape[1:]:
        return None
    if key.startswith("basis."):
        rows, bias = torch.arange(model.num_bases), basis_bias
        count = model.basis.num_bases
    else:
        anchors, bias = model.detector.num_anchors, params_bias
        count = anchors * model.assembly.num_params(model.num_bases + 1)
        kept = model.assembly.rows_without_boundary(model.num_bases)
        rows = torch.arange(count).unflatten(0, (anchors, -1))[:, kept].flatten()
    if (len(value), len(wanted)) != (len(rows), count):
        return None
    new = torch.zeros_like(wanted)
    if key.endswith("bias"):
        new.fill_(bias)
    elif key.startswith("basis."):
        new.normal_(std=NEW_ROW_STD)
    new[rows] = value.to(wanted)
    return new
