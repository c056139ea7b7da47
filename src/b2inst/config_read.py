"""Reading of a composed configuration that may have any mistake in it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from b2inst.config import TRAINING_TARGETS, find, with_own_parts

Lines = Iterator[str]  # of a rule: `dotted.path: what is wrong; remedy`


def get(config: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path; the default where something on the way is missing."""
    for key in path.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return default
        config = config[key]
    return config


def section_at(config: Any, path: str) -> Mapping[str, Any]:
    """The section at a dotted path; empty where there is none, which `sections` reports."""
    section = get(config, path)
    return section if isinstance(section, Mapping) else {}


def named_by(node: Any) -> Any:
    """What a node's `_target_` names, None where that cannot be had; `targets` reports the reason."""
    name = get(node, "_target_")
    if not isinstance(name, str) or not name.startswith(with_own_parts(TRAINING_TARGETS)):
        return None
    try:
        return find(name)
    except Exception:  # an import may fail with anything
        return None


def is_a(node: Any, cls: type) -> bool:
    """Whether a node's `_target_` is this class, or one that derives from it."""
    target = named_by(node)
    return isinstance(target, type) and issubclass(target, cls)


def did_you_mean(key: Any, allowed: Collection[str]) -> str:
    """The remedy for a name that is none of those allowed."""
    close = get_close_matches(str(key), list(allowed), n=1)
    return f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(allowed) or 'none'}"


def is_int(value: Any) -> bool:
    """Whether it is a whole number, which true and false are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, which true and false are not here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
