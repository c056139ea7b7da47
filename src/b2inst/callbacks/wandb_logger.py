"""Weights & Biases, also without an account or a network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger(__name__)

_EXPERIMENT: property = WandbLogger.experiment  # type: ignore[assignment]


class SteadyWandbLogger(WandbLogger):
    """Lightning's logger for W&B, whose failures do not end a training.

    Without a server at the start the run is kept on disk; a server that goes away later is W&B's own business, which
    keeps all that is logged in the run's folder. Errors of other kinds are told once each.
    """

    _told: frozenset[str] = frozenset()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; on disk alone where its server cannot be had, and nowhere where that fails too."""
        if self._experiment is None:
            from wandb.errors import Error

            for mode, told in (("offline", f"it is kept in {self._save_dir}, for `wandb sync`"), ("disabled", "none")):
                try:
                    return _EXPERIMENT.fget(self)  # type: ignore[misc]
                except (Error, OSError) as error:
                    log.warning("W&B: no run (%s); instead: %s", error, told)
                    self._wandb_init["mode"] = mode
        return _EXPERIMENT.fget(self)  # type: ignore[misc]

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the configuration, if that can be done."""
        with self._going_on("the configuration"):
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log values, if that can be done."""
        with self._going_on("values"):
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures, if that can be done."""
        with self._going_on("pictures"):
            super().log_image(key, images, step, **kwargs)

    @contextmanager
    def _going_on(self, kind: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of W&B, of its service's socket, of the disk: none is worth a training
            if kind not in self._told:
                self._told |= {kind}
                log.warning("W&B: %s are not logged (%s: %s), and the run goes on", kind, type(error).__name__, error)


def wandb_logger(save_dir: str, offline: bool | None = None, wait: float = 60, **kwargs: Any) -> WandbLogger:
    """Build the logger for W&B.

    Args:
        save_dir: folder that gets `wandb/`; made if missing, for W&B falls back to a temporary one otherwise.
        offline: keep the run on disk, for `wandb sync`; None: unless `WANDB_API_KEY` or a login is there.
        wait: seconds at most for the server: when the run starts, and for what is left to upload when it ends.
        **kwargs: of `WandbLogger`.
    """
    if offline is None:
        logged_in = "WANDB_API_KEY" in os.environ or _in_netrc()
        offline = not logged_in and os.environ.get("WANDB_MODE") != "online"
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    settings = {"init_timeout": wait, "finish_timeout": wait}
    return SteadyWandbLogger(save_dir=save_dir, offline=offline, settings=settings, **kwargs)


def _in_netrc() -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return path.is_file() and "wandb" in path.read_text(errors="ignore")
