"""The configuration checker: every committed combination passes, every mistake is named with its remedy."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hydra import compose, initialize_config_dir

from b2inst import config_keys
from b2inst.config import ConfigError, plain
from b2inst.config_check import check
from b2inst.config_types import wrong_types
from b2inst.paths import config_dir


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return plain(compose("train", ["output=/tmp/x", "name=x", *overrides]))


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    return composed("schedule.steps=400", "schedule.milestones=[]", "schedule.warmup_steps=50")


@pytest.fixture
def config(default: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(default)


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set what is at a dotted path; DELETE removes it."""
    *way, last = path.split(".")
    for key in way:
        config = config[key]
    if value is DELETE:
        del config[last]
    else:
        config[last] = value


DELETE = object()


def mistakes(config: dict[str, Any], **kwargs: bool) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(config, **kwargs)
    count, *lines = str(caught.value).splitlines()
    assert count.startswith(f"{len(lines)} mistake")
    return lines


# ------------------------------------------------------------------------------------------------- what has to pass


def test_the_top_level_keys_are_those_of_the_composed_configuration(default: dict[str, Any]) -> None:
    assert set(config_keys.TOP_LEVEL) == set(default)


@pytest.mark.parametrize("recipe", names("recipe"))
@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_experiment_with_every_recipe_passes(experiment: str, recipe: str, tmp_path: Path) -> None:
    check(
        composed(f"experiment={experiment}", f"recipe={recipe}", f"data.root={tmp_path}", *given(experiment, tmp_path))
    )


def given(experiment: str, folder: Path) -> list[str]:
    """The backbone's weights, without which the published models are refused."""
    if not experiment.startswith(("blendmask", "condinst")):
        return []
    (folder / "R.pth").touch()
    return [f"model.backbone.weights={folder}/R.pth"]


@pytest.mark.parametrize("recipe", ["demo", "coco_1x"])
def test_the_published_models_need_the_weights_of_their_backbone(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"random start.*give model\.backbone\.weights"):
        check(composed("experiment=blendmask_r50_1x", f"recipe={recipe}", f"data.root={tmp_path}"))


GROUPS = [
    ("backbone@model.backbone", "backbone"), ("boundary@model.boundary", "boundary"), ("callbacks", "callbacks"),
    ("scoring@model.scoring", "scoring"), ("semantic@model.semantic", "semantic"), ("logger", "logger"),
    ("augment", "augment"), ("data", "data"), ("optim", "optim"), ("schedule", "schedule"), ("trainer", "trainer"),
]  # fmt: skip


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, folder in GROUPS for name in names(folder)])
def test_every_choice_of_every_group_passes(group: str, name: str, tmp_path: Path) -> None:
    """Schedules with a recipe that does not shorten them: the demo's steps lie before the milestones of 1x."""
    recipe = "coco_1x" if group == "schedule" else "demo"
    check(composed(f"recipe={recipe}", f"{group}={name}", f"data.root={tmp_path}"))


TWO_STAGE = ["experiment=mask_rcnn_r50", "experiment=bmask_rcnn_r50"]


