"""Runs that are interrupted, and what must not differ between them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch

import faulty_run
from toy import TOY, toy_checkpoint

# Few parameters, so that a write takes no time.
SMALL = [
    "experiment=ablation_e", "backbone@model.backbone=mobilenet_v2", "model.backbone.weights=null",
    "model.backbone.norm=bn", "model.backbone.freeze_at=0", "model.fpn.channels=64",
    # Which positives are scored is drawn: without that, random states that are lost would leave no trace.
    "scoring@model.scoring=light", "model.scoring.channels=16", "model.scoring.max_positives=2",
]  # fmt: skip
# Epochs, validations and writes end at different steps.
RUN = [
    *TOY, *SMALL, "name=toy", "data.prepare.train_images=10", "data.batch_size=2", "schedule.steps=13",
    "trainer.val_check_interval=4", "callbacks.last.every_n_steps=3", "objective=box/AR100", "~callbacks.pictures",
    "ckpt_path=last",
]  # fmt: skip
# What tells where and how a run was made, and what Lightning forgets and never uses: the score of the last write of
# best.ckpt, and how many validation batches there were.
APART = ("current_score", "hyper_parameters", "epoch_loop.val_loop.batch_progress")


class Runs:
    """Runs on one data set from one start, each in a process of its own.

    The processes are forked from one that has imported everything, which takes longer than a run.

    Args:
        folder: for data, start and runs.
        overrides: of all runs.
    """

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        # it finds a lot, so that there is a score
        start = toy_checkpoint(folder / "start.ckpt", *SMALL[1:])
        self.arguments = [*RUN, f"data.root={folder / 'set'}", f"init_from={start}", *overrides]
        os.environ["OMP_NUM_THREADS"] = "1"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["faulty_run"])

    def start(self, name: str, what: str = "none", *overrides: str) -> Any:
        """Start a run in the folder of a name, or go on with it."""
        arguments = [*self.arguments, f"output={self.folder / name}", *overrides]
        process = self.context.Process(target=faulty_run.main, args=(what, arguments, str(self.log(name))))
        process.start()
        return process

    def run(self, name: str, what: str = "none", *overrides: str) -> int:
        """The exit code of a run; -9 where it was killed."""
        process = self.start(name, what, *overrides)
        process.join(300)
        assert process.exitcode is not None, "the run hangs"
        return process.exitcode

    def log(self, name: str) -> Path:
        """What the runs in a folder have printed."""
        return self.folder / f"{name}.log"

    def differences(self, one: str, other: str) -> list[str]:
        """What is not the same in two finished runs: all of the checkpoints, the log, the scores."""
        found = []
        for file in ("last.ckpt", "best.ckpt"):
            content = [self.read(name, file) for name in (one, other)]
            found += [f"{file}{line}" for line in _differences(*content)]
        for file in ("metrics.csv", "metrics.json", "results.json"):
            texts = [(self.folder / name / file).read_text() for name in (one, other)]
            found += [file] * (texts[0] != texts[1])
        return found

    def read(self, name: str, file: str) -> dict[str, Any]:
        """The content of a checkpoint."""
        return torch.load(self.folder / name / "checkpoints" / file, weights_only=True)


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = ({Path(str(k)).name: v for k, v in part.items() if k not in APART} for part in (one, other))
        keys = [f"{path}.{key}" for key in one.keys() ^ other.keys()]
        return keys + [line for key in one.keys() & other.keys()
                       for line in _differences(one[key], other[key], f"{path}.{key}")]  # fmt: skip
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, pair in pairs for line in _differences(*pair, f"{path}.{i}")]
    if isinstance(one, str) and one.startswith("/") and isinstance(other, str):  # in the folders of the two runs
        one, other = Path(one).name, Path(other).name
    return [] if one == other else [f"{path}: {one!r} != {other!r}"]


RELIABILITY = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- kills: begin, written by make soak -->", "<!-- kills: end -->"
HEAD = "| run | kills | runs that reached their end | damaged checkpoints met | differences from the whole run |"


def report(name: str, kills: int, finished: int, damaged: int, different: int) -> None:
    """Write the figures of a long test into the table of the document, in the place of those with the same name."""
    row = f"| {name} | {kills} | {finished} | {damaged} | {different} |"
    before, rest = RELIABILITY.read_text().split(BEGIN)
    table, after = rest.split(END)
    rows = [line for line in table.strip().splitlines()[2:] if not line.startswith(f"| {name} |")]
    lines = [BEGIN, HEAD, "|---|" + "--:|" * (HEAD.count("|") - 2), *sorted([*rows, row]), END]
    RELIABILITY.write_text(before + "\n".join(lines) + after)
