"""Several processes of one run: how they are joined, which of them writes, and how all end when one dies.

Lightning starts the processes of `trainer=ddp` itself; torchrun, SLURM and submitit start them from outside.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy

from b2inst.config import ConfigError

log = logging.getLogger(__name__)

SUBMITIT_TASKS = "SUBMITIT_LOCAL_NTASKS"  # of submitit's local executor; under SLURM Lightning knows its way


def ddp(timeout_s: float = 600, find_unused_parameters: bool = False) -> DDPStrategy:
    """Build Lightning's DDP with a limit of its own for the waiting of a process for the others.

    Args:
        timeout_s: seconds that a process waits in a collective operation; then it ends with an error.
        find_unused_parameters: look for parameters without a gradient in each step. No part of this package leaves
            one without, not even for images without instances.
    """
    return DDPStrategy(timeout=timedelta(seconds=timeout_s), find_unused_parameters=find_unused_parameters)


def rank() -> int:
    """Number of this process among those of the run, 0 for the only or first one; known before they are joined."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "LOCAL_RANK" in os.environ:  # Lightning started it; on further nodes any number above 0 will do
        return int(os.environ["LOCAL_RANK"]) + int(os.environ.get("NODE_RANK", 0))
    if SLURMEnvironment.detect():
        return int(os.environ["SLURM_PROCID"])
    return int(os.environ.get("SUBMITIT_LOCAL_GLOBALID", 0))


def started_from_outside() -> int:
    """How many processes torchrun, SLURM or submitit started for this run; 1 where Lightning does it."""
    if "RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ["SLURM_NTASKS"] if SLURMEnvironment.detect() else os.environ.get(SUBMITIT_TASKS, 1))


def join() -> None:
    """Make a process that others started ready to be joined with them.

    Tasks of submitit's local executor get the variables that Lightning looks for; a MASTER_PORT that is given is used.
    A process that Lightning or torchrun started ends when its parent is gone: nobody else would end it.
    """
    if int(os.environ.get(SUBMITIT_TASKS, 1)) > 1 and "LOCAL_RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)  # keeps a MASTER_PORT
    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True, name="parent-watch").start()


def _end_with_parent(parent: int, period_s: float = 1.0) -> None:
    while os.getppid() == parent:
        time.sleep(period_s)
    log.error("rank %d: the process that started this one is gone, so it ends too", rank())
    os._exit(1)  # the main thread may wait in a collective operation, where no exception reaches it


def check_output(overrides: Sequence[str]) -> None:
    """Refuse an output folder that processes would name by the second of their own start.

    Args:
        overrides: of the command line.

    Raises:
        ConfigError: processes were started from outside, and no folder is given.
    """
    if started_from_outside() > 1 and not any(override.startswith("output=") for override in overrides):
        raise ConfigError(
            f"output: {started_from_outside()} processes were started from outside, and each would name its folder by "
            "the time; give the folder, as in output=runs/e"
        )
