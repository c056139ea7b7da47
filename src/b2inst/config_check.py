"""The configuration checker: every mistake of a composed configuration at once, before anything heavy starts.

Hydra refuses a typo on the command line, but not one inside an experiment's YAML, and it knows nothing of values
that do not fit together. A rule is a generator of lines `dotted.path: what is wrong; remedy`; those about keys and
targets are in `config_keys.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from b2inst.callbacks.evaluation import CocoEvaluation
from b2inst.config import ConfigError
from b2inst.config_keys import sections, targets, types
from b2inst.config_read import Lines, did_you_mean, get, is_a, is_int, is_number, named_by, section_at
from b2inst.data.collate import LARGEST_DIVISOR, SIZE_DIVISOR
from b2inst.data.datamodule import ROOT_VARIABLE, resolve_root
from b2inst.distributed import started_from_outside
from b2inst.losses.kervadec import Kervadec
from b2inst.metrics.coco import KINDS
from b2inst.models.boundary import GlobalBoundary, NoBoundary

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "32", "16-mixed", "bf16-mixed")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def check(config: dict[str, Any], *, multirun: bool = False) -> None:
    """Refuse a configuration that cannot work, and warn of what has no effect; builds no model and reads no data.

    Args:
        config: plain values, as `conf/train.yaml` composes them.
        multirun: whether this is one job of a sweep.

    Raises:
        ConfigError: one line per mistake, with its place and its remedy.
    """
    rules = (*RULES, _ddp_in_a_sweep) if multirun else RULES
    lines = list(dict.fromkeys(line for rule in rules for line in rule(config)))
    told = {line.split(": ")[0] for line in lines}
    lines += [line for line in types(config) if line.split(": ")[0] not in told]  # the others know more of a value
    if lines:
        count = f"{len(lines)} mistake{'s' if len(lines) > 1 else ''} in the configuration"
        raise ConfigError("\n".join([f"{count}:", *lines]))
    for line in _without_effect(config):
        log.warning("%s", line)


# --------------------------------------------------------------------------------------------------------- values


def _values(config: Mapping[str, Any]) -> Lines:
    whole = {"data.batch_size": 1, "schedule.steps": 1, "schedule.warmup_steps": 0,
             "optim.reference_batch": 1, "data.num_workers": 0, "seed": 0, "model.fpn.channels": 1,
             "model.basis.channels": 1, "model.assembly.mask_size": 1}  # fmt: skip
    optional = {
        "model.num_bases": 1,
        "model.num_classes": 1,
        "model.mask_positives": 1,
        "data.val_batch_size": 1,
        "data.train.limit": 1,
        "data.val.limit": 1,
    }
    for path, least in (whole | optional).items():
        value = get(config, path, least)
        if not (is_int(value) and value >= least) and not (value is None and path in optional):
            yield f"{path}: {value!r}; give a whole number of at least {least}{' or null' if path in optional else ''}"
    if is_int(config.get("seed")) and config["seed"] >= 2**32:
        yield f"seed: {config['seed']} is too large; give one below 2**32"
    divisor = get(config, "data.size_divisor", SIZE_DIVISOR)
    if not is_int(divisor) or divisor % SIZE_DIVISOR or not 0 < divisor <= LARGEST_DIVISOR:
        yield (f"data.size_divisor: {divisor!r}; give a multiple of {SIZE_DIVISOR}, the stride of P5, of at most "
               f"{LARGEST_DIVISOR}")  # fmt: skip
    share = get(config, "data.max_damaged", 0)
    if not is_number(share) or not 0 <= share <= 1:
        yield f"data.max_damaged: {share!r}; give a share of the training images from 0 to 1"
    lr = get(config, "optim.lr", 1)
    if not is_number(lr) or lr <= 0:
        yield f"optim.lr: {lr!r}; give a learning rate above 0"
    weights = {f"model.loss_weights.{k}": v for k, v in section_at(config, "model.loss_weights").items()}
    for name, term in section_at(config, "model.losses").items():
        weights[f"model.losses.{name}.weight"] = get(term, "weight", 1.0)
    for path, value in weights.items():
        if not is_number(value) or value < 0:
            yield f"{path}: {value!r}; give a finite weight of at least 0"
    for key in ("channels_last", "compile"):
        if not isinstance(get(config, f"training.{key}", True), bool):
            yield f"training.{key}: {get(config, f'training.{key}')!r}; give true or false"
    precision = get(config, "training.matmul_precision", "high")
    if precision not in ("highest", "high", "medium"):
        yield f"training.matmul_precision: {precision!r}; allowed: highest, high, medium"


def _schedule(config: Mapping[str, Any]) -> Lines:
    steps, warmup = get(config, "schedule.steps"), get(config, "schedule.warmup_steps")
    if not is_int(steps):
        return
    milestones = get(config, "schedule.milestones", [])
    numbers = isinstance(milestones, list) and all(map(is_int, milestones))
    if not numbers or milestones != sorted(set(milestones)) or any(m >= steps for m in milestones):
        yield (f"schedule.milestones: {milestones}; they must ascend and lie before schedule.steps={steps}, "
               "or be [] for none")  # fmt: skip
    if is_int(warmup) and warmup >= max(steps, 1):
        yield (f"schedule.warmup_steps: {warmup}, so all {steps} steps would be warm-up; "
               "set it below schedule.steps, or 0 for none")  # fmt: skip


def _files(config: Mapping[str, Any]) -> Lines:
    ckpt, start, weights = config.get("ckpt_path"), config.get("init_from"), get(config, "model.backbone.weights")
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
    given = [get(data, f"{split}.{key}") for split in ("train", "val") for key in ("annotations", "images")]
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
    return is_a(boundary, NoBoundary) and named_by(boundary).losses is not NoBoundary.losses


def _boundary_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Loss terms of the boundary that have a weight."""
    if get(config, "model.loss_weights.boundary", 1.0) == 0:
        return {}
    return {
        name: term for name, term in section_at(config, "model.losses").items()
        if getattr(named_by(term), "supervises", None) == "boundary"
        and (get(term, "weight", 1.0) != 0 or get(term, "weight_step", 0.0) != 0)
    }  # fmt: skip


