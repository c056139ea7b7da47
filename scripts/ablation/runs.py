"""The folder of a run: what state it is in, how long it took, and how its training is started, in a process of its own.

A process per run, and not one sweep in one process: whatever ends a training (no memory, a crash of a library,
SIGKILL) ends it alone, each begins with a fresh process, and the list is no product of a few choices.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from ablation.plan import Run
from b2inst.config import ConfigError
from b2inst.metrics.scores import write_json

ROOT = Path(__file__).resolve().parents[2]
RECORD, METRICS, INSPECTION, LOG = "study.json", "metrics.json", "inspection.json", "console.log"
HEARTBEAT = 5.0  # seconds between notes of the time that has passed; a killed study loses no more
STOPPED = {-signal.SIGTERM, -signal.SIGINT, 75, 130, 143}  # exit codes of who was asked to stop


class Busy(Exception):
    """Another process works in the folder of the run."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, an empty one if there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def state(folder: Path) -> str:
    """`new`, `unfinished`, `failed`, `not inspected` (trained, but not measured from inside), or `done`."""
    if (folder / METRICS).is_file():
        return "done" if (folder / INSPECTION).is_file() else "not inspected"
    attempts = read_json(folder / RECORD).get("attempts", [])
    if attempts and attempts[-1]["exit"] not in (None, 0, *STOPPED):
        return "failed"
    return "unfinished" if attempts or (folder / "checkpoints").is_dir() else "new"


def seconds(folder: Path) -> float:
    """How long the training took so far, all attempts together."""
    return sum(attempt["seconds"] for attempt in read_json(folder / RECORD).get("attempts", []))


def processor_seconds(folder: Path) -> float | None:
    """Work of all processors in the training, all attempts together; None where that of an attempt is not known."""
    attempts = read_json(folder / RECORD).get("attempts", [])
    known = [attempt["processor_seconds"] for attempt in attempts if attempt.get("processor_seconds") is not None]
    return sum(known) if known and len(known) == len(attempts) else None


def precisions(folder: Path) -> str | None:
    """In what precision it was trained, of several that of each attempt in order; None if that is not known."""
    known = [attempt.get("precision") for attempt in read_json(folder / RECORD).get("attempts", [])]
    return " then ".join(dict.fromkeys(known)) if known and None not in known else None


def inspection_seconds(folder: Path) -> float:
    """How long the inspection took; 0 before it."""
    return read_json(folder / RECORD).get("inspection_seconds", 0.0)


def variables() -> dict[str, str]:
    """Values of the environment that stand in overrides: paths of a machine, which mean nothing on the next."""
    return {name: os.environ[name] for name in ("B2INST_DATA", "B2INST_WEIGHTS") if os.environ.get(name)}


def settled(run: Run) -> dict[str, Any]:
    """The record of a run, begun if there is none.

    Raises:
        ConfigError: the folder holds a run with other settings, which cannot be compared with those of this plan.
    """
    record = read_json(run.folder / RECORD)
    wanted = list(run.overrides)
    if record and record["overrides"] != wanted:
        changed = sorted(set(record["overrides"]) ^ set(wanted))
        raise ConfigError(
            f"{run.folder} holds a run with other settings ({', '.join(changed) or 'in another order'}); delete the "
            "folder to train it anew, or give another folder with --output"
        )
    about = {"dataset": run.dataset.name, "arm": run.arm.name, "group": run.arm.group, "label": run.arm.label,
             "seed": run.seed, "overrides": wanted}  # fmt: skip
    return {"attempts": [], **record, **about}


def train(run: Run, held: IO[bytes]) -> int:
    """Train, or go on from the last checkpoint; returns the exit code.

    Args:
        run: which.
        held: the lock of its folder.

    Raises:
        ConfigError: see `settled`.
    """
    record = settled(run)
    attempt: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "seconds": 0.0, "exit": None}
    record["attempts"].append(attempt)
    attempt.update(precision=precision(), commit=commit())
    record["variables"] = variables()
    start, work = time.monotonic(), _work_of_children()

    def note() -> None:
        attempt["seconds"] = round(time.monotonic() - start, 1)
        write_json(record, run.folder / RECORD, indent=2)

    note()
    name = f"study-{run.dataset.name}-{run.arm.name}"
    command = ["-m", "b2inst.train", f"trainer.precision={attempt['precision']}", *run.overrides, f"seed={run.seed}",
               f"name={name}", f"output={quoted(run.folder)}", "ckpt_path=last"]  # fmt: skip
    attempt["exit"] = execute(command, run.folder, held, note)
    attempt["processor_seconds"] = round(_work_of_children() - work, 1)
    note()
    return attempt["exit"]


def inspect(run: Run, held: IO[bytes], images: int, crops: int) -> int:
    """Measure what is asked of a trained run, from its best checkpoint; returns the exit code."""
    record, start = settled(run), time.monotonic()
    height, width = run.dataset.size
    command = [str(ROOT / "scripts" / "inspect_run.py"), str(run.folder.absolute()), f"--images={images}",
               f"--crops={crops}", f"--crop-size={run.dataset.crop}", f"--size={height}x{width}", "--slim"]  # fmt: skip
    code = execute(command, run.folder, held)
    record["inspection_seconds"] = round(time.monotonic() - start, 1)
    write_json(record, run.folder / RECORD, indent=2)
    return code


def execute(arguments: list[str], folder: Path, held: IO[bytes], note: Callable[[], None] = lambda: None) -> int:
    """Run Python with these arguments, its output appended to the log of the run; returns the exit code.

    The process is asked to stop when this one dies, and holds the lock of the folder until it has ended. It has a
    session of its own: Ctrl-C reaches this one alone, which passes it on once.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))}
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, pass_fds=[held.fileno()], start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        return _wait(process, note)
    except BaseException:
        process.terminate()  # saves a checkpoint and ends; a second Ctrl-C does not wait for that
        try:
            _wait(process, note)
        except BaseException:
            process.kill()
            process.wait()
            raise
        raise


def precision() -> str:
    """The faster one here: that of a GPU, where there is one.

    On a CPU bfloat16 takes 0.6 of the time of float32 with instructions for it, without them ten times of it.
    """
    if torch.cuda.is_available():
        return "bf16-mixed"
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    return "bf16-mixed" if flags & {"avx512_bf16", "amx_bf16"} else "32-true"


def commit() -> str | None:
    """Of the code that trains, with a + if it was changed since; None where git does not know."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src", "conf"], cwd=ROOT).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()[:12] + "+" * changed


def _work_of_children() -> float:
    """Seconds of processors of all child processes that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _wait(process: subprocess.Popen[bytes], note: Callable[[], None]) -> int:
    while True:
        try:
            return process.wait(HEARTBEAT)
        except subprocess.TimeoutExpired:
            note()


@contextmanager
def lock(folder: Path, patience: float) -> Iterator[IO[bytes]]:
    """Hold a folder, so that no two processes train in it; a training of a study that was killed may still be ending.

    Args:
        folder: made if missing.
        patience: seconds to wait.

    Raises:
        Busy: it is held all the time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with (folder / ".lock").open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Busy(f"{folder}: another process works there") from None
                time.sleep(0.2)
        yield file


def quoted(path: Path) -> str:
    """A path as a value on Hydra's command line."""
    return "'" + str(path.absolute()).replace("'", "\\'") + "'"


def last_words(folder: Path, lines: int = 3) -> str:
    """The end of the log of a run."""
    path = folder / LOG
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        text = file.read().decode(errors="replace")
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, be it of SIGKILL; elsewhere the lock keeps a second training away."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG
