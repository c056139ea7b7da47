"""Checks of the sizes that parts of a model are built with."""

from __future__ import annotations


def whole_numbers(**sizes: object) -> None:
    """Let whole numbers of at least 1 pass.

    Args:
        sizes: by the name of the argument that gave them.

    Raises:
        ValueError: for the first that is something else.

    Example:
        >>> whole_numbers(channels=0)
        Traceback (most recent call last):
        ValueError: channels=0: give a whole number of at least 1
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
