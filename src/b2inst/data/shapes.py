"""A built-in data set that needs no download: overlapping, touching, textured shapes as a real COCO set on disk.

    root/shapes.json                            generator, version and parameters; written last
    root/annotations/instances_{train,val}.json
    root/{train,val}/000001.jpg ...

Boundaries matter by construction: objects hide each other, neighbors often share color and texture and are told
apart by a faint contour, rim shading and another texture phase only; outlines are bent or concave and run into thin
tips, objects leave the frame, and stripes and stray lines make edges where no object ends. Colors say nothing about
the class, outline and texture do. One image in 50 is empty and one in 10 holds a crowd of dots.

Masks are what is visible, and no two overlap. One piece without holes is written as a polygon along the edges of its
pixels, the rest as compressed RLE, and crowds as uncompressed RLE as in COCO's own files; category ids have gaps.
Each image has its own random generator, so it does not depend on how many there are: the same seed gives the same
bytes (with the same NumPy and OpenCV on the same kind of CPU).

    python -m b2inst.data.shapes --root data/shapes --seed 0
"""

from __future__ import annotations

import argparse
import colorsys
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

VERSION = 13  # raise it with every change of the pictures or annotations: folders of older versions are made anew
GENERATOR = "b2inst.data.shapes"
SPLITS = ("train", "val")
CATEGORIES = {"disk": 2, "box": 3, "star": 5}
_ROUND = ("disk",)  # their supercategory; the others are "angular"
_FINE = 4  # outlines are filled on a grid this many times finer, then averaged
_MIN_VISIBLE = 24  # pixels, and below:
_MIN_VISIBLE_SHARE = (0.6, 0.6)  # share of the area in the frame, of an object and of a crowd

Array = NDArray[Any]
Contours = list[Array]  # each (P, 2) xy in pixels; together filled by the even-odd rule


@dataclass(frozen=True)
class Params:
    """What determines the bytes of a set, with the version of the generator.

    Args:
        seed: of all random numbers, at least 0.
        train_images: number of images in `train`.
        val_images: number of images in `val`.
        size: longest side of an image in pixels, at least 64; width and height vary down to 5/6 of it.

    Raises:
        ValueError: a value is out of its range.
    """

    seed: int = 0
    train_images: int = 600
    val_images: int = 120
    size: int = 192

    def __post_init__(self) -> None:
        for name, least in {"seed": 0, "train_images": 1, "val_images": 1, "size": 64}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} of the shapes data set: it has to be at least {least}")


# ----------------------------------------------------------------------------------------------------- outlines


def _circle(rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi, points: int = 72) -> Array:
    angle = np.linspace(start, stop, points)
    return np.stack([rx * np.cos(angle), ry * np.sin(angle)], axis=1)


def _edges(corners: Array, points: int = 12) -> Array:
    """A closed polygon with `points` on each edge, so that a warp bends the edges too."""
    t = np.linspace(0, 1, points, endpoint=False)[None, :, None]
    ends = np.roll(corners, -1, axis=0)
    return (corners[:, None] * (1 - t) + ends[:, None] * t).reshape(-1, 2)  # (edges, points, 2) -> (P, 2)


def _hole(rng: Generator, room: float) -> Contours:
    """A round hole in one object of ten, well inside of a circle of radius `room`."""
    return [_circle(*room * rng.uniform(0.35, 0.5, 2))] if rng.uniform() < 0.1 else []


def _disk(rng: Generator, radius: float) -> Contours:
    ry = radius * rng.uniform(0.6, 1.0)
    return [_circle(radius, ry), *_hole(rng, ry)]


def _box(rng: Generator, radius: float) -> Contours:
    x, y = 0.9 * radius, 0.9 * radius * rng.uniform(0.45, 0.95)
    return [_edges(np.array([[x, y], [-x, y], [-x, -y], [x, -y]])), *_hole(rng, y)]


def _star(rng: Generator, radius: float) -> Contours:
    tips = int(rng.integers(5, 8))
    radii = np.where(np.arange(2 * tips) % 2, rng.uniform(0.4, 0.55), rng.uniform(0.85, 1.1, 2 * tips)) * radius
    angle = np.arange(2 * tips) * np.pi / tips
    return [_edges(np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1))]


