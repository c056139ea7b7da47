"""The rule about the types of arguments: a value has to be what the annotation of its argument says.

Only plain annotations of this package's parts and of the user's own are read: numbers, text, true and false, null, and
lists, literals and unions of them. Everything else is left to the part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from b2inst.config import with_own_parts
from b2inst.config_read import Lines, is_int

LISTS = (list, tuple, Sequence, Collection)
PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", is_int),
    float: ("a number", lambda value: is_int(value) or isinstance(value, float)),
    str: ("text", lambda value: isinstance(value, str)),
    NoneType: ("null", lambda value: value is None),
}


def wrong_types(path: str, node: Mapping[str, Any], target: Any) -> Lines:
    """Values of a node that are of another type than the argument of its target.

    Args:
        path: of the node, dotted.
        node: plain values.
        target: class or function that has the arguments.
    """
    if not str(getattr(target, "__module__", "")).startswith(with_own_parts(("b2inst.",))):
        return
    for key, hint in _hints(target).items():
        if key in node and not _fits(node[key], hint):
            yield f"{path}.{key}: {node[key]!r}; give {' or '.join(dict.fromkeys(_said(hint)))}"


def _hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if isinstance(target, type) else target)
    except Exception:  # annotations of a part of the user's may name anything
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value may be of this type; true where that cannot be told."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, Mapping) and "_target_" in value:  # an object by then
        return True
    if hint in PLAIN:
        return PLAIN[hint][1](value)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if (origin or hint) in LISTS:
        if not isinstance(value, list | tuple) or not arguments:
            return isinstance(value, list | tuple)
        each = [arguments[0]] * len(value) if origin is not tuple or arguments[1:] == (...,) else list(arguments)
        return len(each) == len(value) and all(map(_fits, value, each))
    return True


def _said(hint: Any) -> Iterator[str]:
    """What a user may give, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        yield PLAIN[hint][0]
    elif origin in (Union, UnionType):
        for each in arguments:
            yield from _said(each)
    elif origin is Literal:
        yield ", ".join(map(str, arguments))
    elif (origin or hint) in LISTS:
        fixed = origin is tuple and arguments[1:] != (...,)
        kinds = [next(_said(each)) for each in (arguments if fixed else arguments[:1])]
        yield f"a list of {', '.join(kinds)}" if kinds else "a list"
    else:
        yield f"a part ({getattr(hint, '__name__', hint)})"
