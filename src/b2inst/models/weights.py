"""Loading backbone weights from a local file, strictly: nothing is skipped in silence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# A classifier has these, a backbone has no use for them.
CLASSIFIER_KEYS = ("fc.", "classifier.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict with `weights_only=True`, raw or under the key `state_dict` or `model`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file needs more than tensors to load, or holds no state dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: not a file of plain tensors ({error}); save it again as torch.save(state_dict)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: holds no state dict of tensors (keys: {list(content)[:5]})")
    return dict(content)


def load_backbone_weights(module: nn.Module, state: Mapping[str, Tensor], source: str, allow_missing: bool) -> None:
    """Copy `state` into `module` and log what was loaded, what is missing and what was left over.

    Args:
        module: a backbone with torchvision's parameter names.
        state: tensors by name; classifier weights in it are left over by design.
        source: where the state comes from, for messages.
        allow_missing: accept parameters that the file does not have; they keep their random start.

    Raises:
        ValueError: for missing parameters (unless allowed), unknown keys, or other shapes.
    """
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    left_over = [k for k in state if k.startswith(CLASSIFIER_KEYS)]
    state = {k: v for k, v in state.items() if k not in left_over}
    own = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    missing = [k for k in own if k not in state]
    unknown = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if unknown or shapes:
        raise ValueError(
            f"{source}: does not fit this backbone. Unknown keys: {_shorten(unknown)}. "
            f"Other shapes: {_shorten(shapes)}. "
            "Check backbone depth and norm (weights with batch norm need backbone.norm=frozen_bn or bn)."
        )
    if len(missing) == len(own):
        raise ValueError(f"{source}: none of its {len(state)} keys belongs to this backbone")
    if missing and not allow_missing:
        raise ValueError(
            f"{source}: {len(missing)} parameters are missing: {_shorten(missing)}. "
            "Set model.backbone.allow_missing=true to start these at random."
        )
    module.load_state_dict(state, strict=False)
    log.info(
        "backbone weights from %s: %d loaded, %d missing %s, %d left over %s",
        source, len(own) - len(missing), len(missing), _shorten(missing), len(left_over), _shorten(left_over),
    )  # fmt: skip


def _shorten(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"[{', '.join(names[:limit])}{more}]"
