"""Run all trainings of a study, or what is left of them: `make study`.

    python scripts/study.py [--dry-run] [--only shapes/e] [--seeds 0 1] [--hours 8] [--jobs 2]

The plan, `scripts/study.yaml`, says which. It may be interrupted at any time, in any way, and started again: a run
that has `metrics.json` is left out, any other goes on from its last checkpoint. One that fails is told at the end and
tried again next time. What has ended is kept in a file of the repository, from which it is put back on another machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import IO

from ablation import records, runs
from ablation.plan import Plan, Run, load_plan

from b2inst.config import ConfigError
from b2inst.metrics.scores import write_json

SHORT, LONG = 10.0, 120.0  # seconds to wait for a run that is being worked on: at first, and at the end
PLAN = Path(__file__).with_name("study.yaml")


class Estimate:
    """How long runs take, from those that are done; the more alike they are, the better.

    Args:
        plan: all runs, of which some may be done.
    """

    def __init__(self, plan: Plan) -> None:
        self.runs = plan.runs

    def seconds(self, run: Run) -> tuple[float, str]:
        """What is left of a run, and where that comes from: `measured` or `plan`."""
        whole, source = self._whole(run)
        state, spent = runs.state(run.folder), runs.seconds(run.folder)
        if state == "not inspected":
            return max(whole - spent, 0.0), source
        # What was interrupted goes on a little before; what has failed may have to begin again.
        return (max(whole - spent, 0.1 * whole) if state == "unfinished" else whole), source

    def _whole(self, run: Run) -> tuple[float, str]:
        done = [other for other in self.runs if runs.state(other.folder) == "done"]
        arm = [other for other in done if other.dataset.name == run.dataset.name and other.arm.name == run.arm.name]
        for alike in (arm, [other for other in done if other.dataset.name == run.dataset.name]):
            ratios = [_spent(other) / other.planned_seconds for other in alike]
            if ratios:
                return statistics.median(ratios) * run.planned_seconds, "measured"
        return run.planned_seconds, "plan"


def _spent(run: Run) -> float:
    return runs.seconds(run.folder) + runs.inspection_seconds(run.folder)


def runnable(selected: list[Run]) -> list[Run]:
    """Those that are not done and whose data is there; what lacks is told."""
    for dataset in dict.fromkeys(run.dataset for run in selected):
        if dataset.missing:
            print(f"{dataset.name}: left out, there is no {', no '.join(dataset.missing)}", flush=True)
    return [run for run in selected if not run.dataset.missing and runs.state(run.folder) != "done"]


def describe(todo: list[Run], plan: Plan, jobs: int = 1) -> str:
    """What would run, in this order, with the estimated time."""
    estimate, lines, total = Estimate(plan), [], {}
    for run in todo:
        seconds, source = estimate.seconds(run)
        total[run.dataset.name] = total.get(run.dataset.name, 0.0) + seconds
        lines.append(f"{run.name:36s} {runs.state(run.folder):14s} {seconds / 60:6.1f} min ({source})")
    sums = ", ".join(f"{name} {seconds / 3600 / jobs:.1f}" for name, seconds in total.items())
    hours = sum(total.values()) / 3600 / jobs
    return "\n".join([*lines, f"{len(todo)} runs, {hours:.1f} hours with {jobs} at a time ({sums})"])


def work(todo: list[Run], plan: Plan, hours: float | None) -> list[str]:
    """Run what is to do; returns what went wrong, a line for each run.

    What another study is working on is put off to the end, and left to that one if it still is.
    """
    start, wrong, late, put_off, left = time.monotonic(), [], 0, [], []
    for number, run in enumerate(chain(todo, put_off), 1):
        if runs.state(run.folder) == "done":
            continue
        seconds, source = Estimate(plan).seconds(run)
        if hours is not None and time.monotonic() - start + seconds > 3600 * hours:
            late += 1
            continue
        try:
            with runs.lock(run.folder, SHORT if number <= len(todo) else LONG) as held:
                if runs.state(run.folder) == "done":  # by the study that it was left to
                    continue
                at = min(number, len(todo))
                print(f"[{at}/{len(todo)}] {run.name}: about {seconds / 60:.1f} min ({source})", flush=True)
                problem = one(run, plan, held)
        except runs.Busy:
            (put_off if number <= len(todo) else left).append(run)
            continue
        records.pack(plan.output, plan.records, [run.folder])
        if problem:
            print(f"  {problem}", flush=True)
            wrong.append(f"{run.name}: {problem}")
    if left:
        names = ", ".join(run.name for run in left)
        print(f"another process works on {names}; the same command goes on should that one stop", flush=True)
    if late:
        print(f"{late} runs were not started, as they would have ended after {hours} hours", flush=True)
    return wrong


def one(run: Run, plan: Plan, held: IO[bytes]) -> str | None:
    """Train and inspect one run, as far as that is not done; returns what went wrong."""
    log = run.folder / runs.LOG
    try:
        code = 0 if (run.folder / runs.METRICS).is_file() else runs.train(run, held)
        if code:
            stopped = "stopped" if code in runs.STOPPED else "failed"
            return f"{stopped} with exit code {code}, see {log}\n{runs.last_words(run.folder)}"
        code = 0 if runs.state(run.folder) == "done" else runs.inspect(run, held, plan.images, plan.crops)
        return f"inspection failed with exit code {code}, see {log}\n{runs.last_words(run.folder)}" if code else None
    except ConfigError as error:
        return str(error)


def share(jobs: int, arguments: list[str]) -> int:
    """Let several studies work on the same list, with their part of the threads each; returns the worst exit code."""
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // jobs)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--jobs=1"]
    studies = [
        subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=runs.die_with_parent) for _ in range(jobs)
    ]
    try:
        return max(abs(study.wait()) for study in studies)
    except KeyboardInterrupt:
        for study in studies:
            study.send_signal(signal.SIGINT)
        return max(abs(study.wait()) for study in studies)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=PLAN, help="what to run (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the runs (default: the plan's)")
    parser.add_argument("--only", nargs="+", default=[], metavar="DATASET[/ARM]", help="these alone; * stands for any")
    parser.add_argument("--seeds", nargs="+", type=int, help="these alone")
    parser.add_argument("--hours", type=float, help="start no run that would end after so many hours")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, which share the threads")
    parser.add_argument("--dry-run", action="store_true", help="tell what would run, and how long")
    options = parser.parse_args(arguments)
    try:
        plan = load_plan(options.plan, options.output)
        selected = plan.select(options.only, options.seeds)
        records.unpack(plan.records, plan.output)
        for run in selected:
            runs.settled(run)
        todo = runnable(selected)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.dry_run:
        print(describe(todo, plan, options.jobs))
        return 0
    write_json(plan.summary(), plan.output / "plan.json", indent=2)
    if options.jobs > 1:
        return share(options.jobs, sys.argv[1:] if arguments is None else arguments)
    try:
        wrong = work(todo, plan, options.hours)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    if wrong:
        print("\n".join([f"{len(wrong)} of {len(todo)} runs did not end well:", *wrong]), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
