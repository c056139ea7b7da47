"""Outlines of the built-in shapes, and the pixels they cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

_FINE = 4  # outlines are filled on a grid this many times finer, then averaged

Array = NDArray[Any]
Contours = list[Array]  # each (P, 2) xy in pixels; together filled by the even-odd rule


def circle(rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi, points: int = 72) -> Array:
    """(points, 2) along an ellipse around the origin, or an arc of it, with the angles in radians."""
    angle = np.linspace(start, stop, points)
    return np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1)


def _edges(corners: Array, points: int = 12) -> Array:
    """A closed polygon with `points` on each edge, so that a warp bends the edges too."""
    t = np.linspace(0, 1, points, endpoint=False)[None, :, None]
    ends = np.roll(corners, -1, axis=0)
    return (corners[:, None] * (1 - t) + ends[:, None] * t).reshape(-1, 2)  # (edges, points, 2) -> (P, 2)


def _hole(rng: Generator, room: float) -> Contours:
    """A round hole in one object of ten, well inside of a circle of radius `room`."""
    return [circle(*room * rng.uniform(0.35, 0.5, 2))] if rng.uniform() < 0.1 else []


def _disk(rng: Generator, radius: float) -> Contours:
    ry = radius * rng.uniform(0.6, 1.0)
    return [circle(radius, ry), *_hole(rng, ry)]


def _box(rng: Generator, radius: float) -> Contours:
    x, y = 0.9 * radius, 0.9 * radius * rng.uniform(0.45, 0.95)
    return [_edges(np.array([[x, y], [-x, y], [-x, -y], [x, -y]])), *_hole(rng, y)]


def _star(rng: Generator, radius: float) -> Contours:
    tips = int(rng.integers(5, 8))
    radii = np.where(np.arange(2 * tips) % 2, rng.uniform(0.4, 0.55), rng.uniform(0.85, 1.1, 2 * tips)) * radius
    angle = np.arange(2 * tips) * np.pi / tips
    return [_edges(np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1))]


def unit(angle: float) -> Array:
    """(2,) of length 1, in the direction of an angle in radians."""
    return np.array([np.cos(angle), np.sin(angle)])


OUTLINES: dict[str, Callable[[Generator, float], Contours]] = {
    "disk": _disk,
    "box": _box,
    "star": _star,
}


def contours_of(rng: Generator, name: str, center: Array, radius: float) -> Contours:
    """The outline of one object: turned, bent by a smooth warp of the plane, and put at its place."""
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.stack([unit(turn), unit(turn + np.pi / 2)])
    waves = [
        (unit(rng.uniform(0, 7)) * 2 * np.pi / (radius * rng.uniform(0.9, 2.2)), unit(rng.uniform(0, 7)), phase)
        for phase in rng.uniform(0, 7, 3)
    ]
    contours = [contour @ rotation for contour in OUTLINES[name](rng, radius)]
    bends = [sum(np.sin(c @ wave + phase)[:, None] * way for wave, way, phase in waves) for c in contours]
    return [c + center + 0.035 * radius * bend for c, bend in zip(contours, bends, strict=True)]


def coverage(parts: list[Contours], height: int, width: int) -> tuple[tuple[slice, slice], Array, Array] | None:
    """Fill outlines; None if they are outside the frame.

    Returns:
        the window of the frame, the coverage of its pixels in [0, 1], and the coverage by the outermost pixel.
    """
    points = np.concatenate([contour for part in parts for contour in part])
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, [width, height])
    if x1 <= x0 or y1 <= y0:
        return None
    fine = np.zeros(((y1 - y0) * _FINE, (x1 - x0) * _FINE), np.uint8)
    for part in parts:
        # OpenCV has integer coordinates at the centers of pixels, we at their corners: hence the half
        cv2.fillPoly(fine, [np.round(((c - [x0, y0]) * _FINE - 0.5) * 16).astype(np.int32) for c in part], 255, shift=4)
    inner = cv2.erode(fine, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _FINE + 1, 2 * _FINE + 1)))
    alpha, inside = (
        cv2.resize(a, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA).astype(np.float32) / 255 for a in (fine, inner)
    )
    return (slice(y0, y1), slice(x0, x1)), alpha, alpha - inside
