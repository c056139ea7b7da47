"""A W&B server that goes away, or was never there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from callbacks.wandb_run import STEPS, WAIT
from data.fuzzing import SOAK

BLOCK = 32768  # bytes; a run's file has a header of 7 bytes and then the records of a LevelDB log


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    content, place, joined = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # no header fits into the rest of a block
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        joined += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(joined)
            yield record
            joined = b""


def logged(folder: Path) -> list[float]:
    """Values in the one file of a run that has some, which `wandb sync` would upload."""
    values: dict[Path, list[float]] = {}
    for path in folder.glob("wandb/*run-*/run-*.wandb"):
        for record in records(path):
            for item in record.history.item:
                if "step_done" in (item.key, *item.nested_key):
                    values.setdefault(path, []).append(float(item.value_json))
    (found,) = values.values()
    return found


@pytest.mark.soak
@pytest.mark.parametrize("absent", [[], ["absent"]], ids=["goes away", "is absent"])
def test_the_training_ends_in_time_and_its_log_is_kept(absent: list[str], tmp_path: Path) -> None:
    if absent and not SOAK:
        pytest.skip("waits for a server that is not there: `make soak` does")
    here = Path(__file__)
    paths = os.pathsep.join(str(here.parents[n] / part) for n, part in ((2, "src"), (1, "")))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here.with_name("wandb_run.py")), str(tmp_path), *absent]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["steps"] == STEPS
    assert bool(told["started"]) != bool(absent), "the server was reached before it went away, or never"
    assert told["seconds"] < 60, f"{WAIT} seconds at the start or the end, and the rest of a busy machine"
    assert logged(tmp_path) == [float(step) for step in range(1, STEPS + 1)]
    assert ("W&B: no run (" in done.stderr) == bool(absent)