def _without_effect(config: Mapping[str, Any]) -> Lines:
    """What changes nothing; no mistake, for a sweep over the variants gives the same terms to all."""
    variant, terms = get(config, "model.boundary"), _boundary_terms(config)
    if is_a(variant, NoBoundary) and not _supervised(variant) and terms:
        yield (f"model.losses: {', '.join(terms)} without effect, for {named_by(variant).__name__} learns no boundary; "
               "choose boundary@model.boundary=global or instance, or 'loss@model.losses=[]'")  # fmt: skip
    if is_a(variant, NoBoundary) and get(variant, "use_prediction") is False:
        defaults = {"input": "logit", "attention_bias": 0}
        changed = [key for key, value in defaults.items() if get(variant, key, value) != value]
        if changed:
            yield (f"model.boundary: {', '.join(changed)} without effect, for the masks do not use the boundary basis "
                   "(use_prediction=false)")  # fmt: skip


def _boundary(config: Mapping[str, Any]) -> Lines:
    variant, terms = get(config, "model.boundary"), _boundary_terms(config)
    head = get(config, "model.mask_head")
    if (learns := getattr(named_by(head), "learns_boundary", None)) is not None and learns != bool(terms):
        yield (f"model.losses: {', '.join(terms) or 'none'} of the boundary, which model.mask_head "
               f"{'learns' if learns else 'does not learn'}; choose 'loss@model.losses=[bce,dice_unsquared]' "
               "with mask_head@model.mask_head=bmask, and [] with mask_rcnn")  # fmt: skip
    if _supervised(variant) and not terms and head is None:
        why = " (model.loss_weights.boundary is 0)" if get(config, "model.loss_weights.boundary") == 0 else ""
        yield (f"model.losses: no term supervises the boundary basis{why}; add one, as in "
               "'loss@model.losses=[bce,dice]', or choose boundary@model.boundary=unsupervised")  # fmt: skip
    if (_supervised(variant) or learns) and terms and all(is_a(term, Kervadec) for term in terms.values()):
        yield (f"model.losses.{next(iter(terms))}: kervadec as the only boundary term is least where nothing is "
               "predicted; add bce or dice, as in 'loss@model.losses=[bce,kervadec]'")  # fmt: skip
    if is_a(variant, NoBoundary) and not _supervised(variant) and get(variant, "use_prediction") is False:
        yield ("model.boundary.use_prediction: false, and no loss either: the additional basis would do nothing; "
               "set it to true, or choose boundary@model.boundary=none")  # fmt: skip
    if is_a(variant, GlobalBoundary) and get(config, "data.boundary_target") is None:
        yield ("data.boundary_target: null, and the global boundary is learned from it; set data.boundary_target="
               "'${gt}', or choose boundary@model.boundary=instance")  # fmt: skip
    if get(variant, "classes") is True and get(config, "data.boundary_target.classes") is False:
        yield ("gt.classes: false, but model.boundary.classes=true learns the boundary of each class; set "
               "gt.classes=true")  # fmt: skip
    wanted = get(config, "model.assembly.basis_stride", 4)
    stride = get(config, "data.boundary_target.stride", wanted)
    if stride != wanted:
        yield (f"gt.stride: {stride!r}, but the bases have stride {wanted} (model.assembly.basis_stride); set "
               f"gt.stride={wanted}")  # fmt: skip


