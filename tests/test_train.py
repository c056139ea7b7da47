"""The entry points end to end, at toy size."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from b2inst.config import ConfigError
from b2inst.data import shapes
from b2inst.lit import LitSegmenter
from b2inst.paths import config_dir
from b2inst.resume import resolve_checkpoint
from b2inst.train import train
from toy import TOY, run, toy_config

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes") / "set"


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(toy_config(root, output, "experiment=ablation_e"))
    return output


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains(experiment: str, root: Path, tmp_path: Path) -> None:
    # They want weights; here they start at random.
    published = experiment.startswith(("blendmask", "condinst", "yolact_"))
    start = ["model.backbone.norm=bn", "model.backbone.freeze_at=0"] if published else []
    scores = train(toy_config(root, tmp_path, f"experiment={experiment}", *start))
    assert {"box/AP", "mask/AP", "boundary/AP"} <= scores.metrics.keys()
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(rows) == 2
    assert all(torch.tensor(float(row["train/loss"])).isfinite() for row in rows)
    supervised = any(name.startswith("train/loss_boundary_") for name in rows[0])
    without = ("ablation_a", "ablation_f", "mask_rcnn_r50", "yolact")
    assert supervised == (experiment not in without and not published)
    assert ("train/loss_score_boundary" in rows[0]) == experiment.startswith("b2inst")


def test_what_a_run_writes(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"box/AP", "mask/AP", "mask/AP50", "mask/AP75", "boundary/AP", "per_class"} <= metrics.keys()
    assert (trained / "checkpoints" / "best.ckpt").is_file()
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    assert len(list((trained / "pictures").glob("*.png"))) == 3  # one image, two plots
    assert isinstance(json.loads((trained / "results.json").read_text()), list)


def test_evaluating_the_checkpoint_gives_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    done = run("evaluate", f"ckpt={trained}/checkpoints/best.ckpt", f"output={tmp_path}/m.json", cwd=tmp_path)
    assert "boundary" in done.stdout
    assert json.loads((tmp_path / "m.json").read_text()) == json.loads((trained / "metrics.json").read_text())


def test_evaluating_the_results_file_gives_the_same_numbers(trained: Path, root: Path, tmp_path: Path) -> None:
    run("evaluate", f"predictions={trained}/results.json", f"annotations={root}/annotations/instances_val.json",
        "output=m.json", cwd=tmp_path)  # fmt: skip
    found = json.loads((tmp_path / "m.json").read_text())
    wanted = json.loads((trained / "metrics.json").read_text())
    for name in ("box/AP", "mask/AP", "boundary/AP"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-9)


def test_evaluate_says_what_it_needs(tmp_path: Path) -> None:
    done = run("evaluate", cwd=tmp_path, check=False)
    assert done.returncode and "ckpt=FILE" in done.stderr


def test_resume_goes_on_where_the_run_stopped(trained: Path, root: Path, tmp_path: Path) -> None:
    train(toy_config(root, tmp_path, "experiment=ablation_e"))
    before = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    settings = ["ckpt_path=last", "schedule.steps=3", "optim.lr=0.004"]
    train(toy_config(root, tmp_path, "experiment=ablation_e", *settings))
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (2, 3)
    assert after["lr_schedulers"][0]["last_epoch"] == 3
    assert after["lr_schedulers"][0]["base_lrs"][0] == pytest.approx(0.004 * 4 / 16), "the new rate was not taken"
    with (tmp_path / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == ["0", "1", "2"], "the log is not that of the whole run"


def test_another_model_does_not_go_on(trained: Path, root: Path, tmp_path: Path) -> None:
    ckpt_path = trained / "checkpoints" / "last.ckpt"
    config = toy_config(root, tmp_path, "experiment=ablation_e", f"ckpt_path={ckpt_path}", "model.basis.channels=48")
    with pytest.raises(ConfigError, match="the model is another one"):
        train(config)


def test_last_in_an_empty_folder_starts_afresh_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_checkpoint("last", tmp_path) is None
    assert "starts from the beginning" in caplog.text
    assert resolve_checkpoint(None, tmp_path) is None
    assert resolve_checkpoint("x.ckpt", tmp_path) == "x.ckpt"


def test_a_sweep_keeps_its_jobs_apart(root: Path, tmp_path: Path) -> None:
    """The second job of a sweep equals the same job alone; W&B has a run for each; a failing job stops no other."""
    toy = [*TOY, f"data.root={root}", "experiment=ablation_e", "logger=wandb"]
    done = run("train", "-m", *toy, "seed=0,-1,1", f"hydra.sweep.dir={tmp_path}/sweep", cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "failed", "done"], done.stderr[-3000:]
    assert (tmp_path / "sweep" / "1" / "error.txt").read_text()
    assert "| 2 |" in done.stdout
    for job in ("0", "2"):
        assert len(list((tmp_path / "sweep" / job / "wandb").glob("offline-run-*"))) == 1
    run("train", *toy, "seed=1", f"output={tmp_path}/alone", cwd=tmp_path)
    in_sweep, alone = weights(tmp_path / "sweep" / "2"), weights(tmp_path / "alone")
    assert all(torch.equal(in_sweep[name], alone[name]) for name in alone)


def test_a_checkpoint_is_all_that_is_needed(trained: Path) -> None:
    module = LitSegmenter.from_checkpoint(trained / "checkpoints" / "best.ckpt")
    assert not module.training
    assert module.class_names == list(shapes.CATEGORIES)


def test_a_checkpoint_that_asks_for_more_is_refused(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"]["config"]["model"]["backbone"]["_target_"] = "os.system"
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="refused"):
        LitSegmenter.from_checkpoint(tmp_path / "bad.ckpt")
    content["hyper_parameters"]["extra"] = Path("x")
    torch.save(content, tmp_path / "pickle.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of b2inst"):
        LitSegmenter.from_checkpoint(tmp_path / "pickle.ckpt")
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        LitSegmenter.from_checkpoint(tmp_path / "none.ckpt")


def test_training_options(root: Path, tmp_path: Path) -> None:
    """bf16, accumulation, clipping, channels_last and EMA in one run."""
    train(
        toy_config(
            root, tmp_path, "experiment=b2inst_light", "trainer.precision=bf16-mixed", "training.channels_last=true",
            "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0", "callbacks=ema", "schedule.steps=1",
            "schedule.warmup_steps=0",
        )
    )  # fmt: skip
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 1
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_init_from_takes_over_what_fits(trained: Path, root: Path, tmp_path: Path) -> None:
    ckpt = trained / "checkpoints" / "last.ckpt"
    config = toy_config(root, tmp_path, "experiment=ablation_a", f"init_from={ckpt}", "optim.lr=1.0e-12")
    train(config)
    old, new = weights(trained), weights(tmp_path)
    name = "model.detector.cls_logits.weight"
    assert torch.allclose(old[name], new[name], atol=1e-6)


def test_weights_of_other_packages_are_told_the_way(trained: Path, root: Path, tmp_path: Path) -> None:
    torch.save({"backbone.layers.0.0.conv1.weight": torch.zeros(1)}, tmp_path / "yolact.pth")
    with pytest.raises(ConfigError, match=r"init_from=.*yolact\.pth.*b2inst\.interop\.convert"):
        train(toy_config(root, tmp_path / "run", f"init_from={tmp_path}/yolact.pth"))


def test_as_many_classes_as_the_data_have(root: Path, tmp_path: Path) -> None:
    """With more of them the names in the checkpoint would not name all."""
    with pytest.raises(ConfigError, match="model.num_classes: 4, but the annotations have 3 categories"):
        train(toy_config(root, tmp_path, "model.num_classes=4"))


def test_no_progress_bar_is_wanted(root: Path, tmp_path: Path) -> None:
    config = toy_config(root, tmp_path, "trainer.enable_progress_bar=false")
    config["callbacks"] |= {"progress": {"_target_": "pytorch_lightning.callbacks.RichProgressBar"}}
    assert train(config).metrics


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ["train", "data=custom", "data.root=/absent"],
            "error: 1 mistake in the configuration:\ndata.root: /absent",
        ),
        (
            ["train", "data=custom", "recipe=finetune_small"],
            "error: data.root: no value, and it has no default; set data",
        ),
        (["verify", "data=custom"], "error: data.root: no value, and it has no default; set data.root=VALUE"),
        (
            ["train", *TOY, "data.root=set", "model.num_classes=2"],
            "error: model.num_classes: 2, but the annotations have 3 categories; set it to null",
        ),
        (
            ["train", *TOY, "data.root=set", "assembly@model.assembly=quadrant", "model.assembly.mask_size=27"],
            "error: model.assembly: mask_size=27",
        ),
        (["evaluate", "ckpt=/absent.ckpt"], "error: ckpt: /absent.ckpt: no such checkpoint"),
        (["evaluate", "predictions=/absent.json", "annotations=/absent.json"], "error: "),
    ],
    ids=[
        "train",
        "train without a root",
        "verify without a root",
        "too few classes",
        "a value that a part refuses",
        "evaluate a checkpoint",
        "evaluate results",
    ],
)
def test_what_a_user_can_mend_is_told_without_a_traceback(command: list[str], told: str, tmp_path: Path) -> None:
    done = run(*command, cwd=tmp_path, check=False)
    assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr
