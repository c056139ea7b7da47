"""A run that is interrupted, however and how often, ends as the one that is not; bit for bit, as on one CPU process."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resuming import Runs, report

EMA = ["callbacks=ema", "data.num_workers=2"]
SOAK = int(os.environ.get("B2INST_SOAK", "0"))
KILLS = 50  # of a long test
KILLED = -9


def chain(runs: Runs, name: str, faults: list[tuple[str, int]]) -> None:
    """Let each fault happen to a run, with its exit code, and then let the run end."""
    for what, code in faults:
        assert runs.run(name, what) == code, runs.log(name).read_text()[-3000:]
    assert runs.run(name) == 0, runs.log(name).read_text()[-3000:]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("plain"))
    assert runs.run("whole") == 0, runs.log("whole").read_text()[-3000:]
    yield runs


def test_kills_leave_no_trace_with_ema_and_workers(tmp_path: Path) -> None:
    runs = Runs(tmp_path, *EMA)
    assert runs.run("whole") == 0, runs.log("whole").read_text()[-3000:]
    chain(runs, "killed", [("kill:step:6", KILLED), ("kill:validation:1", KILLED), ("kill:write:1", KILLED)])
    assert runs.differences("whole", "killed") == []


def test_a_validation_that_comes_again_is_logged_once(plain: Runs) -> None:
    """Its scores are logged in front of the checkpoint that has them."""
    chain(plain, "written", [("kill:write:2", KILLED)])
    assert plain.log("written").read_text().count("step 4:") == 2, "the kill was not between the log and the checkpoint"
    assert plain.differences("whole", "written") == []


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(plain: Runs) -> None:
    assert plain.run("damaged", "kill:step:7") == KILLED
    folder = plain.folder / "damaged" / "checkpoints"
    steps = [plain.read("damaged", name)["global_step"] for name in ("last.ckpt", "previous.ckpt")]
    content = bytearray((folder / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "last.ckpt").write_bytes(content)
    chain(plain, "damaged", [])
    told = plain.log("damaged").read_text()
    assert f"{folder / 'last.ckpt'} is damaged" in told and f"goes on from {folder / 'previous.ckpt'}" in told
    assert steps[0] >= steps[1] > 0
    assert plain.differences("whole", "damaged") == []


def test_signals_save_and_leave_with_a_code(plain: Runs) -> None:
    """Those of a scheduler with 75, to be put into the queue again, Ctrl-C with 130; workers get them as well."""
    assert plain.run("asked", "all-term:step:1", "data.num_workers=2") == 75
    assert plain.read("asked", "last.ckpt")["global_step"] == 2, "the step was not finished and saved"
    chain(plain, "asked", [("int:validation:0", 130), ("usr1:step:3", 75), ("term:final:0", 75)])
    told = plain.log("asked").read_text()
    assert "SIGINT: finishing the step" in told and "goes on after step 4" in told and "Traceback" not in told
    assert plain.differences("whole", "asked") == []


def test_a_full_disk_costs_no_step_and_no_checkpoint(plain: Runs) -> None:
    folder = plain.folder / "full" / "checkpoints"
    assert plain.run("full", "kill:step:4") == KILLED
    for name in ("last", "best"):
        (folder / f".{name}.ckpt.tmp").unlink(missing_ok=True)
        (folder / f".{name}.ckpt.tmp").symlink_to("/dev/full")  # the next write finds no space; those after it do
    assert plain.run("full", "kill:rename:0") == KILLED, "no write succeeded after the failed one"
    told = plain.log("full").read_text()
    assert f"the disk is full: {folder / 'previous.ckpt'} is given up for a new last.ckpt" in told
    assert not (folder / "previous.ckpt").exists() and plain.read("full", "last.ckpt")["global_step"] == 4
    (folder / ".best.ckpt.tmp").unlink(missing_ok=True)  # there is room again; the run may not have had a best one yet
    chain(plain, "full", [])
    assert plain.differences("whole", "full") == []


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="four runs more; callbacks/test_last.py has the parts: make soak")
def test_a_step_of_two_batches_is_finished_or_made_again(tmp_path: Path) -> None:
    runs = Runs(tmp_path, "trainer.accumulate_grad_batches=2", "schedule.steps=7")
    assert runs.run("whole") == 0, runs.log("whole").read_text()[-3000:]
    assert runs.run("killed", "term:step:2") == 75
    assert runs.read("killed", "last.ckpt")["global_step"] == 2, "the signal came between the batches of step 2"
    chain(runs, "killed", [("kill:step:5", KILLED)])
    assert runs.differences("whole", "killed") == []


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="three runs more; test_finish.py has the parts: make soak")
def test_a_run_without_its_last_checkpoint_is_not_done(plain: Runs) -> None:
    """The disk is full to the end: what was trained is scored, not the old checkpoint, and can be made again."""
    folder = plain.folder / "lost"
    assert plain.run("lost", "kill:step:3") == KILLED
    places = [folder / "checkpoints" / f".{name}.ckpt.tmp" for name in ("last", "best")]
    for place in places:
        place.mkdir()
    assert plain.run("lost") == 1
    told = plain.log("lost").read_text()
    assert "error: could not be written: " in told and "the scores are of the weights in memory, step 13" in told
    assert not (folder / "metrics.json").exists() and plain.read("lost", "last.ckpt")["global_step"] == 3
    for place in places:
        place.rmdir()
    chain(plain, "lost", [])
    assert plain.differences("whole", "lost") == []


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="fifty kills take minutes: make soak")
@pytest.mark.parametrize(
    "overrides",
    [["data.num_workers=0"], EMA, ["trainer.accumulate_grad_batches=2"]],
    ids=["no workers", "EMA and 2 workers", "two batches a step"],
)
def test_random_kills_leave_no_trace(overrides: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    runs = Runs(tmp_path, *overrides)
    start = time.monotonic()
    assert runs.run("whole") == 0
    length = time.monotonic() - start
    kills, finished, damaged, different = 0, 0, 0, []
    process = None
    while process is None or kills < KILLS // 2 or process.exitcode != 0:
        process = runs.start(f"run{finished}")
        begin = time.monotonic()
        process.join(random.uniform(0.2 * length, length) if kills < KILLS // 2 else 300)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        elif process.exitcode == 0:
            length = min(length, time.monotonic() - begin)  # the first may have been slow, and no kill would hit
            different += runs.differences("whole", f"run{finished}")
            damaged += "is damaged" in runs.log(f"run{finished}").read_text()
            finished += 1
        else:
            different.append(runs.log(f"run{finished}").read_text()[-3000:])
            break
    report(request.node.callspec.id, kills, finished, damaged, len(different))
    assert different == []
