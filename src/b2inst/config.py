"""From the composed configuration to objects, safely; and the checker in front of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

# What a configuration may name as `_target_`: in a training run, and in the part that is read from a checkpoint.
TRAINING_TARGETS = ("b2inst.", "torch.optim.", "pytorch_lightning.", "albumentations.")
CHECKPOINT_TARGETS = ("b2inst.", "torch.optim.")


class ConfigError(ValueError):
    """A configuration that cannot work; the message has one line per mistake."""


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


def build(node: Mapping[str, Any], allowed: tuple[str, ...] = TRAINING_TARGETS, **kwargs: Any) -> Any:
    """Instantiate a plain configuration; everything below it becomes plain dicts, lists and built objects.

    Args:
        node: with a `_target_`.
        allowed: prefixes of the targets that may be built.
        **kwargs: further arguments of the outermost target.

    Raises:
        ConfigError: for a target outside of the allowed prefixes.
    """
    for path, part in targets_of(node):
        if not str(part["_target_"]).startswith(allowed):
            raise ConfigError(
                f"{path or 'config'}: _target_ {part['_target_']!r} is refused; allowed prefixes: {', '.join(allowed)}"
            )
    return instantiate(OmegaConf.create(dict(node)), _convert_="all", **kwargs)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
