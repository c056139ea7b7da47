"""Checkpoints that are whole or not there: how they are written, and how damage shows."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in its folder, flushes it to the disk, and renames it.

    So a name stands for the old file or the whole new one, whenever the process or the machine stops. A file that
    cannot be written, because the disk is full or the folder read-only, is an error in the log and not the end of the
    training; the old one stays.

    Attributes:
        failed: whether the last one could not be written; known to the process that writes.
    """

    def __init__(self) -> None:
        self.failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what `torch.save` takes.
            path: of the file.
            storage_options: None, or {"previous": path}: where the file that had this name before is kept.
        """
        path, previous = Path(path), (storage_options or {}).get("previous")
        content = io.BytesIO()  # an error of the disk inside of torch.save would come as another one
        torch.save(checkpoint, content)
        temporary = path.with_name(f".{path.name}.tmp")
        self.failed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                _keep(path, Path(previous))
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except OSError as error:
            self.failed = True
            with contextlib.suppress(OSError):
                temporary.unlink()  # half a checkpoint on a full disk is in the way
            stays = "the one before stays" if path.exists() else "there is none of this name"
            log.error("%s could not be written (%s); %s, and training goes on", path, error.strerror or error, stays)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that the first one is there at all times."""
    second = previous.with_name(f".{previous.name}.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links: for a moment only the second name is there
        os.replace(path, previous)
    else:
        os.replace(second, previous)


def _flush_folder(folder: Path) -> None:
    """Make a rename outlive a power cut; file systems that cannot do it do not need it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def damage(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, None for nothing.

    Each part of it has a checksum, which reading alone does not look at.
    """
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"{error}"
    return None if part is None else f"its part {part} is not what was written"
