"""Decode an image file into RGB with 8 bits, in the orientation of its annotations."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from b2inst.data.errors import DataError, ImageSizeError
from b2inst.data.limits import MAX_PIXELS


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read an image file.

    Gray, palette, alpha and 16-bit files become RGB with 8 bits (of 16 bits the upper 8; alpha is dropped).
    The EXIF orientation is applied, as detectron2 does, unless only the stored orientation has the annotated size:
    some annotation tools ignore EXIF, and their masks would be turned against the image.

    Args:
        path: of the file.
        size: (height, width) that the annotations state; None where there are no annotations.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        DataError: there is no such file, it is too large, or it cannot be decoded.
        ImageSizeError: it has another size; a kind of DataError.
    """
    annotated = size is not None
    data = _read_bytes(
        path, "is the image folder the right one? (data.train.images=DIR)" if annotated else "check the path"
    )
    reason = _header_problem(data) or ("the file is cut off" if _is_cut_off(data) else None)
    image = None if reason else _decode(data, cv2.IMREAD_COLOR)
    if image is None:
        remedy = "fetch it again" + (", or remove its record from the annotations" if annotated else "")
        raise DataError(
            f"{path}: cannot be decoded as an image ({data.size} bytes{f', {reason}' if reason else ''}); {remedy}"
        )
    if annotated and image.shape[:2] != tuple(size):
        stored = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if stored is None or stored.shape[:2] != tuple(size):
            found = f"{image.shape[0]} x {image.shape[1]}"
            raise ImageSizeError(
                f"{path}: is {found} (height x width), its annotations say {size[0]} x {size[1]}; "
                "the file was resized or replaced: use the annotated one, or correct 'height', 'width' and the masks"
            )
        image = stored
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _read_bytes(path: Path, remedy: str) -> NDArray[np.uint8]:
    if not os.path.isfile(path):  # a pipe would be waited for
        raise DataError(f"{path}: {'is no file' if os.path.exists(path) else 'does not exist'}; {remedy}")
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error


def _header_problem(data: NDArray[np.uint8]) -> str | None:
    """Why a file is not decoded at all: a few bytes may claim a size that takes all memory. Pillow draws the line."""
    try:
        with Image.open(io.BytesIO(data)):
            return None
    except Image.DecompressionBombError:
        return f"its header claims more than {MAX_PIXELS:,} pixels"
    except Exception:  # of a broken header, Pillow raises what it likes
        return "its header cannot be read"


def _decode(data: NDArray[np.uint8], flags: int) -> NDArray[np.uint8] | None:
    try:
        return cv2.imdecode(data, flags)
    except cv2.error:  # an empty file
        return None


def _is_cut_off(data: NDArray[np.uint8]) -> bool:
    """Whether the end of a JPEG or PNG is missing.

    OpenCV 4 returns such a JPEG with the missing part in gray, and OpenCV 5 takes the memory that a chunk of a PNG
    claims to need: gigabytes, for a file of 200 bytes.
    """
    content = data.tobytes()
    if content.startswith(b"\xff\xd8"):  # the metadata before the first scan may hold a thumbnail with its own end
        return content.find(b"\xff\xd9", _first_scan(content)) < 0
    return content.startswith(b"\x89PNG") and not _has_all_chunks(content)


def _first_scan(content: bytes) -> int:
    """Where the first scan of a JPEG begins, or the end of the file if there is none."""
    place = 2
    while 0 <= (place := content.find(b"\xff", place)) < len(content) - 3:
        marker = content[place + 1]
        if marker == 0xDA:  # start of scan
            return place
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8  # these carry no length
        place += 1 if alone else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return len(content)


def _has_all_chunks(content: bytes) -> bool:
    """Whether the chunks of a PNG follow each other to its end."""
    place = 8
    while place + 12 <= len(content):
        if content[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, data, check sum
    return False
