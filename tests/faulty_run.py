"""A training through the real entry point, to which something happens at a chosen moment.

What happens is `event:place:number`, or `none`. Events are signals to this process, or, with `all-` before it, to its
workers as well. Places: `step` (in the middle of the training step), `validation` (in a validation step), `write` (with
half of a checkpoint file written), `rename` (with a whole one that has not got its name yet), `final` (in the
evaluation after the training), each numbered from 0 in this process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from b2inst import checkpoint_io, train
from b2inst.lit import LitSegmenter

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}


class Fault:
    """Sends a signal where a place is reached for the so-manieth time."""

    def __init__(self, what: str) -> None:
        self.event, self.place, number = what.split(":")
        self.number = int(number)
        self.seen: Counter[str] = Counter()

    def at(self, place: str) -> None:
        if place == self.place and self.seen[place] == self.number:
            send = os.killpg if self.event.startswith("all-") else os.kill
            send(os.getpid(), SIGNALS[self.event.removeprefix("all-")])
        self.seen[place] += 1


class HalfWritten:
    """A file that a fault strikes between the halves of what is written to it, or before it is flushed to the disk."""

    def __init__(self, file: Any, fault: Fault) -> None:
        self.file, self.fault = file, fault

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: memoryview) -> None:
        middle = len(content) // 2
        self.file.write(content[:middle])
        self.file.flush()
        self.fault.at("write")
        self.file.write(content[middle:])

    def fileno(self) -> int:
        self.fault.at("rename")
        return self.file.fileno()


def plant(fault: Fault) -> None:
    """Put the places into the program."""

    def after(owner: Any, name: str, place: Callable[..., str | None]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if (found := place(*args)) is not None:
                fault.at(found)
            return result

        setattr(owner, name, wrapped)

    after(LitSegmenter, "training_step", lambda *_: "step")
    after(LitSegmenter, "validation_step",
           lambda module, *_: "validation" if module.trainer.state.fn == "fit" else "final")  # fmt: skip
    opened = checkpoint_io.Path.open

    def open_half(self: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = opened(self, mode, *args, **kwargs)
        return HalfWritten(file, fault) if mode == "wb" and self.name.endswith(".ckpt.tmp") else file

    checkpoint_io.Path.open = open_half


def main(what: str, arguments: list[str], log: str) -> None:
    """Run `python -m b2inst.train` with these arguments, in this process; its output goes into a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.setpgid(0, 0)  # signals to its group are for the run alone
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own: of the loader workers
    if what != "none":
        plant(Fault(what))
    sys.argv = ["b2inst.train", *arguments]
    train.main()
