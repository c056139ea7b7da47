"""From the composed configuration to objects, safely; and the checker in front of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from b2inst.data.errors import DataError

# What a configuration may name as `_target_`: in a training run; in the parts of a checkpoint that every use of it
# builds, which anybody may have made; and in its data settings, which an evaluation builds too.
TRAINING_TARGETS = ("b2inst.", "torch.optim.", "pytorch_lightning.", "albumentations.")
CHECKPOINT_TARGETS = ("b2inst.models.", "b2inst.losses.", "b2inst.data.augment.", "b2inst.optim.", "torch.optim.")
CHECKPOINT_DATA_TARGETS = (
    *CHECKPOINT_TARGETS, "b2inst.data.datamodule.", "b2inst.data.boundary_target.", "b2inst.data.shapes.ensure",
)  # fmt: skip


# Packages whose parts this user trusts, as B2INST_PARTS=my_package,other. It is asked of the environment alone: no
# configuration and no checkpoint can add to it.
OWN_PARTS = "B2INST_PARTS"


class ConfigError(ValueError):
    """A configuration that cannot work; the message has one line per mistake."""


class PartError(ConfigError):
    """A value that a part refused while it was built; the message names its place."""


def targets_of(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node with a `_target_` and its dotted path, outer ones first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets_of(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from targets_of(value, f"{path}[{i}]")


def with_own_parts(allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Prefixes that may be built, and those of the packages in `B2INST_PARTS`.

    Raises:
        ConfigError: the variable holds something else than names of packages.
    """
    names = [name.strip() for name in os.environ.get(OWN_PARTS, "").split(",")]
    for name in filter(None, names):
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{OWN_PARTS}: {name!r} is no name of a package; give names with commas in between")
    return (*allowed, *(f"{name}." for name in names if name))


def find(target: str, allowed: tuple[str, ...] = TRAINING_TARGETS) -> Any:
    """What a `_target_` names: something that is defined where it is looked for, and not merely imported there.

    Hydra walks through attributes, and so would find `torch.load` as `b2inst.predictor.torch.load`.

    Args:
        target: dotted path of a module and a name in it.
        allowed: prefixes, of the path and of the place where the object was defined.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module does not define that.
    """
    allowed = with_own_parts(allowed)
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name)
    home = f"{getattr(found, '__module__', None) or module}.{getattr(found, '__qualname__', name)}"
    if not home.startswith(allowed):
        raise AttributeError(f"{target} is {home}, which {module} does not define")
    return found


def build(node: Mapping[str, Any], allowed: tuple[str, ...] = TRAINING_TARGETS, *, at: str = "", **kwargs: Any) -> Any:
    """Instantiate a plain configuration; everything below it becomes plain dicts, lists and built objects.

    Args:
        node: with a `_target_`; without interpolations, which could make further targets.
        allowed: prefixes of the targets that may be built.
        at: dotted path of the node in the configuration, for messages; empty for the whole.
        **kwargs: further arguments of the outermost target.

    Raises:
        ConfigError: for a target outside of the allowed prefixes, or an interpolation.
        PartError: for values that a part refuses.
    """
    for path, part in targets_of(node):
        if not _is_allowed(part["_target_"], allowed):
            raise ConfigError(f"{_joined(at, path)}: _target_ {refusal(part['_target_'], allowed)}")
    for text in _texts(node):
        if "${" in text:
            raise ConfigError(f"{_joined(at)}: {text!r} is refused; values have to be resolved")
    try:
        return instantiate(OmegaConf.create(dict(node)), _convert_="all", **kwargs)
    except InstantiationException as error:
        cause, key = error.__cause__, re.search(r"^full_key: (.+)$", str(error), flags=re.MULTILINE)
        if isinstance(cause, DataError | ConfigError):  # they say all themselves
            raise cause from None
        if isinstance(cause, ValueError | TypeError):
            raise PartError(f"{_joined(at, key[1] if key else '')}: {cause}") from cause
        raise


def _joined(*paths: str) -> str:
    return ".".join(filter(None, paths)) or "config"


def refusal(target: Any, allowed: tuple[str, ...]) -> str:
    """Why a target is not built, and what to do about it."""
    prefixes = ", ".join(with_own_parts(allowed))
    remedy = f"if you trust its package, name it in the environment variable {OWN_PARTS}"
    return f"{target!r} is refused; allowed prefixes: {prefixes}; {remedy}"


def _is_allowed(target: Any, allowed: tuple[str, ...]) -> bool:
    if not isinstance(target, str) or not target.startswith(with_own_parts(allowed)):
        return False
    try:
        return callable(find(target, allowed))
    except (ImportError, AttributeError, ValueError):  # the last one for empty names
        return False


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts and lists.

    Raises:
        ConfigError: a value is missing that has no default, or refers to one that is not there.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError("\n".join(f"{key}: no value, and it has no default; set {key}=VALUE" for key in missing))
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except InterpolationResolutionError as error:
        reason, key = str(error).splitlines()[0], error.full_key
        raise ConfigError(f"{key}: {reason}; set {key}=VALUE, or leave its group out") from error
