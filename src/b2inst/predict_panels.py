"""What a prediction shows of an image: masks, boundary basis, all bases, attention."""

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
from b2inst.viz_draw import basis_colors, pixel_corners, resize, to_uint8

SHOWN = ("masks", "boundary", "bases", "attention")
COLUMNS = 3  # maps in a row of the attention panel, which is then as wide as the other panels


def draw_panels(
    pixels: NDArray[np.uint8], prediction: Prediction, inside: Inside | None, show: Sequence[str], max_side: int | None
) -> dict[str, Tensor]:
    """Draw what is to be shown of one image.

    Args:
        pixels: (H, W, 3) uint8, RGB, the image.
        prediction: what was found in it.
        inside: what the network made of it; needed for all but `masks`.
        show: of `SHOWN`, in the order of the panels.
        max_side: larger pictures are made smaller, see `Prediction.draw`.

    Returns:
        caption -> (3, h, w) uint8; all but `attention` have the same size, and that has about the same width.
    """
    size = shown_size(prediction.size, max_side, MIN_SIDE)
    panels = {}
    for name in show:
        if name == "masks":
            panels["masks"] = pil_to_tensor(prediction.draw(pixels, max_side, MIN_SIDE))
        elif name == "boundary":
            canvas = _canvas(inside, size)
            panels["boundary basis"] = _cut(viz.draw_boundary(inside.boundary.sigmoid(), canvas), size)
        elif name == "bases":
            panels["bases"] = _cut(viz.draw_bases(inside.bases, _canvas(inside, size), inside.boundary), size)
        elif inside.attention is None:
            image = torch.from_numpy(resized(pixels, size)).permute(2, 0, 1)
            panels["attention: no instance"] = image
        else:
            caption = f"attention of {prediction.class_names[0]} {prediction.scores[0]:.2f}"
            side = size[1] // COLUMNS
            panels[caption] = draw_attention(pixels, prediction, inside.attention, len(inside.bases), side)
    return panels


def draw_attention(
    pixels: NDArray[np.uint8], prediction: Prediction, attention: Tensor, num_bases: int, side: int
) -> Tensor:
    """Show how much each basis counts where in the box of the best instance.

    Args:
        pixels: (H, W, 3) uint8, RGB, the image.
        prediction: with at least one instance.
        attention: (K or K + 1, R, R) in [0, 1], of its first instance.
        num_bases: K.
        side: pixels of the longer side of a map.

    Returns:
        picture of the box and of each map in the color that its basis has in `viz.draw_bases`, black for 0 and at
        full color for 1.
    """
    x0, y0, x1, y1 = pixel_corners(torch.from_numpy(prediction.boxes[:1]), prediction.size)[0].tolist()
    box = pixels[y0 : y1 + 1, x0 : x1 + 1]
    scale = side / max(box.shape[:2])
    size = (max(1, round(box.shape[0] * scale)), max(1, round(box.shape[1] * scale)))
    shown = resize(torch.from_numpy(box.copy()).permute(2, 0, 1), size)
    maps = {"box": to_uint8(shown)}
    colors = torch.cat([basis_colors(num_bases), torch.tensor([viz.RED], dtype=torch.uint8)]).float()
    for i, (weights, color) in enumerate(zip(resize(attention, size), colors, strict=False)):
        maps[f"basis {i}" if i < num_bases else "boundary"] = to_uint8(weights * color[:, None, None])
    return viz.side_by_side(maps, columns=COLUMNS)


def _canvas(inside: Inside, size: tuple[int, int]) -> tuple[int, int]:
    """Size of the network input with its padding, if the image in it is shown at `size`."""
    height, width = (round(c * s / i) for c, s, i in zip(inside.canvas, size, inside.size, strict=True))
    return height, width


def _cut(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return picture[:, : size[0], : size[1]]