@pytest.mark.parametrize("experiment", TWO_STAGE)
@pytest.mark.parametrize("recipe", ["demo", "coco_1x"])
def test_what_a_recipe_says_of_other_models_does_not_reach_a_two_stage_one(
    experiment: str, recipe: str, tmp_path: Path
) -> None:
    model = composed(experiment, f"recipe={recipe}", f"data.root={tmp_path}", "fpn@model.fpn=pafpn")["model"]
    assert not {"detector", "basis", "semantic", "assembly", "boundary", "scoring", "num_bases"} & model.keys()
    assert model["mask_head"]["channels"] == (64 if recipe == "demo" else 256)
    assert (model["fpn"]["lowest"], model["fpn"]["top"], len(model["anchor_sizes"])) == (2, "pool", 5)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ((TWO_STAGE[0], "model.anchor_sizes=[8,16]"), "model.anchor_sizes: 2 sizes for 5 levels"),
        ((TWO_STAGE[0], "loss@model.losses=[bce]"), "model.losses: bce of the boundary, which .* does not learn"),
        ((TWO_STAGE[1], "loss@model.losses=[]"), "model.losses: none of the boundary, which model.mask_head learns"),
        ((TWO_STAGE[0], "~mask_head@model.mask_head"), "model.mask_head: "),
        (
            (TWO_STAGE[0], "scoring@model.scoring=iou"),
            "model.scoring: .*MaskRCNN has no such part; leave its group out",
        ),
        (("mask_head@model.mask_head=bmask",), "model.mask_head: .*Segmenter has no such part; leave its group out"),
        (
            (TWO_STAGE[1], "loss@model.losses=[kervadec]"),
            "model.losses.kervadec: kervadec as the only boundary term",
        ),
        ((TWO_STAGE[0], "+model.loss_weights.semantic=1"), "model.loss_weights.semantic: unknown key"),
        ((TWO_STAGE[0], "+model.basis.channels=64"), "model.basis: has no _target_"),
        (("model.fpn.lowest=2",), "model.fpn.lowest: 2, but bases are made of P3"),
        (("~model.loss_weights.semantic",), "model.loss_weights.semantic: missing"),
    ],
)
def test_models_that_do_not_fit_together(overrides: tuple[str, ...], line: str) -> None:
    found = mistakes(composed(*overrides))
    assert any(re.match(line, each) for each in found), found


def test_a_value_that_refers_to_a_part_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"gt\.stride: .*'model\.assembly\.basis_stride' not found; set gt\.stride=VALUE"
    ):
        composed(TWO_STAGE[0], "gt=boundary")


@pytest.mark.parametrize("losses", ["bce", "bce,dice,bf1", "bce,kervadec", "bce,edge_agreement"])
def test_losses_pass(losses: str) -> None:
    check(composed(f"loss@model.losses=[{losses}]"))


@pytest.mark.parametrize("precision", ["32-true", 32, "16-mixed", "bf16-mixed"])
def test_precisions_pass(config: dict[str, Any], precision: str | int) -> None:
    config["trainer"]["precision"] = precision
    check(config)


def test_null_switches_a_named_part_off(config: dict[str, Any]) -> None:
    for path in ("callbacks.progress", "callbacks.checkpoint", "logger.csv", "augment.train.flip"):
        put(config, path, None)
    check(config)


def test_frozen_norm_passes_where_weights_come_from_a_checkpoint(config: dict[str, Any], tmp_path: Path) -> None:
    config["model"]["backbone"]["norm"] = "frozen_bn"
    (tmp_path / "a.ckpt").touch()
    config["init_from"] = str(tmp_path / "a.ckpt")
    check(config)


