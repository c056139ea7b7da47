"""Several processes: they train as one does, however they are started, and the run ends when one of them fails."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import submitit
import torch
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import open_dict

import faulty_processes
from b2inst import distributed
from b2inst.config import ConfigError
from b2inst.paths import config_dir
from b2inst.train import train
from toy import TOY, toy_checkpoint, toy_config

ROOT = Path(__file__).resolve().parents[1]
SOAK = bool(os.environ.get("B2INST_SOAK"))
SMALL = ["model.scoring.fc_channels=32", "model.scoring.channels=32", "model.assembly.attention_size=7"]
# 5 images do not divide by 2. Batch norm sees the images of its own process, and AdamW makes noise as large as signal.
SET = [
    "data.prepare.val_images=5", "experiment=b2inst", "model.fpn.channels=64", "optim=sgd",
    "optim.lr=0.01", "schedule.steps=3", "trainer.val_check_interval=3", "model.backbone.norm=gn",
    "model.basis.norm=gn", "model.semantic.norm=gn", "data.val_batch_size=4", *SMALL,
]  # fmt: skip
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=2", "data.val_batch_size=2"]
PORT = 29500 + os.getpid() % 400
LAUNCHERS = {
    "lightning": [],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={PORT}"],
    "submitit": [],
}
SWEEP = ["-m", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=10"]
ENDS_WITHIN_S = 60  # docs/training.md says 10 and 40 seconds, on machines with nothing else to do


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Data, and weights that find something."""
    folder = tmp_path_factory.mktemp("given")
    norms = [f"model.{part}.norm=gn" for part in ("backbone", "basis", "semantic")]
    ckpt = toy_checkpoint(folder / "start.ckpt", *norms, *SMALL, experiment="b2inst")
    return [*SET, f"data.root={folder}/set", f"init_from={ckpt}"]


@pytest.fixture(scope="module")
def alone(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(toy_config(Path(), output, *given))
    torch.set_num_threads(threads)
    return output


@contextmanager
def started(*command: str, cwd: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A program that writes into `log`; what is left of it is killed."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    env |= {"MASTER_PORT": str(PORT), **variables}  # a port that is free when it is chosen may be taken when it is used
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=env, stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def losses(output: Path) -> list[dict[str, float]]:
    with (output / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [{name: float(value) for name, value in row.items() if name.startswith(("train/loss", "train/weighted"))}
            for row in rows]  # fmt: skip


def results(output: Path) -> list[tuple[float, ...]]:
    """Image, class and score of each detection, best first."""
    records = json.loads((output / "results.json").read_text())
    return sorted((r["image_id"], -r["score"], r["category_id"]) for r in records)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - value).abs().max()) for name, value in other.items())


# torchrun does what Lightning does, with another parent; its failures are tried in every run.
EQUAL = ["lightning", "submitit", *[pytest.param("torchrun", marks=pytest.mark.soak)] * SOAK]


