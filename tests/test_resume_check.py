"""What can be changed in a run that goes on, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from b2inst.callbacks.loop_state import Position, at
from b2inst.checkpoint_io import read_checkpoint
from b2inst.config import ConfigError
from b2inst.lit import LitSegmenter
from b2inst.resume_check import check_resume
from b2inst.train import init_from
from toy import CLASSES, toy_checkpoint, toy_config

SMALL = ["backbone@model.backbone=mobilenet_v2", "model.backbone.norm=bn", "model.backbone.weights=null",
         "model.backbone.freeze_at=0"]  # fmt: skip
DATA = {"data.batch_size x devices": 4, "number of training images": 8, "seed": 0}


def settings(folder: Path, *overrides: str) -> dict[str, Any]:
    config = toy_config(folder, folder, "experiment=ablation_e", *SMALL, *overrides)
    config["classes"], config["category_ids"] = list(CLASSES.values()), list(CLASSES)
    config["model"]["num_classes"] = len(CLASSES)
    return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the parts that are looked at; three batches of its epoch are done."""
    config = settings(tmp_path_factory.mktemp("old"))
    module = LitSegmenter(config)
    parameters = list(range(len(list(module.parameters()))))
    return {
        "state_dict": module.state_dict(),
        "hyper_parameters": {"config": config},
        "optimizer_states": [{"state": {}, "param_groups": [{"params": parameters}]}],
        "lr_schedulers": [{}],
        "callbacks": {"LastCheckpoint": {"data": DATA}},
        "loops": {"fit_loop": at(Position(1, 3, 7, 7), {"state_dict": {}})},
    }


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], LitSegmenter]:
    """Configuration and module of a run with the settings of the checkpoint."""
    config = settings(tmp_path_factory.mktemp("same"))
    return config, LitSegmenter(config)


def refusal(
    checkpoint: Any, config: dict[str, Any], module: LitSegmenter | None = None, data: dict[str, Any] = DATA
) -> str:
    with pytest.raises(ConfigError) as error:
        check_resume("last.ckpt", checkpoint, config, module or LitSegmenter(config), data)
    told = str(error.value)
    assert told.startswith("ckpt_path=last.ckpt: ") and "init_from=last.ckpt" in told and len(told) < 500, told
    return told


def test_what_changes_nothing_goes_on(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    config = settings(
        tmp_path, "data.num_workers=1", "trainer.precision=bf16-mixed", "optim.lr=1", "schedule.steps=9",
        "logger=wandb", "optim.optimizer.weight_decay=0.5", "model.losses.bce.weight=2", "data.batch_size=2",
        "trainer.devices=2", "trainer.accumulate_grad_batches=3", "callbacks=ema",
    )  # fmt: skip
    check_resume("last.ckpt", checkpoint, config, LitSegmenter(config), dict(DATA))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optim=sgd"], "the state of torch.optim.AdamW is of no use to torch.optim.SGD"),
        (["model.fpn.channels=64"], "the model is another one, "),
        (["model.backbone.freeze_at=2"], "model.backbone.freeze_at: 0 -> 2"),
    ],
)
def test_what_cannot_work_is_refused(
    overrides: list[str], told: str, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    assert told in refusal(checkpoint, settings(tmp_path, *overrides))


def test_other_classes_are_refused_also_as_many(
    checkpoint: dict[str, Any], same: tuple[dict[str, Any], LitSegmenter]
) -> None:
    told = refusal(checkpoint, {**same[0], "classes": ["cat", "dog", "ant"]}, same[1])
    assert "trained for the classes 3: disk, box, star, and the data have 3: cat, dog, ant" in told


@pytest.mark.parametrize("key", DATA)
def test_other_batches_are_refused_within_an_epoch_only(
    key: str, checkpoint: dict[str, Any], same: tuple[dict[str, Any], LitSegmenter]
) -> None:
    changed = {**DATA, key: 99}
    told = refusal(checkpoint, *same, changed)
    assert (
        told.startswith("ckpt_path=last.ckpt: 3 batches of its epoch are done") and f"{key} {DATA[key]} -> 99" in told
    )
    ended = {**checkpoint, "loops": {"fit_loop": at(Position(1, 4, 8, 8, last=True), {"state_dict": {}})}}
    check_resume("last.ckpt", ended, *same, changed)


def test_steps_of_more_batches_must_fit_those_that_are_done(
    checkpoint: dict[str, Any], same: tuple[dict[str, Any], LitSegmenter]
) -> None:
    config = {**same[0], "trainer": {**same[0]["trainer"], "accumulate_grad_batches": 2}}
    told = refusal(checkpoint, config, same[1])
    assert "trainer.accumulate_grad_batches" in told
    before_validation = at(Position(1, 3, 7, 4, last=True, validation=True), {"state_dict": {}})
    check_resume("last.ckpt", {**checkpoint, "loops": {"fit_loop": before_validation}}, config, same[1], DATA)


@pytest.mark.parametrize("key", ["hyper_parameters", "optimizer_states", "loops", "state_dict", "lr_schedulers"])
def test_what_is_none_of_a_training_is_refused(
    key: str, checkpoint: dict[str, Any], same: tuple[dict[str, Any], LitSegmenter]
) -> None:
    foreign = {name: value for name, value in checkpoint.items() if name != key}
    assert f"no checkpoint of a training of this package, it lacks '{key}'" in refusal(foreign, *same)
    for content in ({}, [], torch.zeros(3), {"hyper_parameters": {"config": 1}}, {"hyper_parameters": None}):
        assert "no checkpoint of a training" in refusal(content, *same)


def test_a_checkpoint_of_weights_alone_is_refused(same: tuple[dict[str, Any], LitSegmenter], tmp_path: Path) -> None:
    path = toy_checkpoint(tmp_path / "weights.ckpt", *SMALL)
    assert "it lacks 'optimizer_states'" in refusal(read_checkpoint(path), *same)


@pytest.mark.parametrize("content", [{"state_dict": print}, {"weights": 1}, [1], b"torn"], ids=str)
def test_a_start_that_is_no_checkpoint_is_refused_in_words(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "start.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ConfigError, match=r"init_from=.*start\.ckpt: no checkpoint of this package, or damaged \("):
        init_from(torch.nn.Linear(1, 1), str(path))
