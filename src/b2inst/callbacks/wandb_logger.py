"""Weights & Biases, also without an account or a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger


def wandb_logger(save_dir: str, offline: bool | None = None, **kwargs: Any) -> WandbLogger:
    """Build Lightning's logger for W&B.

    Args:
        save_dir: folder that gets `wandb/`; made if missing, for W&B falls back to a temporary one otherwise.
        offline: keep the run on disk, for `wandb sync`; None: unless `WANDB_API_KEY` or a login is there.
        **kwargs: of `WandbLogger`.
    """
    if offline is None:
        logged_in = "WANDB_API_KEY" in os.environ or _in_netrc()
        offline = not logged_in and os.environ.get("WANDB_MODE") != "online"
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=save_dir, offline=offline, **kwargs)


def _in_netrc() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and "wandb" in path.read_text(errors="ignore")
