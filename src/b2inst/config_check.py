"""The configuration checker: every mistake of a composed configuration at once, before anything heavy starts.

Hydra refuses a typo on the command line, but not one inside an experiment's YAML, and it knows nothing of values
that do not fit together. A rule is a generator of lines `dotted.path: what is wrong; remedy`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.config import (
    CHECKPOINT_TARGETS,
    TRAINING_TARGETS,
    ConfigError,
    find,
    refusal,
    targets_of,
    with_own_parts,
)
from b2inst.data.datamodule import ROOT_VARIABLE, resolve_root
from b2inst.data.shapes import Params, ensure
from b2inst.distributed import started_from_outside
from b2inst.losses.kervadec import Kervadec
from b2inst.metrics.coco import KINDS
from b2inst.models.boundary import GlobalBoundary, NoBoundary

Lines = Iterator[str]

TOP_LEVEL = (
    "model", "gt", "data", "augment", "optim", "schedule", "trainer", "training", "callbacks", "logger", "seed", "name",
    "output", "ckpt_path", "init_from", "objective", "sweep",
)  # fmt: skip
# Sections that are read by name, so a key too many is a typo and a key too few a crash.
FIXED_KEYS = {
    "training": ("channels_last", "compile", "matmul_precision"),
    "augment": ("train", "val"),
    "sweep": ("resume",),
}
# Sections of named parts, and whether null switches a part off.
NAMED_PARTS = {"callbacks": True, "logger": True, "augment.train": True, "augment.val": True, "model.losses": False}
NODES = ("model", "data", "optim", "schedule", "trainer", "model.backbone", "model.fpn", "model.detector",
         "model.basis", "model.assembly", "model.boundary", "model.scoring", "model.semantic",
         "model.mask_head")  # fmt: skip
IN_CHECKPOINT = ("model", "optim", "schedule")  # built again from a checkpoint, so with its narrower prefixes
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
FORWARDS_TO = {ensure: Params}  # functions whose **kwargs are the arguments of something else
COPIES = {"boundary_target": "gt", "train_augment": "augment.train", "val_augment": "augment.val"}  # within data
PRECISIONS = ("32-true", "32", "16-mixed", "bf16-mixed")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def check(config: dict[str, Any], *, multirun: bool = False) -> None:
    """Refuse a configuration that cannot work; builds no model and reads no data.

    Args:
        config: plain values, as `conf/train.yaml` composes them.
        multirun: whether this is one job of a sweep.

    Raises:
        ConfigError: one line per mistake, with its place and its remedy.
    """
    rules = (*RULES, _ddp_in_a_sweep) if multirun else RULES
    lines = list(dict.fromkeys(line for rule in rules for line in rule(config)))
    if lines:
        count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in the configuration"
        raise ConfigError("\n".join([f"{count}:", *lines]))


# ------------------------------------------------------------------------------------------- reading and wording


def _get(config: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path; the default where something on the way is missing."""
    for key in path.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return default
        config = config[key]
    return config


def _section(config: Any, path: str) -> Mapping[str, Any]:
    """The section at a dotted path; empty where there is none, which `_sections` reports."""
    section = _get(config, path)
    return section if isinstance(section, Mapping) else {}


def _object(node: Any) -> Any:
    """What a node's `_target_` names, None where that cannot be had; `_targets` reports the reason."""
    name = _get(node, "_target_")
    if not isinstance(name, str) or not name.startswith(with_own_parts(TRAINING_TARGETS)):
        return None
    try:
        return find(name)
    except Exception:  # an import may fail with anything
        return None


def _is(node: Any, cls: type) -> bool:
    target = _object(node)
    return isinstance(target, type) and issubclass(target, cls)


def _did_you_mean(key: Any, allowed: Collection[str]) -> str:
    close = get_close_matches(str(key), list(allowed), n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed) or 'none'}"


def _keys(path: str, node: Mapping[str, Any], allowed: Collection[str]) -> Lines:
    """Unknown and missing keys of a section."""
    prefix = f"{path}." if path else ""
    for key in node:
        if key not in allowed:
            yield f"{prefix}{key}: unknown key; {_did_you_mean(key, allowed)}"
    for key in allowed:
        if key not in node:
            yield f"{prefix}{key}: missing; {path or 'the configuration'} needs the keys {', '.join(allowed)}"


