"""The checker in front of a training: typos and impossible combinations, before anything heavy starts."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from b2inst.config import TRAINING_TARGETS, ConfigError, targets_of

TOP_LEVEL = {
    "model", "gt", "data", "augment", "optim", "schedule", "trainer", "training", "callbacks", "logger",
    "seed", "name", "output", "ckpt_path", "init_from", "objective",
}  # fmt: skip
FIXED_KEYS = {
    "model.loss_weights": {"cls", "box", "quality", "mask", "semantic", "boundary", "score_iou", "score_boundary"},
    "training": {"channels_last", "compile", "matmul_precision"},
    "augment": {"train", "val"},
}
KEYED_TARGETS = ("model.losses", "callbacks", "logger", "augment.train", "augment.val")
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
PRECISIONS = ("32-true", "32", "16-mixed", "bf16-mixed", "64-true")


def check(config: Mapping[str, Any], *, multirun: bool = False) -> None:
    """Refuse a configuration that cannot work.

    Args:
        config: resolved, as `conf/train.yaml` composes it.
        multirun: whether it is one job of a sweep.

    Raises:
        ConfigError: with one line per mistake: `path: what is wrong; remedy`.
    """
    mistakes = [*_unknown("", config, TOP_LEVEL), *_missing(config)]
    if not mistakes:
        mistakes = [*_structure(config), *_targets(config)]
    if not mistakes:  # the rules below rely on the structure
        mistakes = [*_values(config), *_model_rules(config), *_run_rules(config, multirun)]
    if mistakes:
        raise ConfigError("the configuration cannot work:\n" + "\n".join(f"  {line}" for line in mistakes))


def _unknown(path: str, node: Mapping[str, Any], allowed: Iterable[str]) -> Iterator[str]:
    allowed = sorted(allowed)
    for key in node:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed)}"
            yield f"{path + '.' if path else ''}{key}: unknown key; {hint}"


def _missing(config: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(TOP_LEVEL - config.keys()):
        yield f"{key}: is missing; compose the configuration from conf/train.yaml"


def _node(config: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        config = config[key]
    return config


def _structure(config: Mapping[str, Any]) -> Iterator[str]:
    for path, keys in FIXED_KEYS.items():
        node = _node(config, path)
        yield from _unknown(path, node, keys)
        for key in sorted(keys - node.keys()):
            yield f"{path}.{key}: is missing; give it a value"
    for path in KEYED_TARGETS:
        for key, entry in (_node(config, path) or {}).items():
            if entry is not None and not (isinstance(entry, Mapping) and "_target_" in entry):
                yield f"{path}.{key}: {entry!r} is no entry; give a _target_, or null to leave it out"


def _targets(config: Mapping[str, Any]) -> Iterator[str]:
    for path, node in targets_of(config):
        name = str(node["_target_"])
        if not name.startswith(TRAINING_TARGETS):
            yield f"{path}._target_: {name!r} is refused; allowed prefixes: {', '.join(TRAINING_TARGETS)}"
            continue
        try:
            signature = inspect.signature(get_object(name))
        except Exception as error:
            yield f"{path}._target_: {name!r} cannot be imported ({error}); check the spelling"
            continue
        parameters = signature.parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            yield from _unknown(path, {k: None for k in node if k not in HYDRA_KEYS}, signature.parameters)
        if not node.get("_partial_"):
            for p in parameters:
                if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in node:
                    yield f"{path}.{p.name}: is missing; {name} needs it"


def _values(config: Mapping[str, Any]) -> Iterator[str]:
    schedule, data = config["schedule"], config["data"]
    lowest = {
        "seed": (config["seed"], 0), "model.num_bases": (config["model"]["num_bases"], 1),
        "schedule.steps": (schedule["steps"], 1), "data.batch_size": (data.get("batch_size", 1), 1),
    }  # fmt: skip
    for path, (value, least) in lowest.items():
        if not isinstance(value, int) or value < least:
            yield f"{path}: {value!r}; give an integer from {least} on"
    if not config["optim"]["lr"] > 0:
        yield f"optim.lr: {config['optim']['lr']!r}; give a positive number"
    if schedule["warmup_steps"] >= schedule["steps"]:
        yield (f"schedule.warmup_steps: {schedule['warmup_steps']} is not less than schedule.steps={schedule['steps']}; "
               "shorten the warm-up")  # fmt: skip
    if any(m >= schedule["steps"] for m in schedule["milestones"]):
        yield f"schedule.milestones: {schedule['milestones']} must lie before schedule.steps={schedule['steps']}; move them"
    factors = {f"model.loss_weights.{k}": v for k, v in config["model"]["loss_weights"].items()}
    factors |= {f"model.losses.{k}.weight": v.get("weight", 1.0) for k, v in _terms(config).items()}
    for path, value in factors.items():
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            yield f"{path}: {value!r}; give a number from 0 on"


def _terms(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: term for name, term in config["model"]["losses"].items() if term is not None}


def _model_rules(config: Mapping[str, Any]) -> Iterator[str]:
    model = config["model"]
    variant = model["boundary"]["_target_"].rpartition(".")[2]
    supervising = [n for n, t in _terms(config).items() if get_object(t["_target_"]).supervises == "boundary"]
    supervised = variant in ("GlobalBoundary", "InstanceBoundary")
    if supervised and not supervising:
        yield "model.losses: nothing supervises the boundary basis; add terms (loss@model.losses=[bce,dice,bf1]) or take " \
              "boundary@model.boundary=unsupervised"  # fmt: skip
    if supervised and supervising == ["kervadec"]:
        yield "model.losses: kervadec alone is minimal for an empty boundary; add bce or dice " \
              "(loss@model.losses=[bce,kervadec])"  # fmt: skip
    if variant == "UnsupervisedBoundary" and not model["boundary"]["use_prediction"]:
        yield "model.boundary.use_prediction: false leaves an unsupervised basis without any effect; set it to true or " \
              "take boundary@model.boundary=none"  # fmt: skip
    if variant == "GlobalBoundary" and config["data"].get("boundary_target") is None:
        yield "data.boundary_target: null, and the global boundary needs it; set data.boundary_target=${gt}"
    if config["gt"]["stride"] != 4:
        yield f"gt.stride: {config['gt']['stride']}, but the bases have stride 4; set gt.stride=4"
    if model["scoring"]["_target_"].endswith("ScoringHead") and "mask_size" not in model["assembly"]:
        yield "model.scoring: this assembly has no masks in the frame of their boxes to score; take scoring@model.scoring=none"
    levels, borders = 3 + model["fpn"]["top_levels"], len(model["detector"]["sizes_of_interest"])
    if borders != levels - 1:
        yield (f"model.detector.sizes_of_interest: {borders} borders for {levels} levels (3 + model.fpn.top_levels); "
               f"give {levels - 1}")  # fmt: skip
    yield from _backbone_rules(config)


def _backbone_rules(config: Mapping[str, Any]) -> Iterator[str]:
    backbone = config["model"]["backbone"]
    weights, norm = backbone["weights"], backbone["norm"]
    fresh = config["ckpt_path"] is None and config["init_from"] is None
    if backbone["preset"] == "msra" and weights == "imagenet":
        yield "model.backbone.preset: msra does not fit torchvision's ImageNet weights; set preset=torchvision, or weights " \
              "to a file trained with msra's conventions"  # fmt: skip
    if weights is not None and norm == "gn":
        yield "model.backbone.norm: gn, but pretrained weights have batch norm; set norm=frozen_bn or weights=null"
    if weights is None and norm == "frozen_bn" and fresh:
        yield "model.backbone.norm: frozen_bn with weights=null normalizes nothing; set norm=bn or gn, or give weights"
    if weights not in (None, "imagenet") and not Path(weights).expanduser().is_file():
        yield f"model.backbone.weights: there is no file {weights}; give imagenet, the path of a state dict, or null"


def _run_rules(config: Mapping[str, Any], multirun: bool) -> Iterator[str]:
    trainer, data = config["trainer"], config["data"]
    if str(trainer["precision"]) not in PRECISIONS:
        yield (f"trainer.precision: {trainer['precision']!r} would run ground truth and losses in low precision; "
               f"allowed: {', '.join(PRECISIONS)}")  # fmt: skip
    strategy = str(trainer["strategy"])
    if multirun and strategy.startswith("ddp") and "spawn" not in strategy and trainer["devices"] != 1:
        yield "trainer.strategy: ddp starts this program again for each device, and with it the whole sweep; use the " \
              "submitit launcher (SLURM), torchrun for each job, or trainer.strategy=ddp_spawn"  # fmt: skip
    if data.get("prepare") is None and "root" in data:
        from b2inst.data.datamodule import resolve_root

        root = resolve_root(data["root"])
        if not root.is_dir():
            yield f"data.root: there is no folder {root.absolute()}; set data.root=DIR, or B2INST_DATA to the root of all roots"
    checkpoint = config["callbacks"].get("checkpoint")
    kinds = (config["callbacks"].get("evaluation") or {}).get("kinds", ())
    if config["objective"].split("/")[0] not in kinds:
        yield f"objective: {config['objective']!r} is not evaluated; take one of {[f'{kind}/AP' for kind in kinds]}"
    elif checkpoint is not None and checkpoint.get("monitor") != config["objective"]:
        yield "callbacks.checkpoint.monitor: differs from objective; set objective instead"
    for key in ("ckpt_path", "init_from"):
        path = config[key]
        if path is not None and not (key == "ckpt_path" and path == "last") and not Path(path).expanduser().is_file():
            yield f"{key}: there is no file {path}; give the path of a checkpoint" + (
                ", or last" if key == "ckpt_path" else ""
            )
