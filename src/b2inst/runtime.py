"""What the entry points share: global state set anew for every job, and taken back after it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from b2inst import writing
from b2inst.callbacks.finite import NonFiniteError
from b2inst.config import ConfigError
from b2inst.data.errors import DataError

log = logging.getLogger(__name__)

SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


@contextmanager
def told_in_words(data_error: int = 1) -> Iterator[None]:
    """End the program with the message alone where the user can mend what is wrong, or has pressed Ctrl-C (code 130).

    `HYDRA_FULL_ERROR=1` tells all.

    Args:
        data_error: exit code where it is the data; else it is 1.
    """
    try:
        yield
    except (ConfigError, DataError, NonFiniteError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(data_error if isinstance(error, DataError) else 1) from error
    except KeyboardInterrupt as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from error


@contextmanager
def job(seed: int, deterministic: bool, benchmark: bool, matmul_precision: str) -> Iterator[None]:
    """Set every global that a run depends on, so that the jobs of a sweep in one process do not see each other.

    Args:
        seed: of Python, NumPy, torch and the loader workers.
        deterministic: only deterministic algorithms.
        benchmark: cudnn's autotuning.
        matmul_precision: of float32 matrix products.
    """
    writing.forget()
    ranks = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(matmul_precision)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        _finish_wandb(exit_code)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
        for name in SEED_VARIABLES:
            os.environ.pop(name, None)
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(ranks)


def _finish_wandb(exit_code: int) -> None:
    """Close the run of this job; the next job of a sweep would log into it otherwise."""
    wandb: Any = sys.modules.get("wandb")  # nobody pays for its import who does not use it
    if wandb is not None and getattr(wandb, "run", None) is not None:
        try:
            wandb.finish(exit_code=exit_code)
        except Exception as error:  # whatever its service raises: the training is over and has its files
            reason = f"{type(error).__name__}: {error}"
            log.warning("W&B: the run could not be closed (%s); `wandb sync` uploads what is in its folder", reason)
