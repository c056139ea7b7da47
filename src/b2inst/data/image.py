"""Decode an image file into RGB with 8 bits, in the orientation of its annotations."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from b2inst.data.errors import DataError, ImageSizeError


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
        DataError: there is no such file, or it cannot be decoded.
        ImageSizeError: it has another size; a kind of DataError.
    """
    annotated = size is not None
    data = _read_bytes(
        path, "is the image folder the right one? (data.train.images=DIR)" if annotated else "check the path"
    )
    image = _decode(data, cv2.IMREAD_COLOR)
    if image is None or _is_cut_off(data):
        remedy = "fetch it again" + (", or remove its record from the annotations" if annotated else "")
        raise DataError(f"{path}: cannot be decoded as an image ({data.size} bytes); {remedy}")
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
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        reason = "does not exist" if not path.exists() else f"cannot be read ({error})"
        raise DataError(f"{path}: {reason}; {remedy}") from error


def _decode(data: NDArray[np.uint8], flags: int) -> NDArray[np.uint8] | None:
    try:
        return cv2.imdecode(data, flags)
    except cv2.error:  # an empty file
        return None


def _is_cut_off(data: NDArray[np.uint8]) -> bool:
    """Whether a JPEG has no end marker: OpenCV 4 returns such files with the missing part in gray."""
    return data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data.tobytes()
