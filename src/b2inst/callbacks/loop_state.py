"""Where a run stands, in the words of Lightning's loops.

Lightning stores the counters as they are at the hook in which a checkpoint is written, and guesses from them what was
done. Between two batches there is no hook. These functions write the counters of the hook before, `on_train_batch_end`,
from which it goes on with the next batch, and takes a validation that was due as done.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Position(NamedTuple):
    """A place between two batches.

    Attributes:
        epoch: from 0.
        batches: that are done of it.
        in_all: batches that are done of all epochs.
        stepped: those of them that ended an optimizer step.
        last: whether no batch of the epoch is left.
        validation: whether a validation comes first.
    """

    epoch: int
    batches: int
    in_all: int
    stepped: int
    last: bool = False
    validation: bool = False


def at(position: Position, state: dict[str, Any]) -> dict[str, Any]:
    """The state of Lightning's fit loop that stands at a position.

    Args:
        position: where.
        state: of the fit loop, of which the rest is kept.
    """
    epoch, done, in_all, stepped, last, validation = position
    if last and not validation:
        epoch, done, last = epoch + 1, 0, False
    started = epoch + (done > 0)  # an epoch without a batch is not begun
    gap = 0 if validation else 1  # of batches whose on_train_batch_end is not over
    return {
        **state,
        "state_dict": {**state["state_dict"], "combined_loader": [{"batches": done}]},
        "epoch_progress": _same(ready=started, started=started, processed=epoch, completed=epoch),
        "epoch_loop.batch_progress": {
            "total": _counters(in_all, in_all - gap),
            "current": _counters(done, done - gap),
            "is_last_batch": last,
        },
        "epoch_loop.state_dict": {"_batches_that_stepped": stepped - 1},
        "epoch_loop.val_loop.batch_progress": {
            # a batch that was started and not processed: Lightning then begins with the validation
            "total": {**_counters(0, 0), "ready": int(validation), "started": int(validation)},
            "current": _counters(0, 0),
            "is_last_batch": False,
        },
    }


def steps_of(checkpoint: dict[str, Any]) -> int:
    """Logged steps that a checkpoint has behind it: the next line of the log gets this number, counted from 0."""
    return checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] + 1


def validation_first(checkpoint: dict[str, Any]) -> bool:
    """Whether a validation comes before the next batch."""
    total = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    return total["ready"] > total["processed"]


def done_in_epoch(checkpoint: dict[str, Any]) -> int:
    """Batches of the epoch that a process has behind it, those that are left out when it goes on."""
    loader = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return loader[0]["batches"] if loader else 0


def _counters(done: int, completed: int) -> dict[str, int]:
    return {"ready": done, "started": done, "processed": done, "completed": completed}


def _same(**counters: int) -> dict[str, Any]:
    return {"total": dict(counters), "current": dict(counters)}