def _unit(angle: float) -> Array:
    return np.array([np.cos(angle), np.sin(angle)])


_OUTLINES: dict[str, Callable[[Generator, float], Contours]] = {
    "disk": _disk,
    "box": _box,
    "star": _star,
}


def _outline(rng: Generator, name: str, center: Array, radius: float) -> Contours:
    """The outline of one object: turned, bent by a smooth warp of the plane, and put at its place."""
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.stack([_unit(turn), _unit(turn + np.pi / 2)])
    waves = [
        (_unit(rng.uniform(0, 7)) * 2 * np.pi / (radius * rng.uniform(0.9, 2.2)), _unit(rng.uniform(0, 7)), phase)
        for phase in rng.uniform(0, 7, 3)
    ]
    contours = [contour @ rotation for contour in _OUTLINES[name](rng, radius)]
    bends = [sum(np.sin(c @ wave + phase)[:, None] * way for wave, way, phase in waves) for c in contours]
    return [c + center + 0.035 * radius * bend for c, bend in zip(contours, bends, strict=True)]


def _coverage(parts: list[Contours], height: int, width: int) -> tuple[tuple[slice, slice], Array, Array] | None:
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


# ----------------------------------------------------------------------------------------------------- painting


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
class _Scene:
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
        covered = _coverage(parts, *self.owner.shape)
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


def _compose(rng: Generator, size: int, empty: bool, crowd: bool) -> _Scene:
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
    scene = _Scene(image, np.zeros((height, width), np.uint8), _unit(rng.uniform(0, 7)), contour, shading)
    if empty:
        return scene
    frame = np.array([width, height])
    if crowd:
        center, spread = rng.uniform(0.2, 0.8, 2) * frame, size * rng.uniform(0.04, 0.09)
        dots = rng.normal(center, spread, (int(rng.integers(15, 40)), 2))
        radii = rng.uniform(1.2, 2.4, len(dots))
        parts = [[_circle(radius, radius, points=16) + dot] for radius, dot in zip(radii, dots, strict=True)]
        scene.add(rng, parts, materials[2], name="disk", material=2, iscrowd=1)
    _add_objects(rng, scene, materials, frame)
    return scene


def _add_objects(rng: Generator, scene: _Scene, materials: list[_Material], frame: Array) -> None:
    """Put 2 to 4 objects; most beside an earlier one, and most of these of its material."""
    target = int(rng.integers(2, 5))
    placed: list[tuple[Array, float, int, str]] = []
    for _ in range(8 * target):
        radius = max(7.0, float(np.exp(rng.uniform(np.log(0.2), np.log(0.34)))) * float(frame.mean()))
        center, material = rng.uniform(0.2, 0.8, 2) * frame, int(rng.integers(len(materials)))
        name = str(rng.choice(list(CATEGORIES)))
        beside = placed[int(rng.integers(len(placed)))] if placed and rng.uniform() < 0.75 else None
        if beside is not None and rng.uniform() < 0.9:  # then mostly of its color, and often of its texture too
            material, name = beside[2], beside[3] if rng.uniform() < 0.4 else name
        outline = _outline(rng, name, np.zeros(2), radius)
        if beside is not None:
            way = _unit(rng.uniform(0, 7)) * (radius + beside[1])
            depth = 0.005 if rng.uniform() < 0.65 else rng.uniform(0.05, 0.2)  # the first only touch
            center = np.clip(_approach(scene, outline, beside[0], way, depth), 0.1 * frame, 0.9 * frame)
        parts = [[contour + center for contour in outline]]
        surface = replace(materials[material], kind=_TEXTURES[name])
        if scene.add(rng, parts, surface, name=name, material=material, iscrowd=0):
            placed.append((center, radius, material, name))
        if len(placed) == target:
            return


