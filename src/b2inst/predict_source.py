"""Where the images of a prediction come from: a file, a folder, a glob pattern, a list or a video."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from b2inst.config import ConfigError
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.predict_paths import IMAGES, LIST, Paths, paths_of_folder, paths_of_list, paths_of_pattern

# FFmpeg writes what it thinks of a broken video to stderr otherwise; we say it in one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


Wanted: TypeAlias = Callable[[int], bool]


def everything(position: int) -> bool:
    """Want all images."""
    return True


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        position: in the source, from 0 on.
        name: of its picture, without an ending; no other frame of the source has it.
        record: what the list of images says about it: `id`, from 1 on, `file_name` and, in a video, `frame`, from 0 on.
        pixels: (H, W, 3) uint8, RGB; None if it cannot be decoded.
        problem: why not, in one line.
    """

    position: int
    name: str
    record: dict[str, Any]
    pixels: NDArray[np.uint8] | None
    problem: str = ""


class Source(Protocol):
    """Images in order, decoded one at a time.

    Attributes:
        name: for folders.
        folders: where its files are.
        length: how many images, as far as that is known before they are read.
    """

    name: str
    folders: frozenset[Path]
    length: int | None

    def frames(self, wanted: Wanted = everything) -> Iterator[Frame]:
        """Decode those whose position is wanted."""

    def digest(self) -> str:
        """A fingerprint: another one if a position may mean another image."""


class ImageFiles:
    """Image files; one that cannot be decoded becomes a frame with a problem.

    Args:
        name: of the source.
        paths: at least one.
        ids: (N,) of the images; None for 1, 2, ...
        sizes: (N, 2) height and width that the annotations state; None where there are none.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path] | Paths,
        ids: NDArray[np.int64] | None = None,
        sizes: NDArray[np.int64] | None = None,
    ) -> None:
        self.name = name
        self.paths = paths if isinstance(paths, Paths) else Paths(map(str, paths))
        self.folders = self.paths.folders()
        self.length = len(paths)
        self._ids = ids
        self._sizes = sizes

    @cached_property
    def _numbered(self) -> bool:
        return not self.paths.stems_differ()

    def frames(self, wanted: Wanted = everything) -> Iterator[Frame]:
        """Decode the files in order."""
        for position in filter(wanted, range(len(self.paths))):
            path = self.paths[position]
            id = position + 1 if self._ids is None else int(self._ids[position])
            record = {"id": id, "file_name": str(path)}
            name = f"{position + 1:06d}_{path.stem}" if self._numbered else path.stem
            try:
                pixels = read_image(path, None if self._sizes is None else tuple(self._sizes[position].tolist()))
                yield Frame(position, name, record, pixels)
            except DataError as error:
                yield Frame(position, name, record, None, str(error))

    def digest(self) -> str:
        """A fingerprint of all paths."""
        return self.paths.digest()


class Video:
    """The frames of a video, as OpenCV reads them; in the orientation that the file asks for.

    Args:
        path: of the file.

    Raises:
        DataError: OpenCV cannot open it, or gets no frame out of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.folders = frozenset([path.resolve().parent])
        video = self._open()
        stated = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        readable, _ = video.read()
        video.release()
        if not readable:
            raise DataError(
                f"{path}: cannot be read as a video ({path.stat().st_size} bytes); fetch it again, or convert it: "
                "ffmpeg -i FILE out.mp4"
            )
        self.length = stated if stated > 0 else None

    def frames(self, wanted: Wanted = everything) -> Iterator[Frame]:
        """Decode the frames in order; the last one that can be decoded ends the video."""
        video = self._open()
        number = 0
        try:
            while video.grab():
                if wanted(number):
                    readable, image = video.retrieve()
                    if not readable:
                        return
                    record = {"id": number + 1, "file_name": str(self.path), "frame": number}
                    name = f"{self.name}_{number:06d}"
                    yield Frame(number, name, record, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            video.release()

    def digest(self) -> str:
        """A fingerprint of the path and the size of the file."""
        return Paths([str(self.path), str(self.path.stat().st_size)]).digest()

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(str(self.path))


def open_source(given: str, setting: str = "input") -> Source:
    """Find out what a source is.

    Args:
        given: path of an image, a folder, a video or a list of paths (`.txt`), or a glob pattern (`**` looks into
            folders below).
        setting: what a message calls it.

    Returns:
        The source; files of folders and patterns are those with the ending of an image, in the order of their names.

    Raises:
        ConfigError: there is no such file, or no image in it; the message says what to give.
        DataError: a video that cannot be read.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        paths = paths_of_folder(path)
        if not len(paths):
            raise ConfigError(
                f"{setting}={given}: no image in this folder; images end in {', '.join(IMAGES)}, and those in folders "
                f"below are found with '{setting}=\"{given.rstrip('/')}/**/*\"'"
            )
        return ImageFiles(path.resolve().name, paths)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == LIST:
            return ImageFiles(path.stem, paths_of_list(path, setting))
        return Video(path) if suffix in VIDEOS else ImageFiles(path.stem, [path])
    if not glob.has_magic(given):
        raise ConfigError(
            f"{setting}={given}: no such file; give an image, a folder, a video, a list of paths ({LIST}) or a glob "
            "pattern in quotes"
        )
    return ImageFiles(_fixed_part(path).resolve().name, paths_of_pattern(path, setting, given))


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern begins with."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))