# ----------------------------------------------------------------------------------- keys, targets and arguments


def _sections(config: Mapping[str, Any]) -> Lines:
    yield from _keys("", config, TOP_LEVEL)
    weights = getattr(_object(_get(config, "model")), "loss_names", None)  # None: `_targets` reports the model
    fixed = FIXED_KEYS if weights is None else {**FIXED_KEYS, "model.loss_weights": weights}
    for path, allowed in fixed.items():
        section = _get(config, path)
        if isinstance(section, Mapping):
            yield from _keys(path, section, allowed)
        elif path.split(".")[0] in config:  # else reported already
            yield f"{path}: {section!r} is no section; give the keys {', '.join(allowed)}"
    for path, may_be_null in NAMED_PARTS.items():
        yield from _named_parts(path, _get(config, path), may_be_null)
    for path in NODES:
        section, _, name = path.rpartition(".")
        if name in (_section(config, section) if section else config) and _get(config, f"{path}._target_") is None:
            yield f"{path}: has no _target_; choose a file of its group, see conf/"


def _named_parts(path: str, section: Any, may_be_null: bool) -> Lines:
    if not isinstance(section, Mapping):
        if section is not None or path == "model.losses":
            yield f"{path}: {section!r} is no section; give named parts, each with a _target_, or {{}} for none"
        return
    for name, part in section.items():
        if part is None and may_be_null:
            continue
        if part is None:
            yield f"{path}.{name}: null is no loss term; delete it with '~{path}.{name}'"
        elif not isinstance(part, Mapping) or "_target_" not in part:
            yield f"{path}.{name}: no part, for it has no _target_; give one, or delete it with '~{path}.{name}'"


def _targets(config: Mapping[str, Any]) -> Lines:
    data = _get(config, "data")
    if isinstance(data, Mapping):  # what is only interpolated is reported once, where it is written
        own = {k: v for k, v in data.items() if k not in COPIES or v != _get(config, COPIES[k])}
        config = {**config, "data": own}
    for path, node in targets_of(config):
        name = node["_target_"]
        allowed = CHECKPOINT_TARGETS if path.split(".")[0] in IN_CHECKPOINT else TRAINING_TARGETS
        if not isinstance(name, str) or not name.startswith(with_own_parts(allowed)):
            yield f"{path}._target_: {refusal(name, allowed)}"
        elif (target := _object(node)) is None:
            yield f"{path}._target_: {name!r} cannot be imported; {_nearest_object(name)}"
        elif not callable(target):
            yield f"{path}._target_: {name!r} cannot be called; give a class or a function"
        else:
            yield from _arguments(path, node, target)


def _nearest_object(name: str) -> str:
    module, _, attribute = name.rpartition(".")
    try:
        found = get_close_matches(attribute, dir(import_module(module)), n=1)
    except Exception as error:
        return f"check the name of its module ({error})"
    return f"did you mean '{module}.{found[0]}'?" if found else f"{module} has nothing like it, check the name"


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    target = FORWARDS_TO.get(target, target)
    parameters = inspect.signature(target.__init__ if isinstance(target, type) else target).parameters.values()
    return {p.name: p for i, p in enumerate(parameters) if i or not isinstance(target, type)}  # without self