def _approach(scene: _Scene, outline: Contours, other: Array, way: Array, depth: float) -> Array:
    """Where an outline that comes toward `other` along `way` first hides `depth` of its own area of what is there."""
    for share in np.arange(1.05, 0.5, -0.03):
        center = other + share * way
        covered = _coverage([[contour + center for contour in outline]], *scene.owner.shape)
        if covered is not None:
            window, alpha, _ = covered
            solid = alpha >= 0.5
            if (scene.owner[window][solid] > 0).sum() > depth * solid.sum():
                break
    return center


def _photograph(rng: Generator, image: Array) -> Array:
    """Slight blur, sensor noise and 8 bits."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.7))
    image = image + rng.uniform(1.0, 5.0) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


# -------------------------------------------------------------------------------------------------- annotations


def _polygon(mask: Array, x0: int, y0: int) -> list[float] | None:
    """The polygon along the edges of the pixels, or None if one cannot say it (several pieces, holes, degenerate)."""
    doubled = mask.repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if len(contours) != 1:
        return None
    # of the doubled pixels 2k and 2k+1 the outer edges are at k and k+1 in pixels of the mask
    corners = np.round((contours[0].reshape(-1, 2) + 0.5) / 2).astype(int)  # (P, 1, 2) -> (P, 2)
    corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    step, following = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    corners = corners[(np.sign(step) != np.sign(following)).any(axis=1)]  # without the points along straight edges
    return [float(v) for v in (corners + [x0, y0]).ravel()] if len(corners) >= 4 else None


def _segmentation(mask: Array, iscrowd: int, x0: int, y0: int, x1: int, y1: int) -> list[list[float]] | dict[str, Any]:
    height, width = mask.shape
    if iscrowd:
        runs = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0))
        return {"size": [height, width], "counts": np.diff(runs, prepend=0, append=mask.size).tolist()}
    rle = rle_tools.encode(np.asfortranarray(mask))
    polygon = _polygon(mask[y0:y1, x0:x1], x0, y0)
    if polygon is not None:
        drawn = rle_tools.merge(rle_tools.frPyObjects([polygon], height, width))
        if rle_tools.iou([drawn], [rle], [0])[0, 0] == 1.0:  # what readers will see has to be what is visible
            return [polygon]
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _annotations(scene: _Scene, image_id: int) -> list[dict[str, Any]]:
    """COCO annotations; `material` is ours and tells which objects share color and texture."""
    annotations = []
    for k, thing in enumerate(scene.objects, start=1):
        mask = (scene.owner == k).astype(np.uint8)
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x0, y0, x1, y1 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
        annotation = {
            "id": image_id * 100 + k,
            "image_id": image_id,
            "category_id": CATEGORIES[thing["name"]],
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": float(mask.sum()),
            "iscrowd": thing["iscrowd"],
            "segmentation": _segmentation(mask, thing["iscrowd"], x0, y0, x1, y1),
            "material": thing["material"],
        }
        annotations.append(annotation)
    return annotations


# -------------------------------------------------------------------------------------------------------- files


def _write_split(folder: Path, params: Params, split: str) -> None:
    number = SPLITS.index(split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for index in range(_count(params, split)):
        rng = np.random.default_rng([params.seed, number, index])
        # by index and not by chance, so that small sets have them too
        scene = _compose(rng, params.size, empty=index % 50 == 7, crowd=index % 10 == 3)
        image_id = number * 1_000_000 + index + 1
        name, (height, width) = f"{index + 1:06d}.jpg", scene.owner.shape
        picture = _photograph(rng, scene.image)
        _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(86, 95))])
        (folder / split / name).write_bytes(encoded.tobytes())
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        annotations += _annotations(scene, image_id)
    kinds = {name: "round" if name in _ROUND else "angular" for name in CATEGORIES}
    categories = [{"id": CATEGORIES[name], "name": name, "supercategory": kind} for name, kind in kinds.items()]
    info = {"description": f"b2inst shapes, {split}", "version": str(VERSION)}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")))


def _count(params: Params, split: str) -> int:
    return params.train_images if split == "train" else params.val_images


def _manifest(params: Params) -> dict[str, Any]:
    return {"generator": GENERATOR, "version": VERSION, "params": asdict(params)}


def _read_manifest(root: Path) -> dict[str, Any] | None:
    """The content of shapes.json, or None where there is none of ours."""
    try:
        content = json.loads((root / "shapes.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("generator") == GENERATOR else None


def _refuse_foreign(root: Path) -> None:
    """Raise if `root` holds anything that this generator did not write."""
    if not root.exists():
        return
    remedy = "move it away or choose another root; nothing was changed"
    if not root.is_dir():
        raise FileExistsError(f"{root} is a file, and the shapes data set needs a folder: {remedy}")
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    manifest = _read_manifest(root)
    own = {"shapes.json", *(f"annotations/instances_{split}.json" for split in SPLITS)} if manifest else set()
    for split in SPLITS:
        count = manifest.get("params", {}).get(f"{split}_images", 0) if manifest else 0
        own |= {f"{split}/{index + 1:06d}.jpg" for index in range(count)}
    if foreign := sorted(found - own):
        why = "besides a shapes data set" if manifest else "and no shapes.json"
        listed = ", ".join(foreign[:3])
        raise FileExistsError(f"{root} holds {len(foreign)} file(s) of others {why} ({listed}): {remedy}")


def _install(built: Path, root: Path, params: Params, keep_equal: bool) -> None:
    """Rename `built` to `root`; another process may do the same at any moment."""
    for attempt in range(8):
        if keep_equal and _read_manifest(root) == _manifest(params):
            return
        _refuse_foreign(root)
        try:
            if root.exists():
                root.rename(built.parent / f"replaced{attempt}")
            built.rename(root)
            return
        except OSError:  # the other one was faster: look again, and give up only if it stays like this
            if attempt == 7:
                raise


def _make(root: Path | str, params: Params, keep_equal: bool) -> None:
    root = Path(root).expanduser().resolve()
    if keep_equal and _read_manifest(root) == _manifest(params):
        return
    _refuse_foreign(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the images are small: more threads only fight each other
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        built = temporary / "built"  # made with the user's umask, while a temporary folder is closed to others
        for split in SPLITS:
            _write_split(built, params, split)
        (built / "shapes.json").write_text(json.dumps(_manifest(params), indent=2) + "\n")
        _install(built, root, params, keep_equal)
    finally:
        cv2.setNumThreads(threads)
        shutil.rmtree(temporary, ignore_errors=True)


def generate(
    root: Path | str, *, seed: int = 0, train_images: int = 600, val_images: int = 120, size: int = 192
) -> None:
    """Write the data set to `root`, replacing one that this generator wrote before.

    It is written to a folder beside `root` and renamed, so that `root` never holds half a set.

    Args:
        root: folder of the set; made with its parents.
        seed: of all random numbers, at least 0.
        train_images: number of images in `train`.
        val_images: number of images in `val`.
        size: longest side of an image in pixels, at least 64; width and height vary down to 5/6 of it.

    Raises:
        FileExistsError: `root` holds files that this generator did not write.
        ValueError: a parameter is out of its range.
    """
    _make(root, Params(seed, train_images, val_images, size), keep_equal=False)


def ensure(root: Path | str, **params: int) -> None:
    """Make sure that `root` holds the data set with these parameters; at once if its shapes.json says so.

    A set of other parameters, or of another version of the generator, is replaced. Several processes may
    call it at the same time: the first to finish wins, the others drop what they made.

    Args:
        root: folder of the set.
        params: as of `generate`.

    Raises:
        FileExistsError: `root` holds files that this generator did not write.
        ValueError: a parameter is out of its range.
    """
    _make(root, Params(**params), keep_equal=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of `ensure`; `argv` defaults to that of the process."""
    parser = argparse.ArgumentParser(prog=f"python -m {GENERATOR}", description="Write the built-in shapes data set.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the set")
    for name, default in asdict(Params()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="default: %(default)s")
    options = vars(parser.parse_args(argv))
    root = options.pop("root")
    try:
        ensure(root, **options)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    print(f"{root}: {options['train_images']} train and {options['val_images']} val images, seed {options['seed']}")


if __name__ == "__main__":
    main()
