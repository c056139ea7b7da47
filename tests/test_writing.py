"""Full disks: a limit on the size of files, a file system of its own where one may be mounted, paths that are taken."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from b2inst import writing
from b2inst.callbacks.metrics_log import MetricsLog
from b2inst.train import train
from b2inst.writing import lost, may_fail, whole_file
from toy import toy_config

WRITTEN = ("metrics.csv", "metrics.json", "results.json")  # files; the rest of a run are folders


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process grows further: writing fails in the middle, as on a full disk (with EFBIG)."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system with no room left (ENOSPC)."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=50", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    writing.forget()
    yield
    writing.forget()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    with whole_file(path) as file:
        file.write("old")
    with pytest.raises(OSError), files_of_at_most(10), whole_file(path) as file:
        file.write("new" * 100)
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file"]
    with pytest.raises(KeyError), whole_file(path) as file:
        file.write("new")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file"]


def test_each_kind_is_told_once_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("pictures", "pictures", "curves"):
        with may_fail(kind, "draw them later"):
            raise OSError(28, "No space left on device")
    assert [record.getMessage() for record in caplog.records] == [
        f"{kind} cannot be written, and the run goes on without: [Errno 28] No space left on device; draw them later"
        for kind in ("pictures", "curves")
    ]
    assert list(lost()) == ["pictures", "curves"]
    with pytest.raises(KeyError), may_fail("pictures"):
        raise KeyError("a mistake in the program")


@pytest.mark.parametrize("new_column", [False, True])
def test_the_log_loses_no_row_on_a_disk_that_is_full_for_a_while(
    new_column: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = MetricsLog(str(tmp_path))
    path = tmp_path / "metrics.csv"
    for step in range(3):
        logger.log_metrics({"loss": step + 0.125}, step)
    logger.save()
    before = path.read_bytes()
    with files_of_at_most(len(before) + 5):
        for step in range(3, 6):
            logger.log_metrics({"loss": step + 0.125, **({"other": 1.0} if new_column else {})}, step)
            logger.save()
        assert path.read_bytes() == before, "no half row, and the old rows are all there"
    assert caplog.text.count("metrics.csv cannot be written") == 1
    logger.finalize("success")
    assert [(int(row["step"]), float(row["loss"])) for row in rows(path)] == [(n, n + 0.125) for n in range(6)]
    assert ("other" in rows(path)[5]) == new_column
    assert os.listdir(tmp_path) == ["metrics.csv"]


@contextlib.contextmanager
def paths_taken(output: Path) -> Iterator[None]:
    """Folders stand where files, and files where folders belong: refused as without permission, also for root."""
    for name in WRITTEN:
        (output / name).mkdir(parents=True)
    for name in ("pictures", "curves"):
        (output / name).write_text("")
    yield


@pytest.mark.parametrize("fault", [paths_taken, full_disk], ids=["paths taken", "full disk"])
def test_a_training_goes_on_to_its_end(
    fault: contextlib.AbstractContextManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All that is reported is lost, and nothing else; checkpoints are on another disk, they have tests of their own."""
    output, elsewhere = tmp_path / "run", tmp_path / "checkpoints"
    config = toy_config(
        tmp_path / "set", output, "experiment=ablation_e", "callbacks.checkpoint.save_top_k=1", "schedule.steps=4",
    )  # fmt: skip
    elsewhere.mkdir()
    with fault(output), caplog.at_level(logging.WARNING, "b2inst"):
        (output / "checkpoints").symlink_to(elsewhere)
        if fault is full_disk:
            fill(output, len(OmegaConf.to_yaml(OmegaConf.create(config))) + 200)  # config.yaml, which a run starts with
        scores = train(config)
        assert not any((output / name).is_file() for name in ("metrics.json", "results.json"))
    assert "mask/AP" in scores.metrics
    assert {path.name for path in elsewhere.iterdir()} >= {"best.ckpt", "last.ckpt"}
    told = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    kinds = [text.split(" cannot be")[0] for text in told]
    assert len(kinds) == len(set(kinds)), "each kind once, though there were two validations"
    assert set(kinds) >= {"metrics.csv", "pictures", "metrics.json or results.json"}


def fill(folder: Path, room: int) -> None:
    """Leave room for so many bytes and no more."""
    (folder / "room").write_bytes(bytes(room))
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    (folder / "room").unlink()
