"""Where the images of a prediction come from: a file, a folder, a glob pattern or a video."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from b2inst.config import ConfigError
from b2inst.data.errors import DataError
from b2inst.data.image import read_image

# FFmpeg writes what it thinks of a broken video to stderr otherwise; we say it in one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".pbm", ".pgm", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        name: of its picture, without an ending; no other frame of the source has it.
        record: what the list of images says about it: `id`, from 1 on, `file_name` and, in a video, `frame`, from 0 on.
        pixels: (H, W, 3) uint8, RGB; None if it cannot be decoded.
        problem: why not, in one line.
    """

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

    def frames(self) -> Iterator[Frame]:
        """Decode them."""


class ImageFiles:
    """Image files; one that cannot be decoded becomes a frame with a problem.

    Args:
        name: of the source.
        paths: at least one.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name = name
        self.paths = list(paths)
        self.folders = frozenset(path.resolve().parent for path in paths)
        self.length = len(paths)

    def frames(self) -> Iterator[Frame]:
        """Decode the files in order."""
        stems = Counter(path.stem.lower() for path in self.paths)
        unique = max(stems.values()) == 1
        for number, path in enumerate(self.paths, 1):
            record = {"id": number, "file_name": str(path)}
            name = path.stem if unique else f"{number:06d}_{path.stem}"
            try:
                yield Frame(name, record, read_image(path))
            except DataError as error:
                yield Frame(name, record, None, str(error))


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

    def frames(self) -> Iterator[Frame]:
        """Decode the frames in order; the last one that can be decoded ends the video."""
        video = self._open()
        number = 0
        try:
            while True:
                readable, image = video.read()
                if not readable:
                    return
                record = {"id": number + 1, "file_name": str(self.path), "frame": number}
                yield Frame(f"{self.name}_{number:06d}", record, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                number += 1
        finally:
            video.release()

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(str(self.path))


def open_source(given: str, setting: str = "input") -> Source:
    """Find out what a source is.

    Args:
        given: path of an image, a folder or a video, or a glob pattern (`**` looks into folders below).
        setting: what a message calls it.

    Returns:
        The source; files of folders and patterns are those with the ending of an image, in the order of their names.

    Raises:
        ConfigError: there is no such file, or no image in it; the message says what to give.
        DataError: a video that cannot be read.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        found = _images(path.iterdir())
        if not found:
            raise ConfigError(
                f"{setting}={given}: no image in this folder; images end in {', '.join(IMAGES)}, and those in folders "
                f"below are found with '{setting}=\"{given.rstrip('/')}/**/*\"'"
            )
        return ImageFiles(path.resolve().name, found)
    if path.is_file():
        return Video(path) if path.suffix.lower() in VIDEOS else ImageFiles(path.stem, [path])
    if not glob.has_magic(given):
        raise ConfigError(
            f"{setting}={given}: no such file; give an image, a folder, a video or a glob pattern in quotes"
        )
    hits = [Path(hit) for hit in glob.glob(str(path), recursive=True)]
    found = _images(hits)
    if not found:
        what = f"matches {len(hits)} files, none of them an image" if hits else "matches no file"
        raise ConfigError(f"{setting}={given}: {what}; check the pattern, images end in {', '.join(IMAGES)}")
    return ImageFiles(_fixed_part(path).resolve().name, found)


def _images(paths: Iterator[Path] | list[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in IMAGES and path.is_file())


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern begins with."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))
