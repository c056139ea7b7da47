"""Augmentation: the only file that knows albumentations.

A pipeline is a dict of named transforms, applied in the order of the dict, so that a configuration can change or
delete one entry (`augment.train.flip.p=0`, `~augment.train.flip`). Any albumentations transform can be an entry;
those that users need most are here, with plain numbers as arguments.

Where every transform is one that we know, polygons are moved point by point, and rasterized once, at the size that the
network gets. All other masks travel as index maps (see `b2inst.ops.rasterize`), which only nearest-neighbor sampling
leaves valid.
OpenCV's INTER_NEAREST takes the corner of a pixel and not its center, which moves masks by half a pixel against
their image; INTER_NEAREST_EXACT does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

# albumentations asks the network for its newest version at import, unless told otherwise
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A  # noqa: E402, N812
import cv2  # noqa: E402
import numpy as np  # noqa: E402
from albumentations.core.type_definitions import Targets  # noqa: E402
from numpy.typing import NDArray  # noqa: E402


class Augment:
    """A pipeline of named transforms for an image and its index maps.

    Args:
        transforms: by name, applied in this order; an entry that is None is skipped. None or {} for no change.

    Raises:
        TypeError: an entry is no albumentations transform.
    """

    def __init__(self, transforms: Mapping[str, A.BasicTransform | None] | None = None) -> None:
        self.transforms = {name: t for name, t in (transforms or {}).items() if t is not None}
        for name, transform in self.transforms.items():
            if not isinstance(transform, A.BasicTransform | A.BaseCompose):
                raise TypeError(
                    f"augmentation '{name}' is {transform!r}, it has to be an albumentations transform: "
                    "give its _target_, for example b2inst.data.augment.flip"
                )
        self._pipeline = A.Compose(list(self.transforms.values()))
        self._moves = any(isinstance(transform, A.DualTransform) for transform in self.transforms.values())
        points = A.KeypointParams(format="xy", remove_invisible=False) if self._moves else None  # else it warns
        self._with_points = A.Compose(list(self.transforms.values()), keypoint_params=points)

    @property
    def moves_points(self) -> bool:
        """Whether points can follow: each transform is one of ours, or leaves the geometry alone."""
        return all(isinstance(transform, POINT_TRANSFORMS) for transform in self.transforms.values())

    def __call__(
        self, image: NDArray[np.uint8], maps: NDArray[np.uint16], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Transform an image and its maps in the same way.

        Args:
            image: (H, W, 3) uint8, RGB.
            maps: (L, H, W) uint16 index maps, L >= 1.
            seed: of all random numbers; the same seed gives the same result.

        Returns:
            image (H', W', 3) and maps (L, H', W').
        """
        if not self.transforms:
            return image, maps
        self._pipeline.set_random_seed(seed)
        out = self._pipeline(image=image, masks=maps)
        return out["image"], out["masks"]

    def with_matrix(
        self, image: NDArray[np.uint8], maps: NDArray[np.uint16], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float64]]:
        """As a call, and say where points go; only for pipelines with `moves_points`.

        Args:
            image: (H, W, 3) uint8, RGB.
            maps: (L, H, W) uint16 index maps, L >= 1.
            seed: of all random numbers.

        Returns:
            image (H', W', 3), maps (L, H', W') and the (2, 3) matrix M of the points: x' = M @ (x, y, 1), in pixels.
        """
        if not self._moves:
            return (*self(image, maps, seed), np.eye(2, 3))
        self._with_points.set_random_seed(seed)
        # three corners tell where all points go; for albumentations (0, 0) is the center of a pixel, for us its corner
        corners = np.array([[0, 0], [image.shape[1], 0], [0, image.shape[0]]], np.float64)
        out = self._with_points(image=image, keypoints=corners - 0.5, masks=maps)
        origin, right, below = np.asarray(out["keypoints"], np.float64)[:, :2] + 0.5
        matrix = np.stack([(right - origin) / image.shape[1], (below - origin) / image.shape[0], origin], axis=1)
        return out["image"], out["masks"], matrix