@pytest.mark.parametrize("launcher", EQUAL)
def test_two_processes_train_as_one(launcher: str, given: list[str], alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    where = [f"output={output}"]
    if launcher == "submitit":
        where, output = [*SWEEP, f"hydra.sweep.dir={tmp_path}/sweep"], tmp_path / "sweep" / "0"
    with started(*LAUNCHERS[launcher], "-m", "b2inst.train", *where, *TOY, *given, *TWO, cwd=tmp_path) as process:
        status = process.wait(400)
    text = (tmp_path / "log").read_text() + "".join(path.read_text() for path in tmp_path.glob("sweep/*/error.txt"))
    assert status == 0, text[-5000:]
    found, wanted = losses(output), losses(alone)
    assert len(found) == len(wanted) == 3 and len(found[0]) > 20 and found[0] != found[2]
    for step, row in zip(found, wanted, strict=True):
        assert step == pytest.approx(row, rel=1e-5, abs=1e-5)
    ours, theirs = (torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (output, alone))
    start = torch.load(given[-1].removeprefix("init_from="), weights_only=True)["state_dict"]
    assert apart(ours, theirs) < 1e-5 and apart(theirs, start) > 1e-3
    scores, expected = (json.loads((f / "metrics.json").read_text()) for f in (output, alone))
    numbers = {name: value for name, value in expected.items() if isinstance(value, float)}
    assert {name: scores[name] for name in numbers} == pytest.approx(numbers, abs=1e-6) and "mask/AP" in numbers
    records, others = (results(f) for f in (output, alone))
    assert len(records) == len(others) > 50 and len({image for image, *_ in others}) == 5
    assert [row[::2] for row in records] == [row[::2] for row in others]
    assert [row[1] for row in records] == pytest.approx([row[1] for row in others], abs=1e-4)
    assert launcher == "submitit" or text.count("| boundary |") == 1, "more than one process tells the scores"


FAULTS = [("lightning", "raise", 0), ("torchrun", "kill", 1)]
LONG = [(launcher, what, who) for launcher in ("lightning", "torchrun") for what in ("raise", "kill") for who in (0, 1)]


@pytest.mark.soak
@pytest.mark.parametrize(("launcher", "what", "who"), [*(LONG if SOAK else FAULTS), *[("lightning", "wait", 0)] * SOAK])
def test_a_process_that_fails_ends_the_run(
    launcher: str, what: str, who: int, given: list[str], tmp_path: Path
) -> None:
    """The other process sleeps, as one that waits in NCCL: it has to be ended from outside."""
    fault = {faulty_processes.VARIABLE: f"{what} {who} {tmp_path}"}
    script = str(Path(faulty_processes.__file__))
    limit = 60 if what == "wait" else 600  # the start has to fit in it as well
    overrides = [*TOY, *given, *TWO, f"output={tmp_path}/run", f"trainer.strategy.timeout_s={limit}"]
    with started(*LAUNCHERS[launcher], script, *overrides, cwd=tmp_path, **fault) as process:
        status = process.wait(400)
        text = (tmp_path / "log").read_text()
        assert (tmp_path / "failed").is_file(), text[-5000:]
        assert status != 0
        allowed = ENDS_WITHIN_S + (limit if what == "wait" else 0)
        pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
        while any(map(runs, pids)) and seconds_since(tmp_path / "failed") < allowed:
            time.sleep(0.2)
        left = [pid for pid in pids if runs(pid)]
        for pid in left:
            os.kill(pid, 9)
    passed = seconds_since(tmp_path / "failed")
    print(f"\n{launcher}, {what} {who}: all ended within {passed:.0f} s")
    assert not left and passed < allowed + 5, text[-5000:]
    assert what != "raise" or "this process fails" in text


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def seconds_since(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def test_the_slurm_preset_asks_for_what_the_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch file that submitit writes from it."""
    (tmp_path / "srun").touch(mode=0o755)  # submitit looks whether it is on a cluster
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    written = []

    def write(executor: submitit.AutoExecutor, *arguments: object) -> list:
        written.append(executor._executor._make_submission_file_text("COMMAND", "uid"))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", write)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(
            "train", ["hydra/launcher=b2inst_slurm", "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2",
                      f"hydra.sweep.dir={tmp_path}/sweep"], return_hydra_config=True,
        )  # fmt: skip
    with open_dict(cfg):
        cfg.hydra.job.name, cfg.hydra.runtime.output_dir = "train", str(tmp_path)
    launcher = Plugins.instance()._instantiate(cfg.hydra.launcher)
    assert isinstance(launcher, Launcher)
    launcher.setup(hydra_context=HydraContext(None, None), task_function=None, config=cfg)
    launcher.launch([["seed=0"]], 0)
    for line in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "requeue", "time=1440"):
        assert f"#SBATCH --{line}\n" in written[0], written[0]
    assert "export SLURM_KILL_BAD_EXIT=1" in written[0].split("srun")[0]


@pytest.mark.parametrize(
    ("variables", "rank", "outside"),
    [
        ({}, 0, 1),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 1, 1),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "2"}, 1, 1),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}, 3, 4),
        ({"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "2", "SLURM_JOB_NAME": "train"}, 2, 4),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}, 1, 1),
        ({"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}, 1, 2),
    ],
    ids=["alone", "lightning", "lightning, second node", "torchrun", "slurm", "a shell of slurm", "submitit"],
)
def test_every_launcher_tells_who_is_first(
    variables: dict[str, str], rank: int, outside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.endswith("RANK") or name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)  # of a process that Lightning has joined in an earlier test
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.started_from_outside()) == (rank, outside)
    distributed.check_output(["seed=1", "output=runs/e"])
    if outside > 1:
        with pytest.raises(ConfigError, match="output: . processes were started from outside"):
            distributed.check_output(["seed=1"])
    else:
        distributed.check_output(["seed=1"])


def test_the_limit_of_waiting_is_that_of_the_process_group() -> None:
    assert distributed.ddp(timeout_s=7)._timeout.total_seconds() == 7
