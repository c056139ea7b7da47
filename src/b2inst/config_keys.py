"""Rules about the keys of a configuration, the targets in it and their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from b2inst.config import CHECKPOINT_TARGETS, TRAINING_TARGETS, refusal, targets_of, with_own_parts
from b2inst.config_read import Lines, did_you_mean, get, named_by, section_at
from b2inst.config_types import wrong_types
from b2inst.data.shapes import Params, ensure

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
FILLED = ("model.num_classes",)  # null until the data are known
FORWARDS_TO = {ensure: Params}  # functions whose **kwargs are the arguments of something else
COPIES = {"boundary_target": "gt", "train_augment": "augment.train", "val_augment": "augment.val"}  # within data


def _keys(path: str, node: Mapping[str, Any], allowed: Collection[str]) -> Lines:
    """Unknown and missing keys of a section."""
    prefix = f"{path}." if path else ""
    for key in node:
        if key not in allowed:
            yield f"{prefix}{key}: unknown key; {did_you_mean(key, allowed)}"
    for key in allowed:
        if key not in node:
            yield f"{prefix}{key}: missing; {path or 'the configuration'} needs the keys {', '.join(allowed)}"


def sections(config: Mapping[str, Any]) -> Lines:
    """Unknown and missing keys, and what should be a section or a part and is none."""
    yield from _keys("", config, TOP_LEVEL)
    weights = getattr(named_by(get(config, "model")), "loss_names", None)  # None: `targets` reports the model
    fixed = FIXED_KEYS if weights is None else {**FIXED_KEYS, "model.loss_weights": weights}
    for path, allowed in fixed.items():
        section = get(config, path)
        if isinstance(section, Mapping):
            yield from _keys(path, section, allowed)
        elif path.split(".")[0] in config:  # else reported already
            yield f"{path}: {section!r} is no section; give the keys {', '.join(allowed)}"
    for path, may_be_null in NAMED_PARTS.items():
        yield from _named_parts(path, get(config, path), may_be_null)
    for path in NODES:
        section, _, name = path.rpartition(".")
        if name in (section_at(config, section) if section else config) and get(config, f"{path}._target_") is None:
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


def without_copies(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is only interpolated left out: it is reported once, where it is written."""
    data = get(config, "data")
    if not isinstance(data, Mapping):
        return config
    return {**config, "data": {k: v for k, v in data.items() if k not in COPIES or v != get(config, COPIES[k])}}


def types(config: Mapping[str, Any]) -> Lines:
    """Values of another type than the argument has."""
    for path, node in targets_of(without_copies(config)):
        if (target := named_by(node)) is not None:
            given = {key: value for key, value in node.items() if f"{path}.{key}" not in FILLED or value is not None}
            yield from wrong_types(path, given, FORWARDS_TO.get(target, target))


def targets(config: Mapping[str, Any]) -> Lines:
    """What `_target_` names, whether that may be built, and with these arguments."""
    for path, node in targets_of(without_copies(config)):
        name = node["_target_"]
        allowed = CHECKPOINT_TARGETS if path.split(".")[0] in IN_CHECKPOINT else TRAINING_TARGETS
        if not isinstance(name, str) or not name.startswith(with_own_parts(allowed)):
            yield f"{path}._target_: {refusal(name, allowed)}"
        elif (target := named_by(node)) is None:
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
            if key not in by_name and f"{path}.{key}" in NODES:
                yield f"{path}.{key}: {name} has no such part; leave its group out, or choose a model that has it"
            elif key not in by_name and key not in HYDRA_KEYS:
                yield f"{path}.{key}: no argument of {name}; {did_you_mean(key, by_name)}"
    if node.get("_partial_") or "_args_" in node:  # the code gives the rest
        return
    for key in by_name:
        if parameters[key].default is inspect.Parameter.empty and key not in node:
            yield f"{path}.{key}: missing; {name} needs it, set {path}.{key}=VALUE"