def _model(config: Mapping[str, Any]) -> Lines:
    sizes, top = get(config, "model.detector.sizes_of_interest"), get(config, "model.fpn.top_levels")
    if isinstance(sizes, list) and is_int(top) and len(sizes) != top + 2:
        yield (f"model.detector.sizes_of_interest: {len(sizes)} borders for {top + 3} levels; give {top + 2}, or set "
               f"model.fpn.top_levels={max(len(sizes) - 2, 0)}")  # fmt: skip
    anchors, lowest = get(config, "model.anchor_sizes"), get(config, "model.fpn.lowest", 3)
    if isinstance(anchors, list) and is_int(top) and is_int(lowest) and len(anchors) != 6 - lowest + top:
        yield (f"model.anchor_sizes: {len(anchors)} sizes for {6 - lowest + top} levels; give one for each, or set "
               "model.fpn.lowest and model.fpn.top_levels")  # fmt: skip
    if get(config, "model.basis") is not None and lowest != 3:
        yield f"model.fpn.lowest: {lowest!r}, but bases are made of P3; set model.fpn.lowest=3"


def _backbone(config: Mapping[str, Any]) -> Lines:
    norm, weights, preset = (get(config, f"model.backbone.{key}") for key in ("norm", "weights", "preset"))
    if preset == "msra" and weights == "imagenet":
        yield ("model.backbone.preset: msra does not fit weights=imagenet, which are torchvision's; set "
               "model.backbone.preset=torchvision, or the path of MSRA's weights (docs/interop.md)")  # fmt: skip
    if norm == "gn" and weights is not None:
        yield ("model.backbone.norm: gn does not fit pretrained weights, which have batch norm; set "
               "model.backbone.norm=frozen_bn or bn, or model.backbone.weights=null")  # fmt: skip
    starts = (weights, config.get("init_from"), config.get("ckpt_path"))
    if norm == "frozen_bn" and all(start is None for start in starts) and get(config, "model.backbone"):
        yield ("model.backbone.norm: frozen_bn with a random start would normalize nothing; set "
               "model.backbone.norm=bn (or gn) and freeze_at=0, or give model.backbone.weights: the path of a file, or "
               "imagenet with model.backbone.preset=torchvision")  # fmt: skip


