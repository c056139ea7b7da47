"""Which checkpoint a run goes on from, and what of its log is kept."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from b2inst.callbacks.last import LAST, PREVIOUS
from b2inst.callbacks.loop_state import steps_of
from b2inst.callbacks.metrics_log import go_on, put_aside
from b2inst.checkpoint_io import damage
from b2inst.config import ConfigError

log = logging.getLogger(__name__)


def resolve_checkpoint(given: str | None, output: Path) -> str | None:
    """Path of the checkpoint to resume from.

    Args:
        given: None, `last`, or a path.
        output: folder of the run, in which `last` is looked for; where the newest is damaged, the one before is taken.

    Returns:
        The path, or None to start afresh: also for `last` where the folder has no checkpoint yet, so that a job
        that is started again after an interruption can use the same command from the beginning.

    Raises:
        ConfigError: all checkpoints are damaged.
    """
    if given is None:
        return None
    folder = output / "checkpoints"
    paths = [folder / LAST, folder / PREVIOUS] if given == "last" else [Path(given)]
    damaged = []
    for path in (path for path in paths if path.is_file()):
        reason = damage(path)
        if reason is None:
            for line in damaged:
                log.warning("ckpt_path=last: %s; goes on from %s, the one before", line, path)
            return str(path)
        damaged.append(f"{path} is damaged ({reason})")
    if damaged:
        raise ConfigError(f"ckpt_path={given}: {'; '.join(damaged)}; give another checkpoint as ckpt_path=FILE, for "
                          f"instance {folder / 'best.ckpt'}, or null to start from the beginning")  # fmt: skip
    if given != "last":
        return given  # the checker has refused it
    log.warning("ckpt_path=last: no %s yet, so this run starts from the beginning; "
                "to resume another run, give its folder as output=DIR", folder / LAST)  # fmt: skip
    return None


def prepare_log(path: Path, ckpt_path: str | None, last: bool) -> None:
    """Keep the part of an earlier log that belongs to this run.

    Args:
        path: of metrics.csv.
        ckpt_path: the checkpoint that the run goes on from, None for a new run.
        last: whether it is the newest of this run; what comes after it in the log then comes again. If not, the log
            stays, under another name.
    """
    if ckpt_path is None:
        put_aside(path)
        return
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
    go_on(path, steps_of(checkpoint), keep=not last)
