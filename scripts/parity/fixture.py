"""Reference outputs in two files: `PREFIX.npz` holds arrays, `PREFIX.json` losses, gradient norms and digests.

A small fixture holds, of a large array, some elements only: `NAME` has the values, `NAME@shape` the shape, and which
elements they are follows from the name.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLES = 2048
# Read by more than a comparison, so never sampled.
WHOLE = ("det_", "out_", "image_", "gt_")


@dataclass(frozen=True)
class Fixture:
    """Reference outputs of one model on one image.

    Attributes:
        arrays: by name, see the README of the reference outputs.
        losses: the five training losses, with their weights.
        grad_norms: L2 norm of the gradient of their sum, by AdelaiDet's names.
        digests: of the tensors of the state dict, by AdelaiDet's names.
    """

    arrays: Mapping[str, NDArray[Any]]
    losses: Mapping[str, float]
    grad_norms: Mapping[str, float]
    digests: Mapping[str, str]

    @classmethod
    def read(cls, prefix: Path) -> Fixture:
        """Read `PREFIX.npz` and `PREFIX.json`.

        Raises:
            FileNotFoundError: if one of them is missing.
        """
        arrays, record = prefix.with_name(prefix.name + ".npz"), prefix.with_name(prefix.name + ".json")
        for path in (arrays, record):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; give the common part of the names of PREFIX.npz and "
                                        "PREFIX.json")  # fmt: skip
        content = json.loads(record.read_text())
        with np.load(arrays) as stored:
            return cls(dict(stored), content["losses"], content["grad_norms"], content["key_sha256"])

    def __getitem__(self, name: str) -> Tensor:
        """An array that is there as a whole."""
        return torch.from_numpy(self.arrays[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, whole or not."""
        return tuple(self.arrays.get(f"{name}@shape", self.arrays[name].shape))

    def error(self, name: str, ours: Tensor) -> float:
        """Largest difference to an array, relative to its root mean square; infinite for another shape or NaN."""
        if tuple(ours.shape) != self.shape(name):
            return float("inf")
        found = ours.detach().double()
        if f"{name}@shape" in self.arrays:
            found = found.flatten()[sampled(name, found.numel())]
        wanted = self[name].double()
        scale = wanted.square().mean().sqrt().clamp(min=1e-12)
        error = float((found - wanted).abs().max() / scale)
        return error if error == error else float("inf")

    def masks(self) -> Tensor:
        """(D, H, W) bool, the final masks."""
        shape = tuple(int(n) for n in self.arrays["out_masks_shape"])
        bits = np.unpackbits(self.arrays["out_masks_packed"], count=int(np.prod(shape)))
        return torch.from_numpy(bits.reshape(shape).astype(bool))


def sampled(name: str, count: int) -> Tensor:
    """Which of `count` elements of an array a small fixture holds."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(np.sort(generator.choice(count, min(SAMPLES, count), replace=False)))


def shrink(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a small fixture: large ones by some of their elements, the attention features of detections too."""
    small: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.size <= SAMPLES or (name.startswith(WHOLE) and name != "det_top_feat"):
            small[name] = array
        else:
            small[name] = array.ravel()[sampled(name, array.size).numpy()]
            small[f"{name}@shape"] = np.array(array.shape)
    return small