def _trainer(config: Mapping[str, Any]) -> Lines:
    precision = get(config, "trainer.precision", "32-true")
    if precision is not None and str(precision) not in PRECISIONS:
        reason = " would round the boundary ground truth" if str(precision) in ("16-true", "bf16-true") else ""
        yield f"trainer.precision: {precision!r}{reason}; allowed: {', '.join(PRECISIONS)}"
    if get(config, "trainer.use_distributed_sampler", False):
        yield ("trainer.use_distributed_sampler: true, but the data module splits the data among the processes; set it "
               "to false")  # fmt: skip


def _objective(config: Mapping[str, Any]) -> Lines:
    callbacks = section_at(config, "callbacks")
    objective = config.get("objective")
    evaluation = next((part for part in callbacks.values() if is_a(part, CocoEvaluation)), None)
    if evaluation is None:
        yield "callbacks.evaluation: missing; a run ends with its scores, take callbacks=default"
        return
    kinds = evaluation.get("kinds", KINDS)
    if not isinstance(kinds, list | tuple) or not kinds or any(kind not in KINDS for kind in kinds):
        yield f"callbacks.evaluation.kinds: {kinds!r}; give a list of one or more of {', '.join(KINDS)}"
        return
    allowed = [f"{kind}/{name}" for kind in kinds for name in METRICS]
    variant = get(config, "model.boundary")
    if evaluation.get("boundary_f"):
        allowed += [f"boundary_f/{name}" for name in ("ODS", "OIS")]
        allowed += [f"boundary_f/{name}" for name in ("class_ODS", "class_OIS") if get(variant, "classes") is True]
        if not getattr(named_by(variant), "image_level", False):
            yield ("callbacks.evaluation.boundary_f: true, but no basis is supervised with the boundary of the "
                   "whole image; choose boundary@model.boundary=global, or set it to false")  # fmt: skip
    if objective not in allowed:
        off = str(objective).startswith("boundary_f/") and not evaluation.get("boundary_f")
        remedy = "set callbacks.evaluation.boundary_f=true" if off else did_you_mean(objective, allowed)
        yield f"objective: {objective!r} is not computed; {remedy} (kinds of the evaluation: {', '.join(kinds)})"
    monitor = get(callbacks, "checkpoint.monitor", objective)
    if monitor != objective:
        yield (f"callbacks.checkpoint.monitor: {monitor!r} is not objective={objective!r}; set objective={monitor} "
               "and leave the monitor at '${objective}'")  # fmt: skip


def _ddp_in_a_sweep(config: Mapping[str, Any]) -> Lines:
    """DDP starts its processes as copies of the command, and each copy would run the whole sweep."""
    strategy, devices = get(config, "trainer.strategy", "auto"), get(config, "trainer.devices", 1)
    strategy = "ddp" if isinstance(strategy, Mapping) else str(strategy)
    copies = strategy.startswith("ddp") and not strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook"))
    if strategy == "auto":  # Lightning takes ddp for several devices
        all_of_them = devices in ("auto", -1, "-1") and get(config, "trainer.accelerator") != "cpu"
        copies = torch.cuda.device_count() > 1 if all_of_them else devices not in ("auto", -1, "-1")
    single = devices in (1, "1") or isinstance(devices, list) and len(devices) == 1
    if copies and not single and started_from_outside() == 1:
        yield (f"trainer.strategy: {strategy} with devices={devices} restarts the whole sweep in every process; use "
               "hydra/launcher=b2inst_slurm (submitit), or one torchrun per job without -m, or "
               "trainer.strategy=ddp_spawn")  # fmt: skip


RULES = (sections, targets, _values, _schedule, _files, _data_root, _boundary, _model, _backbone, _trainer,
         _objective)  # fmt: skip
