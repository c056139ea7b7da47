"""What the demo shows of one image: the network runs once, and everything else is chosen from what it found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from b2inst import viz
from b2inst.predict_panels import canvas_at
from b2inst.prediction import Prediction, resized, shown_size
from b2inst.predictor import B2Inst, Inside
from b2inst.viz_draw import instance_colors, resize, to_uint8

LAYERS = ("masks", "outlines", "boundary", "bases")
HEADERS = ("", "class", "score", "box: left, top, right, bottom", "area in pixels")
LOWEST_SCORE = 0.05  # what is found below is not kept; a checkpoint's own threshold may be lower still
STEP = 0.01  # of the threshold
MIN_SIDE = 640  # pixels; smaller images are drawn enlarged
ALPHA = 0.45  # how opaque masks are
BASES_ALPHA = 0.85  # how opaque the bases are, so that one sees where in the image one is


@dataclass(frozen=True, eq=False)
class Found:
    """All that one run of the network gave; what a session keeps.

    Attributes:
        name: of the image file.
        pixels: (H, W, 3) uint8, RGB, the image.
        prediction: everything from the lowest score on, best first.
        inside: what the network made of the image.
    """

    name: str
    pixels: NDArray[np.uint8]
    prediction: Prediction
    inside: Inside


def start_threshold(model: B2Inst) -> float:
    """The checkpoint's threshold on the steps of the page, rounded down so that nothing is lost."""
    return math.floor(model.score_threshold / STEP + 1e-6) * STEP


def lowest_score(model: B2Inst) -> float:
    """The threshold from which on the page keeps what is found."""
    return min(LOWEST_SCORE, start_threshold(model))


def layers_of(model: B2Inst) -> tuple[str, ...]:
    """The layers that a model has."""
    has = {"bases": model.has_bases, "boundary": model.has_boundary}
    return tuple(name for name in LAYERS if has.get(name, True))


def find(model: B2Inst, name: str, pixels: NDArray[np.uint8]) -> Found:
    """Run the network over one image, see `Found`."""
    prediction, inside = model.run([pixels], lowest_score(model), look_inside=True)[0]
    return Found(name, pixels, prediction, inside)


def above(prediction: Prediction, threshold: float) -> Prediction:
    """The instances with at least this score, in the same order."""
    kept = np.flatnonzero(prediction.scores >= threshold)
    return Prediction(
        boxes=prediction.boxes[kept],
        scores=prediction.scores[kept],
        box_scores=prediction.box_scores[kept],
        labels=prediction.labels[kept],
        class_names=tuple(prediction.class_names[i] for i in kept),
        category_ids=prediction.category_ids[kept],
        masks=tuple(prediction.masks[i] for i in kept),
        size=prediction.size,
    )


def draw(found: Found, shown: Prediction, layers: Collection[str], max_side: int) -> NDArray[np.uint8]:
    """Draw layers over the image: bases first, then boundary, masks and outlines with names and scores.

    Args:
        found: the image and what the network made of it.
        shown: the instances to draw.
        layers: of `layers_of`.
        max_side: a larger picture is made smaller until its longer side has this many pixels.

    Returns:
        (h, w, 3) uint8, RGB.
    """
    size = shown_size(shown.size, max_side, MIN_SIDE)
    picture = torch.from_numpy(resized(found.pixels, size)).permute(2, 0, 1)
    picture = _over(picture, found.inside, layers, size)
    if {"masks", "outlines"} & set(layers):
        names = list(dict.fromkeys(shown.class_names))
        labels = torch.tensor([names.index(name) for name in shown.class_names]).long()
        picture = viz.draw_patches(
            picture, shown.patches_at(size), labels, names, torch.from_numpy(shown.scores),
            alpha=ALPHA if "masks" in layers else 0.0, outline="outlines" in layers,
        )  # fmt: skip
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy())


def _over(picture: Tensor, inside: Inside, layers: Collection[str], size: tuple[int, int]) -> Tensor:
    """Lay what the network made of the image over it."""
    height, width = size
    canvas = canvas_at(inside, size)
    if "bases" in layers and inside.bases is not None:
        bases = viz.draw_bases(inside.bases, canvas)[:, :height, :width]
        picture = to_uint8(torch.lerp(picture.float(), bases.float(), BASES_ALPHA))
    if "boundary" in layers and inside.boundary is not None:
        opaque = resize(inside.boundary[None], canvas).sigmoid()[:, :height, :width]
        red = torch.tensor(viz.RED, dtype=torch.float32).view(3, 1, 1)
        picture = to_uint8(torch.lerp(picture.float(), red, opaque))
    return picture


def rows(shown: Prediction) -> list[list[str | float | int]]:
    """The table of the instances, one row each, see `HEADERS`; the first cell is a dot in the color of the mask."""
    areas = coco_mask.area(list(shown.masks)).tolist() if len(shown) else []
    values = zip(instance_colors(len(shown)).tolist(), shown.class_names, shown.scores.tolist(), shown.boxes.tolist(),
                 areas, strict=True)  # fmt: skip
    return [
        [_dot(color), name, round(score, 3), ", ".join(f"{side:.0f}" for side in box), int(area)]
        for color, name, score, box, area in values
    ]


def _dot(color: list[int]) -> str:
    return f'<span style="color:rgb({color[0]},{color[1]},{color[2]})">&#11044;</span>'


def count(found: Found, shown: Prediction) -> str:
    """How many instances are shown, in all and of each class, as HTML."""
    of_class = Counter(shown.class_names).most_common()
    classes = ", ".join(f"{number} {escape(name)}" for name, number in of_class)
    height, width = shown.size
    return (
        f'<div class="count"><b>{len(shown)}</b> {"instance" if len(shown) == 1 else "instances"}'
        f"<span>{classes}</span></div>"
        f'<div class="image-name">{escape(found.name)}, {width} x {height}</div>'
    )


def problem(message: str) -> str:
    """A message in place of the count, as HTML."""
    return f'<div class="problem" role="alert">{escape(message)}</div>'
