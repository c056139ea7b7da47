"""The files of a folder, a pattern or a list: millions of paths in little more memory than their letters."""

from __future__ import annotations

import glob
import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from b2inst.config import ConfigError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".pbm", ".pgm", ".ppm")
LIST = ".txt"


class Paths(Sequence[Path]):
    """Paths in order, packed: each takes its bytes and eight more.

    Args:
        names: of the files.

    Example:
        >>> [path.name for path in Paths(["a/b.jpg", "c.png"])]
        ['b.jpg', 'c.png']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._bytes, self._ends = bytearray(), array("q")
        for name in names:
            self._bytes += os.fsencode(name)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return Path(os.fsdecode(bytes(self._bytes[start : self._ends[index]])))

    @property
    def state_bytes(self) -> int:
        """Memory that the paths take."""
        return len(self._bytes) + len(self._ends) * self._ends.itemsize

    def digest(self) -> str:
        """A fingerprint of all paths and their order."""
        return hashlib.blake2b(self._bytes + self._ends.tobytes(), digest_size=16).hexdigest()

    def folders(self) -> frozenset[Path]:
        """Folders that the files are in."""
        return frozenset(Path(parent).resolve() for parent in {os.path.dirname(path) or "." for path in self})

    def stems_differ(self) -> bool:
        """Whether no two names are the same without folder and ending."""
        hashes = array("Q")  # not the names: they would take ten times as much
        for path in self:
            stem = hashlib.blake2b(os.fsencode(path.stem.lower()), digest_size=8)
            hashes.append(int.from_bytes(stem.digest(), "little"))
        return len(np.unique(np.frombuffer(hashes, np.uint64))) == len(self)


def paths_of_folder(folder: Path) -> Paths:
    """The images in a folder, not those in folders below, in the order of their names."""
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries if _is_image(entry.name) and entry.is_file()]
    return Paths(sorted(names))


def paths_of_pattern(pattern: Path, setting: str, given: str) -> Paths:
    """The images that a glob pattern matches, in the order of their names, folder by folder.

    Raises:
        ConfigError: there is none.
    """
    hits = [hit for hit in glob.iglob(str(pattern), recursive=True) if not os.path.isdir(hit)]
    found = [hit for hit in hits if _is_image(hit) and os.path.isfile(hit)]
    if not found:
        what = f"matches {len(hits)} files, none of them an image" if hits else "matches no file"
        raise ConfigError(f"{setting}={given}: {what}; check the pattern, images end in {', '.join(IMAGES)}")
    return Paths(sorted(found, key=lambda name: name.replace(os.sep, "\0")))


def paths_of_list(file: Path, setting: str) -> Paths:
    """The paths in a text file, one a line, in its order; whatever they end in. Empty lines are passed over.

    Raises:
        ConfigError: there is none.
    """
    paths = Paths(_lines(file))
    if not len(paths):
        raise ConfigError(f"{setting}={file}: lists nothing; write the path of an image into each line")
    return paths


def digest(path: str | Path) -> str:
    """A fingerprint of what a file holds."""
    fingerprint = hashlib.blake2b(digest_size=16)
    with Path(path).expanduser().open("rb") as file:
        while block := file.read(1 << 20):
            fingerprint.update(block)
    return fingerprint.hexdigest()


def _lines(file: Path) -> Iterator[str]:
    with file.open("rb") as lines:
        for line in lines:
            name = line.rstrip(b"\r\n")
            if name:
                yield os.fsdecode(name)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGES
