"""Steps that are not finite: planted in a small module, and once in the real training."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from b2inst.callbacks.finite import FiniteSteps, NonFiniteError
from b2inst.lit import LitSegmenter
from b2inst.models.segmenter import Segmenter
from b2inst.replay import load_step, replay, save_step
from b2inst.replay import main as replay_main
from b2inst.train import train
from callbacks.small_run import fit, state
from models import build
from toy import toy_checkpoint, toy_config

GOOD = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys() and len(one) > 20
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("bad", ["nan.jpg", "inf.jpg", "gradient.jpg"])
def test_a_step_that_is_not_finite_leaves_no_trace(bad: str, kind: str, tmp_path: Path) -> None:
    """Weights, optimizer, average and running statistics equal those of a run without the batch."""
    if (bad, kind) == ("gradient.jpg", "16-mixed"):
        pytest.skip("gradients that overflow are the business of the scaler")
    optimizer = "SGD" if bad == "inf.jpg" else "AdamW"
    module, trainer, finite = fit(tmp_path, [*GOOD[:2], bad, *GOOD[2:]], kind=kind, optimizer=optimizer)
    assert (finite.skipped, finite.in_row, trainer.global_step) == (1, 0, 5)
    plain, without, _ = fit(tmp_path / "plain", GOOD, kind=kind, optimizer=optimizer, guard=False)
    assert same(state(module, trainer), state(plain, without))


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("bad", ["nan.jpg", "gradient.jpg"])
def test_all_batches_of_an_accumulated_step_are_left_out(
    bad: str, position: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = ["x.jpg", "y.jpg"]
    pair[position] = bad
    module, trainer, finite = fit(tmp_path, [*GOOD[:2], *pair, *GOOD[2:]], accumulate=2)
    plain, without, _ = fit(tmp_path / "plain", GOOD, accumulate=2, guard=False)
    assert same(state(module, trainer), state(plain, without))
    told = [record.getMessage() for record in caplog.records if "is skipped" in record.getMessage()]
    assert len(told) == 1 and f"images {bad};" in told[0], "only the batch that is at fault is named"
    assert [path.name for path in tmp_path.glob("*.ckpt")] == [f"step00000001-{position:03d}-rank0.ckpt"]


def test_without_the_callback_the_run_is_lost(tmp_path: Path) -> None:
    module, trainer, _ = fit(tmp_path, [*GOOD[:2], "nan.jpg"], guard=False)
    assert not all(value.isfinite().all() for value in state(module, trainer).values())


def test_the_scaler_deals_with_gradients_that_overflow_until_its_scale_is_1(tmp_path: Path) -> None:
    names = ["gradient.jpg"] * 10  # scales 256, 128, ..., 2, 1, 1/2: the last two do not help any more
    _, trainer, finite = fit(tmp_path, names, kind="16-mixed")
    assert finite.skipped == 2
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**-2


def test_too_many_in_a_row_end_the_run_with_names_and_remedy(tmp_path: Path) -> None:
    names = ["nan1.jpg", "nan2.jpg", "a.jpg", "nan3.jpg", "inf4.jpg", "nan5.jpg", "b.jpg"]
    with pytest.raises(NonFiniteError) as error:
        fit(tmp_path, names, max_in_row=3, keep=2)
    told = str(error.value)
    assert all(name in told for name in ("nan3.jpg", "inf4.jpg", "nan5.jpg", "loss inf", "optim.lr", "32-true"))
    assert "nan1.jpg" not in told, "those were followed by a good step"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step00000004-000-rank0.ckpt", "step00000005-000-rank0.ckpt"], "the newest two, and nothing else"
    assert all(str(tmp_path / name) in told for name in kept)


def test_the_count_goes_on_after_an_interruption() -> None:
    before, after = FiniteSteps("x"), FiniteSteps("x")
    before.skipped, before.in_row, before.skipped_at = 7, 2, 40
    after.load_state_dict(before.state_dict())
    assert (after.skipped, after.in_row, after.skipped_at) == (7, 2, 40)
    with pytest.raises(ValueError, match="max_in_row=0"):
        FiniteSteps("x", max_in_row=0)


def test_a_full_disk_loses_the_batch_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    _, trainer, finite = fit(tmp_path / "file", ["nan1.jpg", "a.jpg", "nan2.jpg", "b.jpg"])
    assert (finite.skipped, trainer.global_step) == (2, 4)
    assert sum("batches of skipped steps cannot be written" in record.getMessage() for record in caplog.records) == 1


def test_two_processes_skip_and_stop_together(tmp_path: Path) -> None:
    """One process meets the NaN; if the other went on alone, the run would hang, or its weights differ."""
    here = Path(__file__)
    paths = os.pathsep.join(str(here.parents[n] / part) for n, part in ((2, "src"), (1, "")))
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here.with_name("small_run.py")), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["skipped"] == second["skipped"] == 2
    weights = [name for name in first["state"] if "1." not in name]  # the batch norm has its own statistics
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in weights)
    assert all(value.isfinite().all() for part in (first, second) for value in part["state"].values())
    told = [line for line in done.stderr.splitlines() if "is skipped" in line]
    assert len(told) == 4 and "images nan.jpg; batch" in told[0], "told once, by the first process"
    assert "c.jpg" not in told[0], "the batch of the first process was sound"
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["step00000001-000-rank1.ckpt", "step00000003-000-rank1.ckpt"]
    assert first["stopped"] == second["stopped"]
    assert "2 steps in a row" in first["stopped"] and "nan3.jpg" in first["stopped"] and "nan4.jpg" in first["stopped"]


def test_a_training_goes_on_and_its_step_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    total_loss, calls, pixels = Segmenter.total_loss, [], []

    def planted(self, losses, epoch=0):
        if self.training:
            calls.append(1)
        if self.training and len(calls) == 2:
            with torch.no_grad():
                pixels.append(losses["cls"].item())
            return total_loss(self, losses, epoch) * torch.nan
        return total_loss(self, losses, epoch)

    monkeypatch.setattr(Segmenter, "total_loss", planted)
    with caplog.at_level(logging.WARNING, "b2inst"):
        train(toy_config(tmp_path / "set", tmp_path / "run", "experiment=b2inst", "callbacks=ema", "schedule.steps=3"))
    monkeypatch.undo()
    with (tmp_path / "run" / "metrics.csv").open() as file:
        counts = [float(row["train/skipped_steps"]) for row in csv.DictReader(file) if row["train/skipped_steps"]]
    assert counts == [0, 1, 1]
    (path,) = (tmp_path / "run" / "nonfinite").iterdir()
    _, batch, content = load_step(path)
    assert content["global_step"] == 1 and content["reason"] == "loss nan"
    assert all(name in caplog.text for name in batch.images.file_names) and len(batch) == 4
    replay_main([str(path)])
    told = capsys.readouterr().out
    assert all(name in told for name in batch.images.file_names)
    assert f"  cls {pixels[0]:.6g}\n" in told, "the same batch meets the same weights"
    assert "weights that are not finite: none" in told


def test_replay_names_the_part_that_breaks(tmp_path: Path) -> None:
    toy = toy_checkpoint(tmp_path / "toy.ckpt")
    with pytest.raises(ValueError, match="without a batch"):
        load_step(toy)
    module = LitSegmenter.from_checkpoint(toy)
    torch.nn.init.constant_(module.model.basis.bases.bias, torch.nan)
    batch = build.batch([[(8, 8, 40, 40)]], sizes=[(64, 96)])
    save_step(tmp_path / "step.ckpt", module, batch, 5, "loss nan", "bf16-mixed")
    told = replay(tmp_path / "step.ckpt")
    assert "weights that are not finite: basis.bases.bias" in told
    assert "outputs that are not finite, first to last: basis.bases" in told
    assert "  mask nan  <-" in told and "  cls nan" not in told
