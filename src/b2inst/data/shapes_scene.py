"""Pictures of the built-in shapes: materials, objects in front of each other, and the flaws of a camera."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

from b2inst.data.shapes_outlines import OUTLINES, Array, Contours, circle, contours_of, coverage, unit

_MIN_VISIBLE = 24  # pixels, and below:
_MIN_VISIBLE_SHARE = (0.6, 0.6)  # share of the area in the frame, of an object and of a crowd
_TEXTURES = {"disk": "noise", "box": "checks", "star": "stripes"}  # what a class is made of, whatever its color


@dataclass(frozen=True)
class _Material:
    """Color and texture; objects that share one differ in the phase of the texture."""

    color: Array
    kind: str
    contrast: float
    period: float
    angle: float

    @classmethod
    def sample(cls, rng: Generator, hue: float, kind: str) -> _Material:
        color = 255 * np.array(colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.15, 0.75), rng.uniform(0.4, 0.85)))
        return cls(color, kind, rng.uniform(0.03, 0.08), rng.uniform(5, 14), rng.uniform(0, np.pi))

    def paint(self, rng: Generator, height: int, width: int) -> Array:
        """(height, width, 3) float32 colors."""
        y, x = np.mgrid[:height, :width].astype(np.float32)
        along = (x * np.cos(self.angle) + y * np.sin(self.angle)) * (2 * np.pi / self.period) + rng.uniform(0, 7)
        texture = 0.5 * _noise(rng, height, width, (self.period, 3.0))
        if self.kind == "stripes":
            texture += np.sin(along + 0.8 * texture)
        elif self.kind == "checks":
            across = (y * np.cos(self.angle) - x * np.sin(self.angle)) * (2 * np.pi / self.period) + rng.uniform(0, 7)
            texture += 1.4 * np.sin(along) * np.sin(across)
        elif self.kind == "noise":
            texture *= 2.0
        return self.color.astype(np.float32) * (1 + self.contrast * texture)[:, :, None]


def _noise(rng: Generator, height: int, width: int, cells: Sequence[float]) -> Array:
    """Band-limited noise: the mean of one random grid of unit deviation for each size of cell in pixels."""
    total = np.zeros((height, width), np.float32)
    for cell in cells:
        shape = (int(height / cell) + 3, int(width / cell) + 3)
        grid = rng.standard_normal(shape, dtype=np.float32)
        grid = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += grid[int(cell) :, int(cell) :][:height, :width]
    return total / len(cells)


@dataclass
class Scene:
    """An image being painted from back to front.

    Attributes:
        image: (H, W, 3) float32, 0 to 255.
        owner: (H, W) uint8, 1 + index in `objects` of what is visible, 0 for the background.
        objects: name, material and iscrowd of each.
        needs: the least number of pixels that has to stay visible of each.
    """

    image: Array
    owner: Array
    light: Array
    contour: float
    shading: float
    objects: list[dict[str, Any]] = field(default_factory=list)
    needs: list[float] = field(default_factory=list)

    def add(self, rng: Generator, parts: list[Contours], surface: _Material, **record: Any) -> bool:
        """Put an object in front, unless it or another one would hardly be seen. Returns whether it was put."""
        covered = coverage(parts, *self.owner.shape)
        if covered is None:
            return False
        window, alpha, rim = covered
        solid = (alpha >= 0.5).astype(np.uint8)
        if record["iscrowd"]:  # annotated as COCO's are: by a region around its members
            solid = cv2.dilate(solid, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7)))
        owner = self.owner.copy()
        owner[window][solid > 0] = len(self.objects) + 1
        share = _MIN_VISIBLE_SHARE[record["iscrowd"]]
        needs = [*self.needs, max(_MIN_VISIBLE, share * int(solid.sum()))]
        if (np.bincount(owner.ravel(), minlength=len(needs) + 1)[1:] < needs).any():
            return False
        self.owner, self.needs = owner, needs
        self.objects.append(record)
        fill = surface.paint(rng, *alpha.shape) * self._shade(rng, alpha, rim)[:, :, None]
        self.image[window] += alpha[:, :, None] * (fill - self.image[window])
        return True

    def _shade(self, rng: Generator, alpha: Array, rim: Array) -> Array:
        """Brightness of an object: light from one side, darker toward the rim, darkest on the outermost pixel."""
        height, width = alpha.shape
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
        soft = cv2.GaussianBlur(alpha, (0, 0), 1.0 + 0.06 * max(height, width), borderType=cv2.BORDER_REPLICATE)
        shade = rng.uniform(0.97, 1.03) + 0.06 * (self.light[0] * x + self.light[1] * y)
        return (shade * (1 - self.shading * 2 * (1 - soft)) * (1 - self.contour * rim)).astype(np.float32)


def _background(rng: Generator, height: int, width: int, material: _Material) -> Array:
    """Texture, a wide gradient, and stray lines: edges at which no object ends."""
    image = material.paint(rng, height, width) * (1 + 0.08 * _noise(rng, height, width, (60.0, 20.0)))[:, :, None]
    for _ in range(int(rng.integers(0, 4))):
        ends = rng.uniform(-0.1, 1.1, (3, 2)) * [width, height]
        t = np.linspace(0, 1, 24)[:, None]
        curve = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2]
        line = cv2.polylines(np.zeros((height, width), np.uint8), [np.int32(curve * 16)], False, 255, 1, cv2.LINE_AA, 4)
        image *= 1 + rng.uniform(-0.25, 0.25) * line[:, :, None].astype(np.float32) / 255
    return image


def compose(rng: Generator, size: int, empty: bool, crowd: bool) -> Scene:
    """Paint one scene, without the flaws of a camera."""
    height, width = (int(side) for side in rng.integers(round(size * 5 / 6), size + 1, 2))
    hue = rng.uniform()
    materials = [_Material.sample(rng, hue + k / 3 + rng.uniform(-0.1, 0.1), "noise") for k in range(3)]
    grounds = [_Material.sample(rng, rng.uniform(), str(rng.choice(["noise", "plain"]))) for _ in range(4)]
    back = max(grounds, key=lambda ground: min(float(np.linalg.norm(ground.color - m.color)) for m in materials))
    if rng.uniform() < 0.1:  # camouflage: the ground has the color of one of the objects
        back = _Material(
            materials[0].color * rng.choice([0.8, 0.9, 1.1, 1.2]), back.kind, 0.12, back.period, back.angle
        )
    image = _background(rng, height, width, back)
    contour, shading = rng.uniform(0.18, 0.4), rng.uniform(0.03, 0.16)
    scene = Scene(image, np.zeros((height, width), np.uint8), unit(rng.uniform(0, 7)), contour, shading)
    if empty:
        return scene
    frame = np.array([width, height])
    if crowd:
        center, spread = rng.uniform(0.2, 0.8, 2) * frame, size * rng.uniform(0.04, 0.09)
        dots = rng.normal(center, spread, (int(rng.integers(15, 40)), 2))
        radii = rng.uniform(1.2, 2.4, len(dots))
        parts = [[circle(radius, radius, points=16) + dot] for radius, dot in zip(radii, dots, strict=True)]
        scene.add(rng, parts, materials[2], name="disk", material=2, iscrowd=1)
    _add_objects(rng, scene, materials, frame)
    return scene


def _add_objects(rng: Generator, scene: Scene, materials: list[_Material], frame: Array) -> None:
    """Put 2 to 4 objects; most beside an earlier one, and most of these of its material."""
    target = int(rng.integers(2, 5))
    placed: list[tuple[Array, float, int, str]] = []
    for _ in range(8 * target):
        radius = max(7.0, float(np.exp(rng.uniform(np.log(0.2), np.log(0.34)))) * float(frame.mean()))
        center, material = rng.uniform(0.2, 0.8, 2) * frame, int(rng.integers(len(materials)))
        name = str(rng.choice(list(OUTLINES)))
        beside = placed[int(rng.integers(len(placed)))] if placed and rng.uniform() < 0.75 else None
        if beside is not None and rng.uniform() < 0.9:  # then mostly of its color, and often of its texture too
            material, name = beside[2], beside[3] if rng.uniform() < 0.4 else name
        outline = contours_of(rng, name, np.zeros(2), radius)
        if beside is not None:
            way = unit(rng.uniform(0, 7)) * (radius + beside[1])
            depth = 0.005 if rng.uniform() < 0.65 else rng.uniform(0.05, 0.2)  # the first only touch
            center = np.clip(_approach(scene, outline, beside[0], way, depth), 0.1 * frame, 0.9 * frame)
        parts = [[contour + center for contour in outline]]
        surface = replace(materials[material], kind=_TEXTURES[name])
        if scene.add(rng, parts, surface, name=name, material=material, iscrowd=0):
            placed.append((center, radius, material, name))
        if len(placed) == target:
            return


def _approach(scene: Scene, outline: Contours, other: Array, way: Array, depth: float) -> Array:
    """Where an outline that comes toward `other` along `way` first hides `depth` of its own area of what is there."""
    for share in np.arange(1.05, 0.5, -0.03):
        center = other + share * way
        covered = coverage([[contour + center for contour in outline]], *scene.owner.shape)
        if covered is not None:
            window, alpha, _ = covered
            solid = alpha >= 0.5
            if (scene.owner[window][solid] > 0).sum() > depth * solid.sum():
                break
    return center


def photograph(rng: Generator, image: Array) -> Array:
    """Slight blur, sensor noise and 8 bits."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7))
    image = image + rng.uniform(1.0, 5.0) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