def _arguments(path: str, node: Mapping[str, Any], target: Callable[..., Any]) -> Lines:
    parameters = _parameters(target)
    name = node["_target_"]
    by_name = [k for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in node:
            if key not in by_name and key not in HYDRA_KEYS:
                yield f"{path}.{key}: no argument of {name}; {_did_you_mean(key, by_name)}"
    if node.get("_partial_") or "_args_" in node:  # the code gives the rest
        return
    for key in by_name:
        if parameters[key].default is inspect.Parameter.empty and key not in node:
            yield f"{path}.{key}: missing; {name} needs it, set {path}.{key}=VALUE"


# --------------------------------------------------------------------------------------------------------- values


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _values(config: Mapping[str, Any]) -> Lines:
    whole = {"data.batch_size": 1, "schedule.steps": 1, "schedule.warmup_steps": 0,
             "optim.reference_batch": 1, "data.num_workers": 0, "seed": 0}  # fmt: skip
    optional = {
        "model.num_bases": 1,
        "model.num_classes": 1,
        "data.val_batch_size": 1,
        "data.train.limit": 1,
        "data.val.limit": 1,
    }
    for path, least in (whole | optional).items():
        value = _get(config, path, least)
        if not (_is_int(value) and value >= least) and not (value is None and path in optional):
            yield f"{path}: {value!r}; give a whole number of at least {least}{' or null' if path in optional else ''}"
    if _is_int(config.get("seed")) and config["seed"] >= 2**32:
        yield f"seed: {config['seed']} is too large; give one below 2**32"
    share = _get(config, "data.max_damaged", 0)
    if not _is_number(share) or not 0 <= share <= 1:
        yield f"data.max_damaged: {share!r}; give a share of the training images from 0 to 1"
    lr = _get(config, "optim.lr", 1)
    if not _is_number(lr) or lr <= 0:
        yield f"optim.lr: {lr!r}; give a learning rate above 0"
    weights = {f"model.loss_weights.{k}": v for k, v in _section(config, "model.loss_weights").items()}
    for name, term in _section(config, "model.losses").items():
        weights[f"model.losses.{name}.weight"] = _get(term, "weight", 1.0)
    for path, value in weights.items():
        if not _is_number(value) or value < 0:
            yield f"{path}: {value!r}; give a finite weight of at least 0"
    for key in ("channels_last", "compile"):
        if not isinstance(_get(config, f"training.{key}", True), bool):
            yield f"training.{key}: {_get(config, f'training.{key}')!r}; give true or false"
    precision = _get(config, "training.matmul_precision", "high")
    if precision not in ("highest", "high", "medium"):
        yield f"training.matmul_precision: {precision!r}; allowed: highest, high, medium"


def _schedule(config: Mapping[str, Any]) -> Lines:
    steps, warmup = _get(config, "schedule.steps"), _get(config, "schedule.warmup_steps")
    if not _is_int(steps):
        return
    milestones = _get(config, "schedule.milestones", [])
    numbers = isinstance(milestones, list) and all(map(_is_int, milestones))
    if not numbers or milestones != sorted(set(milestones)) or any(m >= steps for m in milestones):
        yield (f"schedule.milestones: {milestones}; they must ascend and lie before schedule.steps={steps}, "
               "or be [] for none")  # fmt: skip
    if _is_int(warmup) and warmup >= max(steps, 1):
        yield (f"schedule.warmup_steps: {warmup}, so all {steps} steps would be warm-up; "
               "set it below schedule.steps, or 0 for none")  # fmt: skip


def _files(config: Mapping[str, Any]) -> Lines:
    ckpt, start, weights = config.get("ckpt_path"), config.get("init_from"), _get(config, "model.backbone.weights")
    if ckpt not in (None, "last") and not Path(str(ckpt)).is_file():
        yield f"ckpt_path: no file {str(ckpt)!r}; give the path of a checkpoint, last (of output), or null"
    if start is not None and not Path(str(start)).is_file():
        yield f"init_from: no file {str(start)!r}; give the path of a checkpoint of this package, or null"
    if weights not in (None, "imagenet") and not Path(str(weights)).expanduser().is_file():
        yield (f"model.backbone.weights: no file {str(weights)!r}; give imagenet (downloaded once), the path of a "
               "state dict, or null (random start, with norm=bn or gn)")  # fmt: skip


def _data_root(config: Mapping[str, Any]) -> Lines:
    data = config.get("data")
    if not isinstance(data, Mapping) or data.get("prepare") is not None:
        return
    given = [_get(data, f"{split}.{key}") for split in ("train", "val") for key in ("annotations", "images")]
    if all(path is not None and Path(str(path)).is_absolute() for path in given):
        return  # the root is not used
    root = data.get("root")
    folder = resolve_root(None if root is None else str(root))
    if not folder.is_dir():
        yield (f"data.root: {folder.absolute()} is no folder; set data.root=DIR to a folder with annotations/ and "
               f"images in it, or the environment variable {ROOT_VARIABLE} to the folder of all sets")  # fmt: skip


# --------------------------------------------------------------------------------------- what has to fit together


def _supervised(boundary: Any) -> bool:
    """Whether the variant has a loss on the boundary basis."""
    return _is(boundary, NoBoundary) and _object(boundary).losses is not NoBoundary.losses


def _boundary(config: Mapping[str, Any]) -> Lines:
    variant = _get(config, "model.boundary")
    terms = {
        name: term for name, term in _section(config, "model.losses").items()
        if getattr(_object(term), "supervises", None) == "boundary"
        and (_get(term, "weight", 1.0) != 0 or _get(term, "weight_step", 0.0) != 0)
    }  # fmt: skip
    head = _get(config, "model.mask_head")
    if (learns := getattr(_object(head), "learns_boundary", None)) is not None and learns != bool(terms):
        yield (f"model.losses: {', '.join(terms) or 'none'} of the boundary, which model.mask_head "
               f"{'learns' if learns else 'does not learn'}; choose 'loss@model.losses=[bce,dice]' with "
               "mask_head@model.mask_head=bmask, and [] with mask_rcnn")  # fmt: skip
    if _supervised(variant) and not terms:
        yield ("model.losses: no term supervises the boundary basis; add one, as in 'loss@model.losses=[bce,dice]', or "
               "choose boundary@model.boundary=unsupervised")  # fmt: skip
    if _supervised(variant) and terms and all(_is(term, Kervadec) for term in terms.values()):
        yield (f"model.losses.{next(iter(terms))}: kervadec as the only boundary term is least where nothing is "
               "predicted; add bce or dice, as in 'loss@model.losses=[bce,kervadec]'")  # fmt: skip
    if _is(variant, NoBoundary) and not _supervised(variant) and _get(variant, "use_prediction") is False:
        yield ("model.boundary.use_prediction: false, and no loss either: the additional basis would do nothing; "
               "set it to true, or choose boundary@model.boundary=none")  # fmt: skip
    if _is(variant, GlobalBoundary) and _get(config, "data.boundary_target") is None:
        yield ("data.boundary_target: null, and the global boundary is learned from it; set data.boundary_target="
               "'${gt}', or choose boundary@model.boundary=instance")  # fmt: skip
    if _get(variant, "classes") is True and _get(config, "data.boundary_target.classes") is False:
        yield ("gt.classes: false, but model.boundary.classes=true learns the boundary of each class; set "
               "gt.classes=true")  # fmt: skip
    wanted = _get(config, "model.assembly.basis_stride", 4)
    stride = _get(config, "data.boundary_target.stride", wanted)
    if stride != wanted:
        yield (f"gt.stride: {stride!r}, but the bases have stride {wanted} (model.assembly.basis_stride); set "
               f"gt.stride={wanted}")  # fmt: skip


def _model(config: Mapping[str, Any]) -> Lines:
    sizes, top = _get(config, "model.detector.sizes_of_interest"), _get(config, "model.fpn.top_levels")
    if isinstance(sizes, list) and _is_int(top) and len(sizes) != top + 2:
        yield (f"model.detector.sizes_of_interest: {len(sizes)} borders for {top + 3} levels; give {top + 2}, or set "
               f"model.fpn.top_levels={max(len(sizes) - 2, 0)}")  # fmt: skip
    anchors, lowest = _get(config, "model.anchor_sizes"), _get(config, "model.fpn.lowest", 3)
    if isinstance(anchors, list) and _is_int(top) and _is_int(lowest) and len(anchors) != 6 - lowest + top:
        yield (f"model.anchor_sizes: {len(anchors)} sizes for {6 - lowest + top} levels; give one for each, or set "
               "model.fpn.lowest and model.fpn.top_levels")  # fmt: skip
    if _get(config, "model.basis") is not None and lowest != 3:
        yield f"model.fpn.lowest: {lowest!r}, but bases are made of P3; set model.fpn.lowest=3"


def _backbone(config: Mapping[str, Any]) -> Lines:
    norm, weights, preset = (_get(config, f"model.backbone.{key}") for key in ("norm", "weights", "preset"))
    if preset == "msra" and weights == "imagenet":
        yield ("model.backbone.preset: msra does not fit weights=imagenet, which are torchvision's; set "
               "model.backbone.preset=torchvision, or the path of MSRA's weights (docs/interop.md)")  # fmt: skip
    if norm == "gn" and weights is not None:
        yield ("model.backbone.norm: gn does not fit pretrained weights, which have batch norm; set "
               "model.backbone.norm=frozen_bn or bn, or model.backbone.weights=null")  # fmt: skip
    starts = (weights, config.get("init_from"), config.get("ckpt_path"))
    if norm == "frozen_bn" and all(start is None for start in starts) and _get(config, "model.backbone"):
        yield ("model.backbone.norm: frozen_bn with a random start would normalize nothing; set "
               "model.backbone.norm=bn (or gn) and freeze_at=0, or give model.backbone.weights")  # fmt: skip


def _trainer(config: Mapping[str, Any]) -> Lines:
    precision = _get(config, "trainer.precision", "32-true")
    if precision is not None and str(precision) not in PRECISIONS:
        reason = " would round the boundary ground truth" if str(precision) in ("16-true", "bf16-true") else ""
        yield f"trainer.precision: {precision!r}{reason}; allowed: {', '.join(PRECISIONS)}"
    if _get(config, "trainer.use_distributed_sampler", False):
        yield ("trainer.use_distributed_sampler: true, but the data module splits the data among the processes; set it "
               "to false")  # fmt: skip


def _objective(config: Mapping[str, Any]) -> Lines:
    callbacks = _section(config, "callbacks")
    objective = config.get("objective")
    evaluation = next((part for part in callbacks.values() if _is(part, CocoEvaluation)), None)
    if evaluation is None:
        yield "callbacks.evaluation: missing; a run ends with its scores, take callbacks=default"
        return
    kinds = evaluation.get("kinds", KINDS)
    if not isinstance(kinds, list | tuple) or not kinds or any(kind not in KINDS for kind in kinds):
        yield f"callbacks.evaluation.kinds: {kinds!r}; give a list of one or more of {', '.join(KINDS)}"
        return
    allowed = [f"{kind}/{name}" for kind in kinds for name in METRICS]
    variant = _get(config, "model.boundary")
    if evaluation.get("boundary_f"):
        allowed += [f"boundary_f/{name}" for name in ("ODS", "OIS")]
        allowed += [f"boundary_f/{name}" for name in ("class_ODS", "class_OIS") if _get(variant, "classes") is True]
        if not getattr(_object(variant), "image_level", False):
            yield ("callbacks.evaluation.boundary_f: true, but no basis is supervised with the boundary of the "
                   "whole image; choose boundary@model.boundary=global, or set it to false")  # fmt: skip
    if objective not in allowed:
        yield (f"objective: {objective!r} is not computed; {_did_you_mean(objective, allowed)} "
               f"(kinds of the evaluation: {', '.join(kinds)})")  # fmt: skip
    monitor = _get(callbacks, "checkpoint.monitor", objective)
    if monitor != objective:
        yield (f"callbacks.checkpoint.monitor: {monitor!r} is not objective={objective!r}; set objective={monitor} "
               "and leave the monitor at '${objective}'")  # fmt: skip


def _ddp_in_a_sweep(config: Mapping[str, Any]) -> Lines:
    """DDP starts its processes as copies of the command, and each copy would run the whole sweep."""
    strategy, devices = _get(config, "trainer.strategy", "auto"), _get(config, "trainer.devices", 1)
    strategy = "ddp" if isinstance(strategy, Mapping) else str(strategy)
    copies = strategy.startswith("ddp") and not strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook"))
    if strategy == "auto":  # Lightning takes ddp for several devices
        all_of_them = devices in ("auto", -1, "-1") and _get(config, "trainer.accelerator") != "cpu"
        copies = torch.cuda.device_count() > 1 if all_of_them else devices not in ("auto", -1, "-1")
    single = devices in (1, "1") or isinstance(devices, list) and len(devices) == 1
    if copies and not single and started_from_outside() == 1:
        yield (f"trainer.strategy: {strategy} with devices={devices} restarts the whole sweep in every process; use "
               "hydra/launcher=b2inst_slurm (submitit), or one torchrun per job without -m, or "
               "trainer.strategy=ddp_spawn")  # fmt: skip


RULES = (_sections, _targets, _values, _schedule, _files, _data_root, _boundary, _model, _backbone, _trainer,
         _objective)  # fmt: skip
