"""Checkpoints that are whole or not there: how they are written, and how damage shows."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

log = logging.getLogger(__name__)

SEAL = b"b2inst sha256 "  # begins the comment of the zip file, which the hash of all before it ends


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in its folder, flushes it to the disk, and renames it.

    So a name stands for the old file or the whole new one, whenever the process or the machine stops. A file that
    cannot be written, because the disk is full or the folder read-only, is an error in the log and not the end of the
    training; the old one stays.

    Attributes:
        failed: whether the last one could not be written; known to the process that writes, as the next one.
        lost: why the newest one of a name could not be written, by its name.
    """

    def __init__(self) -> None:
        self.failed = False
        self.lost: dict[str, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what `torch.save` takes.
            path: of the file.
            storage_options: None, or {"previous": path}: where the file that had this name before is kept. The one
                that is there is given up if the disk is full, the file before is whole, and that makes the room.
        """
        path, previous = Path(path), (storage_options or {}).get("previous")
        content = io.BytesIO()  # an error of the disk inside of torch.save would come as another one
        torch.save(checkpoint, content)
        _seal(content)
        self.failed = False
        try:
            try:
                _write(content, path, previous)
            except OSError as error:
                if previous is None or not _makes_room(error, path, Path(previous), content.getbuffer().nbytes):
                    raise
                log.warning("the disk is full: %s is given up for a new %s", previous, path.name)
                Path(previous).unlink()
                _write(content, path, previous)
            self.lost.pop(path.name, None)
        except OSError as error:
            self.failed = True
            self.lost[path.name] = error.strerror or str(error)
            stays = "the one before stays" if path.exists() else "there is none of this name"
            log.error("%s could not be written (%s); %s, and training goes on", path, self.lost[path.name], stays)


def _write(content: io.BytesIO, path: Path, previous: Path | None) -> None:
    """Put a file in the place of a path, or leave all as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
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
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()  # half a checkpoint on a full disk is in the way
        raise


def _makes_room(error: OSError, path: Path, previous: Path, size: int) -> bool:
    """Whether a file can be written without the one before, and a whole one is there until it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not previous.is_file() or damage(path) is not None:
        return False
    freed = 0 if os.path.samefile(path, previous) else previous.stat().st_size
    return freed > 0 and shutil.disk_usage(path.parent).free + freed >= size


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


def _seal(content: io.BytesIO) -> None:
    """Put a hash of the whole file into its comment: the checksums of a zip file do not cover its directory."""
    content.seek(-2, io.SEEK_END)  # the length of the comment, 0 as torch writes it
    content.write((len(SEAL) + 64).to_bytes(2, "little"))
    content.write(SEAL + hashlib.sha256(content.getbuffer()).hexdigest().encode())


def damage(path: str | Path) -> str | None:
    """What is wrong with a checkpoint file, None for nothing; never raises.

    A file that `AtomicCheckpointIO` wrote is compared with the hash in it. Of any other the parts have checksums, which
    reading alone does not look at. Both are read then, without their tensors.
    """
    try:
        with Path(path).open("rb") as file:
            reason = _unlike_its_hash(file)
        if reason is None:
            read_checkpoint(path, mmap=True)
    except Exception as error:  # of zipfile, zlib, the decoding of names, torch, the disk: whatever a flipped bit does
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    return reason


def read_checkpoint(path: str | Path, mmap: bool = False) -> Any:
    """The content of a file of `torch.save` on the CPU: tensors and plain values.

    Args:
        path: of the file.
        mmap: read the tensors when they are used.

    Raises:
        ValueError: it holds more than that, which is not loaded, or something else.
        Exception: of many kinds, where it is damaged.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no file of PyTorch, or cut off")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:  # torch advises to read the file all the same, which would run its code
        raise ValueError("it holds more than tensors and plain values, which is refused") from error


def _unlike_its_hash(file: BinaryIO) -> str | None:
    size = file.seek(0, io.SEEK_END)
    length = max(0, size - len(SEAL) - 64)
    file.seek(length)
    seal = file.read()
    if not seal.startswith(SEAL):
        with zipfile.ZipFile(file) as parts:
            part = parts.testzip()
        return None if part is None else f"its part {part} is not what was written"
    file.seek(0)
    found = hashlib.sha256()
    while length:
        block = file.read(min(length, 2**20))
        found.update(block)
        length -= len(block)
    return None if seal == SEAL + found.hexdigest().encode() else "it is not what was written"