def test_a_root_is_not_needed_where_every_path_is_absolute(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"].update(prepare=None, root="/no/such/folder")
    for split in ("train", "val"):
        config["data"][split].update(annotations=str(tmp_path / "a.json"), images=str(tmp_path))
    check(config)


def test_the_root_of_all_roots(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B2INST_DATA", str(tmp_path))
    config["data"].update(prepare=None, root="mine")
    assert any(str(tmp_path / "mine") in line for line in mistakes(config))
    (tmp_path / "mine").mkdir()
    check(config)


def test_the_configuration_is_left_alone(default: dict[str, Any], config: dict[str, Any]) -> None:
    check(config)
    assert config == default


# -------------------------------------------------------------------------------------------------- what is refused

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True}
KERVADEC = {"_target_": "b2inst.losses.kervadec.Kervadec"}
EDGE = {"_target_": "b2inst.losses.edge_agreement.EdgeAgreement"}
BCE = {"_target_": "b2inst.losses.bce.BinaryCrossEntropy"}
GLOBAL = "b2inst.models.boundary.GlobalBoundary"
UNSUPERVISED = {"_target_": "b2inst.models.boundary.UnsupervisedBoundary", "use_prediction": False}

# changes, the path that the line begins with, and words of what is wrong and of the remedy
REFUSED: list[tuple[dict[str, Any], str, list[str]]] = [
    # keys
    ({"trianer": {}}, "trianer", ["unknown key", "did you mean 'trainer'?"]),
    ({"zzz": 1}, "zzz", ["unknown key", "allowed: model, gt"]),
    ({"optim": DELETE}, "optim", ["missing"]),
    ({"training.compiled": True}, "training.compiled", ["did you mean 'compile'?"]),
    ({"training.compile": DELETE}, "training.compile", ["missing", "channels_last, compile, matmul_precision"]),
    ({"training": None}, "training", ["None is no section", "channels_last"]),
    ({"augment.trian": {}}, "augment.trian", ["did you mean 'train'?"]),
    ({"model.loss_weights.boundry": 1.0}, "model.loss_weights.boundry", ["did you mean 'boundary'?"]),
    ({"model.loss_weights.mask": DELETE}, "model.loss_weights.mask", ["missing", "cls, box"]),
    # targets and their arguments
    ({"trainer.max_step": 3}, "trainer.max_step", ["no argument of", "did you mean 'max_steps'?"]),
    ({"model.backbone.weigths": None}, "model.backbone.weigths", ["did you mean 'weights'?"]),
    ({"model.detector.focal_gama": 2}, "model.detector.focal_gama", ["did you mean 'focal_gamma'?"]),
    ({"model.losses.dice.wieght": 2}, "model.losses.dice.wieght", ["did you mean 'weight'?"]),
    ({"data.train.limits": 8}, "data.train.limits", ["Split", "did you mean 'limit'?"]),
    ({"data.batchsize": 8}, "data.batchsize", ["did you mean 'batch_size'?"]),
    ({"data.prepare.train_image": 8}, "data.prepare.train_image", ["did you mean 'train_images'?"]),
    ({"optim.optimizer.momentun": 0.9}, "optim.optimizer.momentun", ["torch.optim.AdamW", "allowed:"]),
    ({"callbacks.pictures.image": 1}, "callbacks.pictures.image", ["did you mean 'images'?"]),
    ({"augment.train.flip.prob": 1}, "augment.train.flip.prob", ["no argument of b2inst.data.augment.flip"]),
    ({"gt.tresh": 0.1}, "gt.tresh", ["did you mean 'threshold'?"]),
    ({"trainer._target_": "os.system"}, "trainer._target_", ["'os.system' is refused", "allowed prefixes: b2inst."]),
    (
        {"optim.optimizer._target_": "pytorch_lightning.Trainer"}, "optim.optimizer._target_",
        ["refused", "allowed prefixes: b2inst.models., b2inst.losses."],
    ),
    (
        {"model.losses.dice._target_": "b2inst.losses.dice.Dise"}, "model.losses.dice._target_",
        ["cannot be imported", "did you mean 'b2inst.losses.dice.Dice'?"],
    ),
    ({"gt._target_": "b2inst.nowhere.X"}, "gt._target_", ["cannot be imported", "check the name of its module"]),
    ({"gt._target_": "b2inst.models.scoring.QUALITIES"}, "gt._target_", ["cannot be called", "give a class"]),
    ({"optim.lr": DELETE}, "optim.lr", ["missing", "set optim.lr=VALUE"]),
    ({"model.num_classes": DELETE}, "model.num_classes", ["missing"]),
    ({"model.basis": None}, "model.basis", ["has no _target_", "choose a file of its group"]),
    # named parts
    ({"callbacks.mine": 3}, "callbacks.mine", ["no _target_", "'~callbacks.mine'"]),
    ({"logger.mine": {"a": 1}}, "logger.mine", ["no _target_", "'~logger.mine'"]),
    ({"model.losses.mine": {"weight": 1}}, "model.losses.mine", ["no _target_", "'~model.losses.mine'"]),
    ({"model.losses.dice": None}, "model.losses.dice", ["null is no loss term", "'~model.losses.dice'"]),
    ({"model.losses": ["bce"]}, "model.losses", ["is no section", "give named parts"]),
    ({"augment.train.mine": {"p": 1}}, "augment.train.mine", ["no _target_", "'~augment.train.mine'"]),
    # values
    ({"seed": -1}, "seed", ["-1", "at least 0"]),
    ({"seed": 1.5}, "seed", ["whole number"]),
    ({"seed": 2**32}, "seed", ["too large"]),
    ({"model.num_bases": 0}, "model.num_bases", ["at least 1 or null"]),
    ({"model.num_classes": 0}, "model.num_classes", ["at least 1 or null"]),
    ({"model.mask_positives": 0}, "model.mask_positives", ["at least 1 or null"]),
    ({"model.fpn.channels": 0}, "model.fpn.channels", ["at least 1"]),
    ({"model.basis.channels": -1}, "model.basis.channels", ["at least 1"]),
    ({"model.assembly.mask_size": 1.5}, "model.assembly.mask_size", ["at least 1"]),
    ({"data.batch_size": 0}, "data.batch_size", ["at least 1"]),
    ({"data.batch_size": True}, "data.batch_size", ["True", "whole number"]),
    ({"data.max_damaged": 1.5}, "data.max_damaged", ["1.5", "from 0 to 1"]),
    ({"data.max_damaged": None}, "data.max_damaged", ["None", "from 0 to 1"]),
    ({"optim.lr": 0}, "optim.lr", ["above 0"]),
    ({"optim.lr": "1e-3x"}, "optim.lr", ["above 0"]),
    ({"optim.lr": float("nan")}, "optim.lr", ["above 0"]),
    ({"schedule.steps": 0}, "schedule.steps", ["at least 1"]),
    ({"schedule.milestones": [30, 20]}, "schedule.milestones", ["must ascend", "or be []"]),
    ({"schedule.milestones": [400]}, "schedule.milestones", ["before schedule.steps=400"]),
    ({"schedule.milestones": 3}, "schedule.milestones", ["must ascend"]),
    ({"schedule.warmup_steps": 400}, "schedule.warmup_steps", ["warm-up", "below schedule.steps, or 0"]),
    ({"model.loss_weights.box": -1}, "model.loss_weights.box", ["finite weight of at least 0"]),
    ({"model.losses.dice.weight": float("inf")}, "model.losses.dice.weight", ["finite weight"]),
    ({"training.compile": "yes"}, "training.compile", ["true or false"]),
    ({"training.matmul_precision": "hihg"}, "training.matmul_precision", ["highest, high, medium"]),
    ({"data.size_divisor": 16}, "data.size_divisor", ["16", "multiple of 32"]),
    ({"data.size_divisor": 2048}, "data.size_divisor", ["at most 1024"]),
    # types
    ({"model.boundary.use_prediction": "maybe"}, "model.boundary.use_prediction", ["'maybe'", "true or false"]),
    ({"model.boundary.attention_bias": "low"}, "model.boundary.attention_bias", ["'low'", "give a number"]),
    ({"model.assembly.attention_size": 7.5}, "model.assembly.attention_size", ["7.5", "give a whole number"]),
    ({"model.assembly.attention_size": True}, "model.assembly.attention_size", ["True", "give a whole number"]),
    ({"model.detector.sizes_of_interest": 64}, "model.detector.sizes_of_interest", ["64", "give a list of"]),
    ({"callbacks.last.every_n_steps": None}, "callbacks.last.every_n_steps", ["None", "give a whole number"]),
    ({"data.prepare.size": "big"}, "data.prepare.size", ["'big'", "give a whole number"]),
    # files
    ({"ckpt_path": "/no.ckpt"}, "ckpt_path", ["no file '/no.ckpt'", "last"]),
    ({"init_from": "/no.ckpt"}, "init_from", ["no file '/no.ckpt'", "or null"]),
    ({"model.backbone.weights": "/no.pth"}, "model.backbone.weights", ["no file '/no.pth'", "imagenet"]),
    ({"data.prepare": None, "data.root": "/no/root"}, "data.root", ["/no/root", "data.root=DIR", "B2INST_DATA"]),
    # what has to fit together
    ({"model.losses": {"kervadec": KERVADEC}}, "model.losses.kervadec", ["only boundary term", "add bce or dice"]),
    (
        {"model.losses": {"kervadec": KERVADEC, "edge": EDGE, "bce": BCE | {"weight": 0.0}}},
        "model.losses.kervadec", ["only boundary term", "add bce or dice"],
    ),
    ({"model.losses": {}}, "model.losses", ["no term supervises", "boundary@model.boundary=unsupervised"]),
    ({"model.losses": {"edge": EDGE}}, "model.losses", ["no term supervises", "loss@model.losses=[bce,dice]"]),
    (
        {"model.boundary._target_": GLOBAL.replace("Global", "Instance"), "model.losses": {}},
        "model.losses", ["no term supervises"],
    ),
    ({"model.boundary": UNSUPERVISED}, "model.boundary.use_prediction", ["would do nothing", "set it to true"]),
    ({"data.boundary_target": None}, "data.boundary_target", ["learned from it", "data.boundary_target='${gt}'"]),
    (
        {"model.boundary.classes": True, "data.boundary_target.classes": False},
        "gt.classes", ["boundary of each class", "set gt.classes=true"],
    ),
    (
        {"objective": "boundary_f/ODS"}, "objective",
        ["not computed", "set callbacks.evaluation.boundary_f=true"],
    ),
    ({"model.loss_weights.boundary": 0.0}, "model.losses", ["no term supervises", "model.loss_weights.boundary is 0"]),
    (
        {"callbacks.evaluation.boundary_f": True, "model.boundary._target_": GLOBAL.replace("Global", "Instance")},
        "callbacks.evaluation.boundary_f", ["boundary of the whole image", "boundary@model.boundary=global"],
    ),
    (
        {"callbacks.evaluation.boundary_f": True, "objective": "boundary_f/class_ODS"},
        "objective", ["did you mean 'boundary_f/ODS'"],
    ),
    ({"trainer.precision": "bf16-true"}, "trainer.precision", ["boundary ground truth", "allowed: 32-true"]),
    ({"trainer.precision": "16-true"}, "trainer.precision", ["boundary ground truth", "bf16-mixed"]),
    ({"trainer.precision": "64-true"}, "trainer.precision", ["allowed: 32-true"]),
    (
        {"model.backbone.preset": "msra", "model.backbone.weights": "imagenet"},
        "model.backbone.preset", ["torchvision's", "model.backbone.preset=torchvision"],
    ),
    (
        {"model.backbone.norm": "gn", "model.backbone.weights": "imagenet"},
        "model.backbone.norm", ["have batch norm", "model.backbone.weights=null"],
    ),
    ({"model.backbone.norm": "frozen_bn"}, "model.backbone.norm", ["normalize nothing", "norm=bn (or gn)"]),
    ({"model.fpn.top_levels": 1}, "model.detector.sizes_of_interest", ["4 borders for 4 levels", "give 3"]),
    ({"callbacks.evaluation": DELETE}, "callbacks.evaluation", ["missing", "callbacks=default"]),
    ({"callbacks.evaluation.kinds": ["boxes"]}, "callbacks.evaluation.kinds", ["box, mask, boundary"]),
    ({"objective": "mask/ap"}, "objective", ["not computed", "did you mean 'mask/AP'?"]),
    ({"objective": "boundary/AP"}, "callbacks.checkpoint.monitor", ["'mask/AP'", "set objective=mask/AP"]),
    ({"callbacks.evaluation.kinds": ["box"]}, "objective", ["not computed", "kinds of the evaluation: box"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "words"), REFUSED, ids=[f"{p}-{i}" for i, (_, p, _) in enumerate(REFUSED)])
def test_a_mistake_is_named_with_its_remedy(
    config: dict[str, Any], changes: dict[str, Any], path: str, words: list[str]
) -> None:
    for key, value in changes.items():
        put(config, key, copy.deepcopy(value) if value is not DELETE else DELETE)
    lines = [line for line in mistakes(config) if line.startswith(f"{path}: ")]
    assert any(all(word in line for word in words) for line in lines), mistakes(config)


def test_a_whole_number_and_null_fit_where_the_annotation_says_so(config: dict[str, Any]) -> None:
    put(config, "model.boundary.attention_bias", -4)
    put(config, "callbacks.evaluation.folder", None)
    check(config)


def test_annotations_of_parts_of_ones_own_are_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        __module__ = "ours.parts"

        def __init__(self, size: tuple[int, int], kind: Literal["a", "b"] = "a", other: Path | None = None) -> None:
            pass

    class Unreadable(Part):
        __module__ = "ours.parts"

        def __init__(self, size: int, other: Nowhere) -> None:  # noqa: F821
            pass

    values = {"size": [3, 4, 5], "kind": "c", "other": 3}
    assert list(wrong_types("model.x", values, Part)) == []
    monkeypatch.setenv("B2INST_PARTS", "ours")
    assert list(wrong_types("model.x", values, Part)) == [
        "model.x.size: [3, 4, 5]; give a list of a whole number, a whole number",
        "model.x.kind: 'c'; give a, b",
    ]
    assert list(wrong_types("model.x", {"size": [3, 4], "kind": "b"}, Part)) == []
    assert list(wrong_types("model.x", {"size": "x"}, Unreadable)) == []
    monkeypatch.setitem(Part.__init__.__annotations__, "size", "list")
    assert list(wrong_types("model.x", {"size": ["x", 3]}, Part)) == []
    assert list(wrong_types("model.x", {"size": 3}, Part)) == ["model.x.size: 3; give a list"]


@pytest.mark.parametrize("variant", ["none", "unsupervised"])
def test_terms_that_supervise_nothing_are_told(variant: str, caplog: pytest.LogCaptureFixture) -> None:
    check(composed(f"boundary@model.boundary={variant}", "loss@model.losses=[bce,edge_agreement]"))
    (line,) = caplog.messages
    assert line.startswith("model.losses: bce without effect, for ") and "boundary=global or instance" in line
    caplog.clear()
    check(composed(f"boundary@model.boundary={variant}", "loss@model.losses=[edge_agreement]"))
    assert caplog.messages == []


def test_settings_of_an_unused_basis_are_told(caplog: pytest.LogCaptureFixture) -> None:
    check(composed("experiment=ablation_d", "model.boundary.attention_bias=-4", "model.boundary.input=sigmoid"))
    (line,) = caplog.messages
    assert line.startswith("model.boundary: input, attention_bias without effect, ")
    caplog.clear()
    check(composed("experiment=ablation_d"))
    check(composed("experiment=ablation_e", "model.boundary.attention_bias=-4", "model.boundary.input=sigmoid"))
    assert caplog.messages == []


def test_the_stride_of_the_ground_truth() -> None:
    lines = mistakes(composed("gt.stride=8"))
    assert lines == ["gt.stride: 8, but the bases have stride 4 (model.assembly.basis_stride); set gt.stride=4"]


@pytest.mark.parametrize("assembly", names("assembly"))
def test_the_ground_truth_has_the_stride_of_the_bases(assembly: str) -> None:
    config = composed(f"assembly@model.assembly={assembly}")
    check(config)
    assert config["data"]["boundary_target"]["stride"] == config["model"]["assembly"]["basis_stride"]


def test_every_mistake_is_listed_once(config: dict[str, Any]) -> None:
    for key, value in {"trianer": {}, "seed": -1, "optim.lr": 0, "model.detector.num_conv": 1}.items():
        put(config, key, value)
    config["gt"]["sofd"] = config["data"]["boundary_target"]["sofd"] = True  # data.boundary_target is ${gt}
    paths = sorted(line.split(":")[0] for line in mistakes(config))
    assert paths == ["gt.sofd", "model.detector.num_conv", "optim.lr", "seed", "trianer"]


@pytest.mark.parametrize("section", config_keys.TOP_LEVEL)
@pytest.mark.parametrize("value", [3, "text", [], {}])
def test_nonsense_is_refused_and_never_a_crash(config: dict[str, Any], section: str, value: Any) -> None:
    """Whatever stands in the place of a section or value, the checker either bears it or says ConfigError."""
    config[section] = value
    try:
        check(config)
    except ConfigError as error:
        assert section in str(error)
    else:
        assert section in ("seed", "name", "output", "gt", "logger")


# ------------------------------------------------------------------------------------------------ several processes

NODE = {"_target_": "b2inst.distributed.ddp", "timeout_s": 600}
DDP = [("ddp", 2), (NODE, 2), ("ddp", "auto"), ("ddp_find_unused_parameters_true", 4), ("auto", 2), ("auto", [0, 1])]


@pytest.mark.parametrize(("strategy", "devices"), DDP)
def test_ddp_in_a_sweep_is_refused(config: dict[str, Any], strategy: str, devices: Any) -> None:
    config["trainer"].update(strategy=strategy, devices=devices)
    check(config)
    (line,) = mistakes(config, multirun=True)
    assert line.startswith("trainer.strategy: ")
    assert all(word in line for word in ("submitit", "torchrun", "trainer.strategy=ddp_spawn"))


def test_auto_means_ddp_where_there_are_several_gpus(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config["trainer"].update(strategy="auto", devices="auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check(config, multirun=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert mistakes(config, multirun=True)[0].startswith("trainer.strategy: ")


@pytest.mark.parametrize(("strategy", "devices"), [("ddp", 1), ("ddp_spawn", 2), ("auto", 1), ("auto", [0])])
def test_other_strategies_may_sweep(config: dict[str, Any], strategy: str, devices: Any) -> None:
    config["trainer"].update(strategy=strategy, devices=devices)
    check(config, multirun=True)


def test_slurm_starts_the_processes_itself(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config["trainer"].update(strategy="ddp", devices=2)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    check(config, multirun=True)


@pytest.mark.parametrize(("name", "classes"), [("ODS", False), ("OIS", True), ("class_ODS", True)])
def test_the_boundary_f_measure_may_decide(config: dict[str, Any], name: str, classes: bool) -> None:
    config["objective"] = config["callbacks"]["checkpoint"]["monitor"] = f"boundary_f/{name}"
    config["callbacks"]["evaluation"]["boundary_f"] = True
    config["model"]["boundary"]["classes"] = config["data"]["boundary_target"]["classes"] = classes
    check(config)


def test_lightning_may_not_split_the_data_again(config: dict[str, Any]) -> None:
    config["trainer"]["use_distributed_sampler"] = True
    assert mistakes(config)[0].startswith("trainer.use_distributed_sampler: true, but the data module splits the data")


# ------------------------------------------------------------------------------------------- through the entry point


def test_a_typo_in_an_experiment_ends_the_command_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {num_base: 8}\n")
    command = [sys.executable, "-m", "b2inst.train", "experiment=mine", f"hydra.searchpath=[file://{tmp_path}]",
               f"output={tmp_path}/run", f"data.root={tmp_path}/data"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "model.num_base: no argument of b2inst.models.segmenter.Segmenter; did you mean 'num_bases'?" in done.stderr
    assert not (tmp_path / "data").exists()
