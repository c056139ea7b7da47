"""Where the images of the demo come from: uploads, which nobody vouches for, and samples."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from b2inst.config import ConfigError
from b2inst.data import shapes
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.predict_source import IMAGES

log = logging.getLogger(__name__)

# Formats that Pillow, which reads the header, and OpenCV, which decodes, tell by the same first bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
THUMBNAIL = 256  # pixels of the shorter side
_REMEDY = "give a JPEG, PNG, WebP, BMP or TIFF image"


def read_upload(path: Path, max_pixels: int) -> NDArray[np.uint8]:
    """Read an image file of unknown origin; its pixels are counted before any of them is decoded.

    Args:
        path: of the file.
        max_pixels: an image with more is refused.

    Returns:
        (H, W, 3) uint8, RGB, in the orientation that the file asks for.

    Raises:
        DataError: it is no image, too large, or damaged; the message names the file without its folder.
    """
    size = _stated_size(path)
    if size is None or size[0] * size[1] > max_pixels:
        stated = "far more" if size is None else f"{size[0]} x {size[1]} = {size[0] * size[1] / 1e6:,.1f} million"
        raise DataError(
            f"{path.name} has {stated} pixels, at most {max_pixels / 1e6:g} million are allowed; give a smaller image"
        )
    try:
        return read_image(path)
    except DataError as error:
        raise DataError(f"{path.name} is damaged and cannot be decoded; {_REMEDY}") from error


def _stated_size(path: Path) -> tuple[int, int] | None:
    """(width, height) by the header of the file; None if that is beyond what Pillow lets pass."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError:
        return None
    except Exception as error:  # on a malformed header Pillow's readers raise whatever they stumble over
        bytes_ = f"{path.stat().st_size:,} bytes"
        raise DataError(f"{path.name} is not an image that can be read ({bytes_}); {_REMEDY}") from error


def sample_files(folder: str | None, scratch: Path, most: int) -> list[Path]:
    """Find the images to choose from, or make some.

    Args:
        folder: with images; None for built-in shapes.
        scratch: an existing folder, into which the shapes are written.
        most: how many to return, the first by name of those that can be read; the others are named in the log.

    Raises:
        ConfigError: there is no such folder, or no image in it that can be read.
    """
    if folder is None:
        shapes.generate(scratch / "shapes", seed=3, train_images=1, val_images=most)
        return sorted((scratch / "shapes" / "val").glob("*.jpg"))
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(f"samples={folder}: no such folder; give a folder of images, or null for built-in shapes")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES and file.is_file())
    if not found:
        raise ConfigError(f"samples={folder}: no image in this folder; images end in {', '.join(IMAGES)}")
    samples = list(itertools.islice(filter(_can_be_read, found), most))
    if not samples:
        raise ConfigError(f"samples={folder}: none of its {len(found)} images can be read; give another folder")
    return samples


def _can_be_read(path: Path) -> bool:
    try:
        read_image(path)
    except DataError as error:
        log.warning("samples: %s; it is left out", error)
        return False
    return True


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """A small square picture of a sample, its middle: (side, side, 3) uint8, RGB.

    Raises:
        DataError: the file cannot be decoded.
    """
    image = Image.fromarray(read_image(path))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((THUMBNAIL, THUMBNAIL)))
