"""What a prediction shows of an image: masks, boundary basis, all bases, attention; of one model or of two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from b2inst import viz
from b2inst.callbacks.pictures import MIN_SIDE
from b2inst.prediction import Prediction, resized, shown_size
from b2inst.predictor import Inside
from b2inst.viz_blend import COLUMNS, draw_blend
from b2inst.viz_draw import pixel_corners, resize, to_uint8

SHOWN = ("masks", "boundary", "bases", "attention")
WHITE = 255


def draw_panels(
    pixels: NDArray[np.uint8],
    prediction: Prediction,
    inside: Inside | None,
    show: Sequence[str],
    max_side: int | None,
    instance: int = 0,
) -> dict[str, Tensor]:
    """Draw what is to be shown of one image.

    Args:
        pixels: (H, W, 3) uint8, RGB, the image.
        prediction: what was found in it.
        inside: what the network made of it; needed for all but `masks`.
        show: of `SHOWN`, in the order of the panels.
        max_side: larger pictures are made smaller, see `Prediction.draw`.
        instance: whose blend is in `inside`, for `attention`.

    Returns:
        caption -> (3, h, w) uint8, one for each of `show`; all but `attention` have the same size, and that has about
        the same width. Where a model has no bases or no boundary basis, `bases` and `boundary` are an empty space
        that says so, and so is `attention` where its masks are made without.
    """
    size = shown_size(prediction.size, max_side, MIN_SIDE)
    panels = {}
    for name in show:
        if name == "masks":
            panels["masks"] = pil_to_tensor(prediction.draw(pixels, max_side, MIN_SIDE))
        elif name == "boundary" and inside.boundary is None:
            panels["no boundary basis"] = torch.full((3, *size), WHITE, dtype=torch.uint8)
        elif name == "boundary":
            canvas = canvas_at(inside, size)
            panels["boundary basis"] = _cut(viz.draw_boundary(inside.boundary.sigmoid(), canvas), size)
        elif name == "bases" and inside.bases is None:
            panels["masks are made without bases"] = torch.full((3, *size), WHITE, dtype=torch.uint8)
        elif name == "bases":
            panels["bases"] = _cut(viz.draw_bases(inside.bases, canvas_at(inside, size), inside.boundary), size)
        elif not inside.has_attention:
            panels["no attention in this assembly"] = torch.full((3, *size), WHITE, dtype=torch.uint8)
        elif inside.blend is None:
            image = torch.from_numpy(resized(pixels, size)).permute(2, 0, 1)
            panels[f"attention: no instance {instance}"] = image
        else:
            caption = f"attention of {instance}: {prediction.class_names[instance]} {prediction.scores[instance]:.2f}"
            box = crop_box(pixels, prediction.boxes[instance], size[1] // COLUMNS)
            panels[caption] = draw_blend(box, inside.blend, len(inside.bases))
    return panels


def tabulate(panels: Sequence[dict[str, Tensor]], names: Sequence[str] = ()) -> Tensor:
    """Put the panels of an image into one picture.

    Args:
        panels: of one model, as `draw_panels` gives them, or of several, with the same `show`.
        names: of the models, where there are several; each has a column, and its name in the captions.

    Returns:
        uint8 picture; masks alone have no caption.
    """
    if len(panels) > 1:
        rows = zip(*(panel.items() for panel in panels), strict=True)
        pairs = [pair for row in rows for pair in zip(names, row, strict=True)]
        return viz.side_by_side({f"{name}: {caption}": picture for name, (caption, picture) in pairs}, len(panels))
    (own,) = panels
    return own["masks"] if list(own) == ["masks"] else viz.side_by_side(own, columns=2)


def crop_box(pixels: NDArray[np.uint8], box: NDArray[np.float32], side: int) -> Tensor:
    """Cut a box out of an image.

    Args:
        pixels: (H, W, 3) uint8, RGB, the image.
        box: (4,) XYXY in its pixels.
        side: pixels of the longer side of the result.

    Returns:
        (3, h, w) uint8.
    """
    x0, y0, x1, y1 = pixel_corners(torch.from_numpy(box[None]), pixels.shape[:2])[0].tolist()
    part = torch.from_numpy(pixels[y0 : y1 + 1, x0 : x1 + 1].copy()).permute(2, 0, 1)
    scale = side / max(part.shape[1:])
    height, width = (max(1, round(length * scale)) for length in part.shape[1:])
    return to_uint8(resize(part, (height, width)))


def canvas_at(inside: Inside, size: tuple[int, int]) -> tuple[int, int]:
    """Size (height, width) of the network input with its padding, if the image in it is shown at `size`."""
    height, width = (round(c * s / i) for c, s, i in zip(inside.canvas, size, inside.size, strict=True))
    return height, width


def _cut(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return picture[:, : size[0], : size[1]]
