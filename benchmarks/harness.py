"""Paired timing for the benchmarks of this folder.

A machine that others use drifts by a factor of two within minutes, so the two routes of a benchmark run in turn, in
one process, and only the ratio of their medians means anything.

A benchmark is a file of this folder with

    def benchmarks() -> Iterator[Result]:
        yield compare("mask AP", ours, "faster-coco-eval", theirs, agree, package="faster_coco_eval")

    if __name__ == "__main__":
        main(benchmarks)

where `ours` and `theirs` are functions without arguments and `agree` compares what they return. Imports of peers
belong into their functions: a peer that is not installed is reported, and our time alone is printed. `run.py` runs
every file that has a function `benchmarks`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from timeit import Timer
from typing import Any

THREADS = 2
# Set before NumPy and PyTorch start their pools.
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))


@dataclass(frozen=True)
class Result:
    """One line of a report.

    Attributes:
        name: what was measured.
        ours, peer: median seconds; for memory, MB. None: the peer is not installed.
        peer_name: what ours was compared with.
        ratio: peer / ours, how many times ours is cheaper.
        agree: whether both gave the same, or how far they agree in words.
    """

    name: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    agree: bool | str | None


def compare(
    name: str,
    ours: Callable[[], Any],
    peer_name: str,
    peer: Callable[[], Any],
    agree: Callable[[Any, Any], bool | str],
    package: str | None = None,
    rounds: int = 5,
) -> Result:
    """Time two routes in turn.

    Args:
        name: of the benchmark.
        ours: our route.
        peer_name: name of the other one.
        peer: the other route.
        agree: compares what the two return.
        package: module that the other route imports; without it, ours runs alone.
        rounds: how often each is timed, after a run that is not counted; a short route runs several times a round.

    Returns:
        The medians and their ratio.
    """
    installed = package is None or importlib.util.find_spec(package) is not None
    routes = [ours, peer] if installed else [ours]
    values = [route() for route in routes]
    timers = [Timer(route) for route in routes]
    loops = [timer.autorange()[0] for timer in timers]  # so many that they take 0.2 s, or one
    times: list[list[float]] = [[] for _ in routes]
    for _ in range(rounds):
        for timer, number, seconds in zip(timers, loops, times, strict=True):
            gc.collect()  # timeit pauses the collector
            seconds.append(timer.timeit(number) / number)
    medians = [statistics.median(seconds) for seconds in times]
    if not installed:
        return Result(name, medians[0], None, f"{peer_name} (not installed: pip install 'b2inst[bench]')", None, None)
    return Result(name, medians[0], medians[1], peer_name, medians[1] / medians[0], agree(*values))


def main(benchmarks: Callable[[], Iterator[Result]]) -> None:
    """Run the benchmarks of a file: a JSON line as soon as one is done, the table at the end."""
    results = []
    for result in benchmarks():
        print(json.dumps(asdict(result)), flush=True)
        results.append(result)
    print(table(results), flush=True)


def table(results: Iterable[Result]) -> str:
    """Results as text."""
    rows = [("benchmark", "ours", "peer", "ratio", "agree", "compared with")]
    for result in results:
        peer, ratio = ("-" if value is None else f"{value:.3g}" for value in (result.peer, result.ratio))
        agree = "-" if result.agree is None else str(result.agree)
        rows.append((result.name, f"{result.ours:.3g}", peer, ratio, agree, result.peer_name))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)  # fmt: skip
