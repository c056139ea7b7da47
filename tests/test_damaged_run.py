"""The limit of damaged training images, as the data settings have it, in real runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from b2inst.config import build
from b2inst.train import train
from toy import TOY, run, toy_config

# 12 batches of 10 images are one epoch
SETTINGS = ["data.prepare.train_images=120", "data.batch_size=10", "data.val_batch_size=4", "schedule.steps=12",
            "trainer.val_check_interval=12", "experiment=ablation_a", "~callbacks.pictures"]  # fmt: skip


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """A set of which one image in 120 is damaged: less than the 1 % that `data.max_damaged` allows."""
    root = tmp_path / "set"
    config = toy_config(root, tmp_path / "none", *SETTINGS)
    assert config["data"]["max_damaged"] == 0.01
    data = build(config["data"])
    data.prepare_data()
    assert len(data.dataset("train")) == 120
    _damage(root, 0)
    return root


def _damage(root: Path, number: int) -> str:
    path = sorted((root / "train").iterdir())[number]
    path.write_bytes(path.read_bytes()[:60])
    return path.name


def test_one_in_120_is_left_out_of_a_run(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="b2inst"):
        train(toy_config(root, tmp_path / "run", *SETTINGS))
    (line,) = [record.getMessage() for record in caplog.records if "left out of training" in record.getMessage()]
    assert line.startswith("image 1 that is left out of training: ") and "cannot be decoded" in line
    assert "mask/AP" in json.loads((tmp_path / "run/metrics.json").read_text())


def test_two_in_120_end_it_in_words(root: Path, tmp_path: Path) -> None:
    names = [sorted((root / "train").iterdir())[0].name, _damage(root, 60)]
    done = run("train", *TOY, *SETTINGS, f"data.root={root}", "output=run", "name=toy", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: 2 of 120 training images cannot be used, data.max_damaged=0.01 allows 1; the last")
    assert any(name in error for name in names) and "python -m b2inst.verify" in error
    assert not (tmp_path / "run/metrics.json").exists()
