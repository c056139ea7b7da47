"""Any image that a caller may hold, as RGB with 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from b2inst.data.errors import DataError
from b2inst.data.image import read_image

ImageLike: TypeAlias = str | Path | NDArray[np.uint8] | Tensor | Image.Image
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def to_rgb(image: ImageLike, name: str = "image") -> NDArray[np.uint8]:
    """Turn an image into an array.

    Files are read as `read_image` does: in their EXIF orientation, gray and alpha become RGB. PIL images become RGB
    as they are, for PIL leaves the orientation to its caller.

    Args:
        image: path of a file, (H, W, 3) uint8 RGB array, (3, H, W) uint8 RGB tensor on any device, or PIL image.
        name: what a message calls it.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: it is none of these, has another type or shape, or is empty.
        DataError: the file, or that of a PIL image, is not there or cannot be decoded; a kind of ValueError.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser())
    if isinstance(image, Image.Image):
        if image.mode not in EIGHT_BITS:
            raise ValueError(f"{name}: a PIL image of mode {image.mode!r}; scale it to 8 bits, then convert('RGB')")
        pixels = np.array(_converted(image, name))
    elif isinstance(image, Tensor):
        _check(name, "tensor", image.ndim == 3 and image.shape[0] == 3 and image.dtype == torch.uint8,
               image, "(3, H, W) uint8 tensor, RGB from 0 to 255")  # fmt: skip
        pixels = image.detach().cpu().permute(1, 2, 0).numpy()
    elif isinstance(image, np.ndarray):
        _check(name, "array", image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8,
               image, "(H, W, 3) uint8 array, RGB from 0 to 255")  # fmt: skip
        pixels = image
    else:
        raise ValueError(
            f"{name}: a {type(image).__name__}; give a path, a NumPy array, a torch tensor or a PIL image, or a list "
            "of them"
        )
    if pixels.size == 0:
        raise ValueError(f"{name}: has no pixels, its size is {pixels.shape[0]} x {pixels.shape[1]} (height x width)")
    return np.ascontiguousarray(pixels)


def _converted(image: Image.Image, name: str) -> Image.Image:
    """RGB; this is where Pillow reads the file, if the image was opened and nothing more."""
    try:
        return image.convert("RGB")
    except Exception as error:  # of a broken file, Pillow raises what it likes
        raise DataError(f"{name}: Pillow cannot decode it ({error}); fetch its file again") from error


def _check(name: str, kind: str, fits: bool, image: NDArray[np.uint8] | Tensor, wanted: str) -> None:
    if not fits:
        several = "; give several images as a list" if image.ndim == 4 else ""
        raise ValueError(f"{name}: a {kind} {tuple(image.shape)} of {image.dtype}; give a {wanted}{several}")