class _Resize(A.DualTransform):
    """Base of the resizers: a subclass says by how much."""

    _targets = (Targets.IMAGE, Targets.MASK, Targets.KEYPOINTS)
    scale: Callable[[int, int], float]  # the subclass has it: the factor for an image of this height and width

    def __init__(self, max_long: int | None, antialias: bool, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.max_long = max_long
        self.antialias = antialias

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the size, once for the image and its maps."""
        height, width = params["shape"][:2]
        scale = self.scale(height, width)
        if self.max_long is not None:
            scale = min(scale, self.max_long / max(height, width))
        # (width, height) for OpenCV; half a pixel is rounded up, as in detectron2
        return {"size": (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))}

    def apply(self, img: NDArray[np.uint8], size: tuple[int, int], **params: Any) -> NDArray[np.uint8]:
        """Resize an image; areas are averaged if it shrinks and `antialias` is on, else bilinear."""
        shrinks = size[0] < img.shape[1] or size[1] < img.shape[0]
        kind = cv2.INTER_AREA if shrinks and self.antialias else cv2.INTER_LINEAR
        return cv2.resize(img, size, interpolation=kind)

    def apply_to_mask(self, mask: NDArray[Any], size: tuple[int, int], **params: Any) -> NDArray[Any]:
        """Resize an index map: the value at the center of each new pixel."""
        return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_keypoints(self, keypoints: NDArray[Any], size: tuple[int, int], **params: Any) -> NDArray[Any]:
        """Move points, whose (0, 0) is the center of a pixel."""
        height, width = params["shape"][:2]
        moved = keypoints.copy()
        moved[:, :2] = (keypoints[:, :2] + 0.5) * (size[0] / width, size[1] / height) - 0.5
        return moved


class Resize(_Resize):
    """Bring the shorter side to a length and keep the aspect ratio.

    Args:
        short: pixels of the shorter side, or several for multi-scale training.
        sampling: with several: "choice" takes one of them, "range" any integer from the least to the greatest.
        max_long: most pixels of the longer side; it wins over `short`. None for no limit.
        antialias: average areas when an image shrinks; bilinear sampling alone leaves out pixels.

    Raises:
        ValueError: `short` or `sampling` is not as above.
    """

    def __init__(
        self,
        short: int | Sequence[int],
        sampling: Literal["choice", "range"] = "choice",
        max_long: int | None = None,
        antialias: bool = True,
    ) -> None:
        super().__init__(max_long, antialias)
        self.short = [short] if isinstance(short, int) else list(short)
        self.sampling = sampling
        if not self.short or min(self.short) < 1:
            raise ValueError(f"short={short!r}: give the pixels of the shorter side, one positive integer or several")
        if sampling not in ("choice", "range"):
            raise ValueError(f"sampling={sampling!r}: 'choice' and 'range' are there")

    def scale(self, height: int, width: int) -> float:
        """Draw the length of the shorter side."""
        if self.sampling == "range":
            short = self.py_random.randint(min(self.short), max(self.short))
        else:
            short = self.py_random.choice(self.short)
        return short / min(height, width)


class Rescale(_Resize):
    """Enlarge or shrink every image by the same factor, for sets whose objects have one size in pixels.

    Args:
        factor: 2.0 doubles the sides.
        max_long: most pixels of the longer side; it wins over `factor`. None for no limit.
        antialias: average areas when an image shrinks.

    Raises:
        ValueError: `factor` is not positive.
    """

    def __init__(self, factor: float, max_long: int | None = None, antialias: bool = True) -> None:
        super().__init__(max_long, antialias)
        self.factor = factor
        if factor <= 0:
            raise ValueError(f"factor={factor!r}: it has to be positive, 2.0 doubles the sides of an image")

    def scale(self, height: int, width: int) -> float:
        """The same for every image."""
        return self.factor


class Crop(A.DualTransform):
    """Cut out a square at a random place; a side of the image that is shorter is kept whole.

    Args:
        size: pixels of the square, or (least, greatest) to draw it: with a resize after it, objects vary in size.

    Raises:
        ValueError: `size` is not as above.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.KEYPOINTS)

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__(p=1.0)
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if len(self.size) != 2 or not 1 <= self.size[0] <= self.size[1]:
            raise ValueError(f"size={size!r}: give one positive integer or (least, greatest)")

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window, once for the image and its maps."""
        height, width = params["shape"][:2]
        side = self.py_random.randint(*self.size)
        y = self.py_random.randint(0, max(0, height - side))
        x = self.py_random.randint(0, max(0, width - side))
        return {"window": (slice(y, y + side), slice(x, x + side))}

    def apply(self, img: NDArray[Any], window: tuple[slice, slice], **params: Any) -> NDArray[Any]:
        """Cut out the window, of an image or of an index map."""
        return img[window]

    def apply_to_keypoints(self, keypoints: NDArray[Any], window: tuple[slice, slice], **params: Any) -> NDArray[Any]:
        """Move points into the window."""
        moved = keypoints.copy()
        moved[:, :2] -= window[1].start, window[0].start
        return moved


POINT_TRANSFORMS = (
    _Resize, Crop, A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.RandomRotate90, A.D4, A.ImageOnlyTransform,
)  # fmt: skip


def flip(p: float = 0.5) -> A.BasicTransform:
    """Mirror left and right with probability `p`."""
    return A.HorizontalFlip(p=p)


def flip_vertical(p: float = 0.5) -> A.BasicTransform:
    """Mirror top and bottom with probability `p`, for images without an up, such as from a microscope."""
    return A.VerticalFlip(p=p)


def rotate90(p: float = 1.0) -> A.BasicTransform:
    """Turn by 0, 90, 180 or 270 degrees with probability `p`."""
    return A.RandomRotate90(p=p)


def color(
    brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.02, p: float = 0.8
) -> A.BasicTransform:
    """Change the colors of the image with probability `p`, each quantity by up to this share of its range."""
    return A.ColorJitter(
        brightness=(1 - brightness, 1 + brightness),
        contrast=(1 - contrast, 1 + contrast),
        saturation=(1 - saturation, 1 + saturation),
        hue=(-hue, hue),
        p=p,
    )
