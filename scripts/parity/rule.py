"""The rule that the weights, the image and the instances of a parity fixture follow; nothing of it is stored.

Each tensor of a state dict is a function of its key and its shape: normal numbers from numpy's frozen legacy generator,
seeded with the CRC-32 of the key, scaled so that a network of such weights neither dies nor explodes, and rounded to
half precision, so that every float format holds the same value.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Factors on top of He's scale, by the end of the key: the stem sees pixels in 0..255, lateral convolutions sum up.
CONV_SCALES = {
    "bottom_up.stem.conv1.weight": 1 / 60,
    "cls_logits.weight": 0.8,
    "top_layer.weight": 0.8,
    "basis_module.tower.5.weight": 0.8,
}
# Shifts of the biases: some detections, boxes of a few strides, masks of about half of their box.
BIAS_SHIFTS = {"cls_logits.bias": -4.0, "bbox_pred.bias": 2.5, "basis_module.tower.5.bias": 1.2}


def rule_tensor(key: str, shape: tuple[int, ...], last_norm: str) -> Tensor:
    """One tensor.

    Args:
        key: AdelaiDet's name of it.
        shape: its shape.
        last_norm: part of the names of the last norm in a residual block, `conv3.norm` or, in ResNet-18 and 34,
            `conv2.norm`; its scale is small, so that the sums along the blocks stay small.

    Returns:
        float32 with values of half precision, or an int64 zero for `num_batches_tracked`.
    """
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.RandomState(zlib.crc32(key.encode()))
    values = generator.standard_normal(math.prod(shape))
    if key.endswith("running_var"):
        values = 1 + 0.25 * np.tanh(values)
    elif key.endswith("running_mean"):
        values = 0.1 * values
    elif len(shape) == 4:
        values = values * np.sqrt(2 / math.prod(shape[1:])) * _conv_scale(key)
    elif key.endswith(".scale"):
        values = 1 + 0.1 * np.tanh(values)
    elif key.endswith("weight"):
        values = (0.35 if f"{last_norm}." in key else 1.0) * (1 + 0.2 * np.tanh(values))
    else:
        values = 0.1 * values + sum(shift for end, shift in BIAS_SHIFTS.items() if key.endswith(end))
    return torch.from_numpy(values.reshape(shape).astype(np.float16).astype(np.float32))


def _conv_scale(key: str) -> float:
    scale = 1 / 8 if "fpn_lateral" in key else 1.0
    return scale * math.prod(factor for end, factor in CONV_SCALES.items() if key.endswith(end))


def rule_state_dict(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A state dict with AdelaiDet's keys; the depth of the ResNet follows from them."""
    last_norm = "conv3.norm" if any(".conv3." in key for key in shapes) else "conv2.norm"
    return {key: rule_tensor(key, tuple(shape), last_norm) for key, shape in shapes.items()}


def digest(tensor: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
