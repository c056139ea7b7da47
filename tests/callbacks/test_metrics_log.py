from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from b2inst import writing
from b2inst.callbacks.metrics_log import MetricsLog, go_on, read


def steps(path: Path) -> list[str]:
    return [row["step"] for row in read(path)]


def test_a_second_log_goes_on_with_the_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    first = MetricsLog(str(tmp_path))
    first.log_metrics({"loss": torch.tensor(1.5)}, 0)
    first.log_metrics({"loss": 1.0}, 1)
    first.save()
    second = MetricsLog(str(tmp_path), flush_every=2)
    second.log_metrics({"loss": 0.5}, 2)
    assert steps(path) == ["0", "1"]
    second.log_metrics({"AP": 0.25}, 2)
    assert [list(row.values()) for row in read(path)] == [
        ["", "1.5", "0"], ["", "1.0", "1"], ["", "0.5", "2"], ["0.25", "", "2"],
    ]  # fmt: skip


def test_lines_behind_the_checkpoint_and_torn_ones_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss,step\n0,1.5,0\n0,1.0,1\n0,0.5,2\n0,0.2")
    go_on(path, 2, keep=False)
    assert steps(path) == ["0", "1"] and os.listdir(tmp_path) == ["metrics.csv"]
    go_on(path, 1, keep=True)
    assert steps(path) == ["0"] and steps(tmp_path / "metrics.1.csv") == ["0", "1"]


def test_half_a_step_is_no_step(tmp_path: Path) -> None:
    """Of a line `0,0.2,12` a kill has left `0,0.2,1`."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss,step\n0,1.5,10\n0,1.0,11\n0,0.2,1")
    go_on(path, 20, keep=False)
    assert steps(path) == ["10", "11"]


@pytest.mark.parametrize("metric", ["loss", "new"], ids=["append", "rewrite"])
def test_a_full_disk_loses_no_line(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(str(tmp_path))
    log.log_metrics({"loss": 1.0}, 0)
    log.save()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writing.forget()
    monkeypatch.setattr(os, "fsync", fail)
    log.log_metrics({metric: 2.0}, 1)
    log.save()
    assert steps(log.path) == ["0"] and "metrics.csv cannot be written" in caplog.text
    monkeypatch.undo()
    log.save()
    assert steps(log.path) == ["0", "1"]
