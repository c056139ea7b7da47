"""Files as a whole or not at all; and files that a run can do without, where they cannot be written."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)

_lost: dict[str, str] = {}  # kind of file -> why it could not be written first


@contextmanager
def whole_file(path: str | Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` once all is written; a reader never sees half of it.

    Args:
        path: folders are made, an old file is replaced, and stays where the new one cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the name might outlive a power cut, and the content not
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files that nobody else can read
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


@contextmanager
def may_fail(kind: str, remedy: str = "") -> Iterator[None]:
    """Go on without a file that cannot be written: full disk, no permission, read-only or vanished folder.

    The first failure of a kind is a warning, the others are silent.

    Args:
        kind: what is lost, as a user would call it, such as `pictures`.
        remedy: how to get it later, if there is a way.
    """
    try:
        yield
    except OSError as error:
        if kind not in _lost:
            _lost[kind] = str(error)
            more = f"; {remedy}" if remedy else ""
            log.warning("%s cannot be written, and the run goes on without: %s%s", kind, error, more)


def lose(kind: str, reason: str) -> None:
    """Note and tell what could not be written, where a run goes to its end all the same."""
    _lost[kind] = reason
    log.error("%s could not be written: %s", kind, reason)


def lost() -> dict[str, str]:
    """What could not be written in this run: kind of file and the first reason."""
    return dict(_lost)


def forget() -> None:
    """Start a new run, which tells everything anew."""
    _lost.clear()
