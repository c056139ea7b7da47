"""The evaluation after a training, with checkpoints that could and could not be written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from b2inst import writing
from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.checkpoint_io import AtomicCheckpointIO
from b2inst.metrics.scores import Scores
from b2inst.train import CHECKPOINTS, finish

STEP = 9  # the last one
MEMORY = 1.0  # weight that is in memory


def finished(output: Path, saved: dict[str, int], lost: dict[str, str]) -> float:
    """The weight that is scored, where checkpoints of some steps are there, each with its step as the weight."""
    writing.forget()
    for name, step in saved.items():
        content = {"state_dict": {"weight": torch.full((1, 1), float(step))}, "global_step": step}
        AtomicCheckpointIO().save_checkpoint(content, output / "checkpoints" / name)
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, MEMORY)
    evaluation, scored = CocoEvaluation(), []
    evaluation.scores = Scores({"mask/AP": 0.5})
    trainer = SimpleNamespace(
        callbacks=[evaluation], global_step=STEP, is_global_zero=True,
        strategy=SimpleNamespace(broadcast=lambda value: value, checkpoint_io=SimpleNamespace(lost=lost)),
        validate=lambda module, **_: scored.append(float(module.weight)),
    )  # fmt: skip
    output.mkdir(exist_ok=True)
    assert finish(trainer, module, None, output).metrics == {"mask/AP": 0.5}
    assert (output / "metrics.json").exists() == (not lost) == (CHECKPOINTS not in writing.lost())
    return scored[0]


@pytest.mark.parametrize(
    ("saved", "weight"),
    [({"best.ckpt": 4, "last.ckpt": STEP}, 4), ({"last.ckpt": STEP}, STEP), ({"last.ckpt": 3}, MEMORY), ({}, MEMORY)],
)
def test_the_best_is_scored_or_else_the_last_step(saved: dict[str, int], weight: float, tmp_path: Path) -> None:
    assert finished(tmp_path / "run", saved, {}) == weight


def test_a_run_without_its_last_checkpoint_is_not_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert finished(tmp_path / "run", {"last.ckpt": 3}, {"last.ckpt": "No space left on device"}) == MEMORY
    told = writing.lost()[CHECKPOINTS]
    assert told.startswith("last.ckpt (No space left on device); the scores are of the weights in memory, step 9")
    assert told in caplog.text


def test_a_damaged_best_checkpoint_is_told_and_not_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"torn")
    assert finished(tmp_path / "run", {"last.ckpt": STEP}, {}) == STEP
    assert f"{best} is damaged" in caplog.text
