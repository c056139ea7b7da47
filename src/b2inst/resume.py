"""Which checkpoint a run goes on from, and what of its log is kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from b2inst.callbacks.last import LAST, PREVIOUS
from b2inst.callbacks.metrics_log import go_on, put_aside
from b2inst.checkpoint_io import damage
from b2inst.config import ConfigError

log = logging.getLogger(__name__)


def resolve_checkpoint(given: str | None, output: Path) -> str | None:
    """Path of the checkpoint to resume from.

    Args:
        given: None, `last`, or a path.
        output: folder of the run, in which `last` is looked for; where the newest is damaged or missing, the one before
            is taken.

    Returns:
        The path, or None to start afresh: also for `last` where the folder has no checkpoint yet, so that a job
        that is started again after an interruption can use the same command from the beginning.

    Raises:
        ConfigError: the file, or all checkpoints of the folder, are damaged.
    """
    if given is None:
        return None
    folder = output / "checkpoints"
    if given != "last":
        if Path(given).exists() and (reason := damage(given)) is not None:
            raise ConfigError(f"ckpt_path={given} cannot be used: {reason}; give another checkpoint, or null")
        return given  # where it is missing the checker has refused it
    paths = [folder / LAST, folder / PREVIOUS]
    if not any(map(os.path.lexists, paths)):
        log.warning("ckpt_path=last: no %s yet, so this run starts from the beginning; "
                    "to resume another run, give its folder as output=DIR", paths[0])  # fmt: skip
        return None
    bad = []
    for path in paths:
        reason = damage(path) if os.path.lexists(path) else "it is missing"
        if reason is None:
            for line in bad:
                log.warning("ckpt_path=last: %s; goes on from %s, the one before", line, path)
            return str(path)
        bad.append(f"{path} is damaged ({reason})" if os.path.lexists(path) else f"{path} is missing")
    best = folder / "best.ckpt"
    instance = f", for instance {best}" if damage(best) is None else ""
    raise ConfigError(f"ckpt_path=last: {'; '.join(bad)}; give another checkpoint as ckpt_path=FILE{instance}, or null "
                      "to start from the beginning")  # fmt: skip


def prepare_log(path: Path, step: int | None, last: bool, validation: bool = False) -> None:
    """Keep the part of an earlier log that belongs to this run.

    Args:
        path: of metrics.csv.
        step: the first that this run logs, None for a new run.
        last: whether it goes on from the newest checkpoint of this folder; what comes after it in the log then comes
            again. If not, the log stays, under another name.
        validation: whether it begins with the validation of the step before.
    """
    if step is None:
        put_aside(path)
    else:
        go_on(path, step, not last, validation)
