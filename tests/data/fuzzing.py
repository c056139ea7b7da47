"""Runs a target on generated input in a process of its own, so that a crash, a hang or a bomb is a result.

`B2INST_SOAK=N` makes at least N inputs, others each time, and writes the figures to docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

SOAK = int(os.environ.get("B2INST_SOAK", "0"))
RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- bad input: begin, written by make soak -->", "<!-- bad input: end -->"
HEAD = "| inputs | generated | used | refused | crashes, hangs, other errors | peak memory (MB) | slowest (s) |"

MAX_SECONDS = 20.0  # of one input; two cores that others use as well are slow
MAX_MEGABYTES = 1500.0  # that one input adds: an image of the greatest size, as BGR and as RGB, is 1074
MAX_ADDRESSES = 8 << 30  # bytes of address space that one process may take, so that a bomb hits it and not the machine


@dataclass
class Outcome:
    """What a target did with an input: "used", "refused" or "fault"."""

    verdict: str
    detail: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


@dataclass
class Tally:
    """Counts outcomes; an input that comes again is counted once."""

    seen: set[int] = field(default_factory=set)
    used: int = 0
    refused: int = 0
    faults: int = 0
    megabytes: float = 0.0
    seconds: float = 0.0

    def add(self, key: int, outcome: Outcome) -> None:
        if key in self.seen:
            return
        self.seen.add(key)
        self.used += outcome.verdict == "used"
        self.refused += outcome.verdict == "refused"
        self.faults += outcome.verdict == "fault"
        self.megabytes = max(self.megabytes, outcome.megabytes)
        self.seconds = max(self.seconds, outcome.seconds)

    def row(self, name: str) -> str:
        cells = (f"{len(self.seen):,}", f"{self.used:,}", f"{self.refused:,}", str(self.faults))
        return f"| {' | '.join([name, *cells, f'{self.megabytes:.0f}', f'{self.seconds:.1f}'])} |"


class Sandbox:
    """A process that calls `module.function(folder, input)` again and again; a new one follows one that died.

    The function returns "used" or "refused"; whatever it raises is a fault.
    """

    def __init__(self, module: str, function: str, folder: Path, seconds: float = MAX_SECONDS) -> None:
        self.target = (module, function, str(folder))
        self.seconds = seconds
        self.tally = Tally()
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, given: Any) -> Outcome:
        """What the target does with an input, counted."""
        if self._process is None:
            self._start()
        outcome = Outcome("fault", f"takes more than {self.seconds} seconds", self.seconds)
        try:
            self._pipe.send(given)
            if self._pipe.poll(self.seconds):
                outcome = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            outcome = Outcome("fault", f"the process died with exit code {self._process.exitcode}")
        if outcome.megabytes > MAX_MEGABYTES:
            outcome.verdict, outcome.detail = "fault", f"takes {outcome.megabytes:.0f} MB"
        if outcome.verdict == "fault":
            self._stop()
        self.tally.add(hash(given), outcome)
        return outcome

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # torch has threads, which a fork would not survive
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self.target), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(120) or self._pipe.recv() != "ready":
            raise RuntimeError(f"{self.target}: the process does not start")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Connection, module: str, function: str, folder: str) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)  # what image libraries think of broken files
    target: Callable[[Path, Any], str] = getattr(importlib.import_module(module), function)
    resource.setrlimit(resource.RLIMIT_AS, (_addresses() + MAX_ADDRESSES,) * 2)
    pipe.send("ready")
    while True:
        given = pipe.recv()
        before, start = _reset_peak(), time.perf_counter()
        try:
            verdict, detail = target(Path(folder), given), ""
        except BaseException:  # that nothing but a verdict comes back is what is tested
            verdict, detail = "fault", traceback.format_exc(limit=-6)[-3000:]
        pipe.send(Outcome(verdict, detail, time.perf_counter() - start, max(0.0, _peak() - before)))


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _reset_peak() -> float:
    """Megabytes now; the peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def profile(short: int) -> settings:
    """Settings of a fuzz test: so many inputs in `make test`, always the same; in `make soak` enough of them, for a
    quarter comes twice.
    """
    return settings(
        max_examples=SOAK * 3 // 2 or short, derandomize=not SOAK, database=None, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def report(name: str, tally: Tally, path: Path = RELIABILITY) -> None:
    """Print the figures of a test, and write them into the table of the document after a long run."""
    print(f"\n{HEAD}\n{tally.row(name)}")
    if SOAK:
        write_row(path, name, tally)


def write_row(path: Path, name: str, tally: Tally) -> None:
    """Put a row into the table between the markers, in the place of the one with the same name."""
    before, rest = path.read_text().split(BEGIN)
    table, after = rest.split(END)
    rows = [line for line in table.strip().splitlines()[2:] if not line.startswith(f"| {name} |")]
    lines = [BEGIN, HEAD, "|---|" + "--:|" * (HEAD.count("|") - 2), *sorted([*rows, tally.row(name)]), END]
    path.write_text(before + "\n".join(lines) + after)
