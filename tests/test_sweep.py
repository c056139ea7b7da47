"""The table over the jobs of a sweep, from what lies in their folders."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from b2inst.sweep import ERROR_FILE, SweepTable, job_folder, overrides_of, render, status, write_table
from toy import TOY, run


def job(folder: Path, number: int | str, overrides: list[str], metrics: dict[str, float] | None) -> Path:
    path = folder / str(number)
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "overrides.yaml").write_text("".join(f"- '{text}'\n" for text in overrides))
    if metrics is not None:
        (path / "metrics.json").write_text(json.dumps(metrics))
    return path


def test_what_all_jobs_share_stands_above_the_table(tmp_path: Path) -> None:
    job(tmp_path, 2, ["experiment=e", "seed=1", "a=[1, 2]"], None)
    job(tmp_path, 10, ["experiment=a", "seed=1", "a=[1, 2]"], {"mask/AP": 0.5, "box/AP": None})
    (job(tmp_path, 11, ["experiment=b", "seed=1", "a=[1, 2]"], {"mask/AP": 0.1}) / ERROR_FILE).write_text("broken")
    rows = write_table(tmp_path)
    text = (tmp_path / "sweep.md").read_text().splitlines()
    assert text[0] == "All jobs: `seed=1 a=[1, 2]`" and text[1] == ""
    assert [line.split(" | ")[:3] for line in text[4:]] == [
        ["| 2", "experiment=e", "unfinished"], ["| 10", "experiment=a", "done"], ["| 11", "experiment=b", "failed"],
    ]  # fmt: skip
    assert "0.5000" in text[5] and "0.1000" not in text[6] and render(rows) == "\n".join(text)
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["overrides"] for row in csv.DictReader(file)][0] == "experiment=e seed=1 a=[1, 2]"


def test_a_single_job_keeps_its_overrides(tmp_path: Path) -> None:
    job(tmp_path, 0, ["seed=1"], {})
    write_table(tmp_path)
    assert "| 0 | seed=1 | done |" in (tmp_path / "sweep.md").read_text()
    assert render([]) == "no jobs"


def test_a_job_is_found_by_its_overrides_and_not_by_its_number(tmp_path: Path) -> None:
    job(tmp_path, 0, ["experiment=e", "seed=0"], {})
    job(tmp_path, 1, ["seed=1", "experiment=e", "sweep.resume=true"], None)
    assert job_folder(tmp_path, 5, ["experiment=e", "seed=1"]) == "1", "the order is no difference, nor is sweep.*"
    assert job_folder(tmp_path, 0, ["experiment=e", "seed=2", "sweep.resume=true"]) == "0-1", "0 belongs to another job"
    job(tmp_path, "0-1", ["experiment=e", "seed=2"], None)
    assert job_folder(tmp_path, 0, ["experiment=e", "seed=3"]) == "0-2"
    assert job_folder(tmp_path, 7, ["experiment=e", "seed=2"]) == "0-1"
    assert job_folder(tmp_path, 2, ["experiment=e", "seed=10"]) == "2"
    assert job_folder(tmp_path / "absent", 3, []) == "3"


@pytest.mark.parametrize("content", ["", "- 'seed=", "seed: 1", "\x00"])
def test_files_that_were_torn_by_a_kill_do_not_break_the_table(content: str, tmp_path: Path) -> None:
    job(tmp_path, 0, ["seed=0"], {"mask/AP": 0.25})
    torn = job(tmp_path, 1, [], None)
    (torn / ".hydra" / "overrides.yaml").write_text(content)
    half = job(tmp_path, 2, ["seed=2"], {})
    (half / "metrics.json").write_text('{"mask/AP": 0.')
    assert [row["status"] for row in write_table(tmp_path)] == ["done", "unfinished", "unfinished"]
    assert overrides_of(torn) is None and status(half) == "unfinished"
    assert job_folder(tmp_path, 1, ["seed=1"]) == "1", "a folder that does not tell is used again"
    assert job_folder(tmp_path, 1, []) == "1"


def test_a_table_that_cannot_be_written_stays_as_it_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job(tmp_path, 0, ["seed=0"], {})
    write_table(tmp_path)
    before = (tmp_path / "sweep.md").read_text()
    (tmp_path / "sweep.csv").unlink()
    (tmp_path / "sweep.csv").mkdir()
    job(tmp_path, 1, ["seed=1"], {})
    assert len(write_table(tmp_path)) == 2
    assert "the table of the sweep cannot be written" in caplog.text
    assert (tmp_path / "sweep.md").read_text() != before, "this one could be"
    assert not list(tmp_path.glob(".sweep*")), "no parts are left"


def test_a_folder_with_jobs_is_refused_unless_they_are_continued(tmp_path: Path) -> None:
    def config(resume: bool) -> SimpleNamespace:
        return OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}, "sweep": {"resume": resume}})

    SweepTable().on_multirun_start(config(False))
    job(tmp_path, 0, ["seed=0"], {})
    SweepTable().on_multirun_start(config(True))
    with pytest.raises(SystemExit, match="add sweep.resume=true"):
        SweepTable().on_multirun_start(config(False))


@pytest.mark.slow
def test_a_killed_sweep_is_continued(tmp_path: Path) -> None:
    """One job is done, one is killed after a checkpoint, one has failed; they are continued in another order."""
    sweep = tmp_path / "sweep"
    toy = [*TOY, f"data.root={tmp_path}/set", "experiment=ablation_a", "callbacks.last.every_n_steps=4",
           "callbacks.evaluation.kinds=[box,mask]", f"hydra.sweep.dir={sweep}"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    steps = "schedule.steps=1,-1,12"
    killed = subprocess.Popen(
        [sys.executable, "-m", "b2inst.train", "-m", *toy, "schedule.warmup_steps=0", steps], env=env, cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not (sweep / "2" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        assert killed.poll() is None, "it ended by itself"
        time.sleep(0.02)
    failure = (sweep / "1" / ERROR_FILE).stat().st_mtime_ns
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert statuses(sweep) == {"0": "done", "1": "failed", "2": "unfinished"}
    scored = (sweep / "0" / "metrics.json").stat().st_mtime_ns

    again = run("train", "-m", *toy, "schedule.warmup_steps=0", "schedule.steps=12,1,-1", "sweep.resume=true",
                cwd=tmp_path, check=False)  # fmt: skip
    assert again.returncode == 1, again.stderr[-3000:]
    assert statuses(sweep) == {"0": "done", "1": "failed", "2": "done"}, again.stderr[-3000:]
    assert (sweep / "0" / "metrics.json").stat().st_mtime_ns == scored, "what is done is left alone"
    assert (sweep / "1" / ERROR_FILE).stat().st_mtime_ns > failure, "what failed is tried again"
    assert "schedule.steps=12" in overrides_of(sweep / "2"), "numbers are those of the first command"
    assert f"Restoring states from the checkpoint path at {sweep}/2/checkpoints/last.ckpt" in again.stderr
    with (sweep / "2" / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == list(range(12)), "it goes on, and each step is there once"


@pytest.mark.soak
@pytest.mark.skipif(not os.environ.get("B2INST_SOAK"), reason="a sweep of its own: make soak")
def test_a_signal_ends_the_whole_sweep_and_leaves_the_table(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    toy = [*TOY, f"data.root={tmp_path}/set", "experiment=ablation_a", "callbacks.last.every_n_steps=2",
           "callbacks.evaluation.kinds=[box,mask]", f"hydra.sweep.dir={sweep}", "schedule.warmup_steps=0"]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "b2inst.train", "-m", *toy, "schedule.steps=1,500,2"]
    running = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (sweep / "1" / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        assert running.poll() is None, "it ended by itself"
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    assert running.wait(120) == 75
    assert statuses(sweep) == {"0": "done", "1": "unfinished"}, "the third job does not begin"
    assert not (sweep / "1" / ERROR_FILE).exists(), "it did not fail"


def statuses(sweep: Path) -> dict[str, str]:
    with (sweep / "sweep.csv").open() as file:
        return {row["job"]: row["status"] for row in csv.DictReader(file)}
