"""Reading weight files of other packages: their containers and their older names."""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# What an array needs to be unpickled, under its names in NumPy 1 and 2. None of it runs code of the file.
_RECONSTRUCT, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
_DTYPES = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
_ARRAYS: list[Any] = [
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"), (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"),
    np.ndarray, np.dtype, codecs.encode, *_DTYPES,
]  # fmt: skip

# From the names of the first FCOS release to AdelaiDet's, in this order.
_OLD_FCOS = (
    ("module.", ""), ("body", "bottom_up"), (".layer1", ".res2"), (".layer2", ".res3"), (".layer3", ".res4"),
    (".layer4", ".res5"), ("downsample.0", "shortcut"), ("downsample.1", "shortcut.norm"), ("bn1", "conv1.norm"),
    ("bn2", "conv2.norm"), ("bn3", "conv3.norm"), ("fpn_inner2", "fpn_lateral3"), ("fpn_inner3", "fpn_lateral4"),
    ("fpn_inner4", "fpn_lateral5"), ("fpn_layer2", "fpn_output3"), ("fpn_layer3", "fpn_output4"),
    ("fpn_layer4", "fpn_output5"), ("top_blocks", "top_block"), ("fpn.", ""), ("rpn", "proposal_generator"),
    ("head", "fcos_head"),
)  # fmt: skip


def read_weights(path: str | Path, *, unsafe_pickle: bool = False) -> dict[str, Any]:
    """Read what a weights file holds, without running any code of it.

    Args:
        path: a file of `torch.save`, or a pickle.
        unsafe_pickle: also read what needs Python's unpickler. Such a file can run any code: only for files whose
            origin you trust.

    Returns:
        The mapping in the file, as it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it needs the unpickler and that was not allowed, or if it holds no mapping.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file; download it first, nothing is fetched from here")
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything from UnpicklingError to RuntimeError
        if not unsafe_pickle:
            reason = next((line for line in str(error).splitlines() if "Unsupported" in line), type(error).__name__)
            raise ValueError(
                f"{path}: cannot be read as plain tensors and arrays ({reason.strip()}). If it is a pickle and you "
                "trust its origin, allow it with unsafe_pickle=True (--unsafe-pickle): it may run any code"
            ) from error
        content = _unpickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception:  # no file of torch.save
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")  # Caffe2's files come from Python 2


def state_dict_of(content: Mapping[str, Any], source: str = "state dict") -> dict[str, Tensor]:
    """The tensors in a file's mapping, raw or under the key `model` or `state_dict`.

    Args:
        content: as `read_weights` returns it; values may be tensors or arrays.
        source: where it comes from, for messages.

    Raises:
        ValueError: if values are neither, with their keys.
    """
    for key in ("model", "state_dict", "blobs"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for k, v in content.items()}
    other = [str(k) for k, v in state.items() if not isinstance(v, Tensor) and not str(k).startswith("__")]
    if other:
        raise ValueError(f"{source}: holds values that are no tensors: {', '.join(other)}; expected a state dict")
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def with_current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """AdelaiDet's present names for those of its older files and of the first FCOS release.

    Example:
        >>> list(with_current_names({"module.rpn.head.centerness.bias": torch.zeros(1)}))
        ['proposal_generator.fcos_head.ctrness.bias']
    """
    state = {k.removeprefix("module."): v for k, v in state.items()}
    if any(k.startswith(("rpn.head.", "backbone.body.")) for k in state):
        renamed = {}
        for key, value in state.items():
            for old, new in _OLD_FCOS:
                key = key.replace(old, new)
            renamed[key] = value
        state = renamed
    return {k.replace("centerness", "ctrness"): v for k, v in state.items()}
