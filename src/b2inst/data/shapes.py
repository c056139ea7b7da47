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
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from b2inst.data.errors import DataError
from b2inst.data.shapes_outlines import Array
from b2inst.data.shapes_scene import Scene, compose, photograph

log = logging.getLogger(__name__)

VERSION = 13  # raise it with every change of the pictures or annotations: folders of older versions are made anew
GENERATOR = "b2inst.data.shapes"
SPLITS = ("train", "val")
CATEGORIES = {"disk": 2, "box": 3, "star": 5}
_ROUND = ("disk",)  # their supercategory; the others are "angular"


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


def _annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
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
        scene = compose(rng, params.size, empty=index % 50 == 7, crowd=index % 10 == 3)
        image_id = number * 1_000_000 + index + 1
        name, (height, width) = f"{index + 1:06d}.jpg", scene.owner.shape
        picture = photograph(rng, scene.image)
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


def _foreign(root: Path) -> str | None:
    """What `root` holds that this generator did not write, as the sentence of an error; None if there is nothing."""
    if not root.exists():
        return None
    remedy = "move it away or choose another root, or data=custom for a set of your own; nothing was changed"
    if not root.is_dir():
        return f"{root} is a file, and the shapes data set needs a folder: {remedy}"
    found = {Path(at, name).relative_to(root).as_posix() for at, _, names in os.walk(root) for name in names}
    manifest = _read_manifest(root)
    own = {"shapes.json", *(f"annotations/instances_{split}.json" for split in SPLITS)} if manifest else set()
    for split in SPLITS:
        count = manifest.get("params", {}).get(f"{split}_images", 0) if manifest else 0
        own |= {f"{split}/{index + 1:06d}.jpg" for index in range(count)}
    foreign = sorted(found - own)
    if not foreign:
        return None
    why = "besides a shapes data set" if manifest else "and no shapes.json"
    return f"{root} holds {len(foreign)} file(s) of others {why} ({', '.join(foreign[:3])}): {remedy}"


def _refuse_foreign(root: Path) -> None:
    """Raise if `root` holds anything that this generator did not write."""
    trouble = _foreign(root)
    while trouble is not None:
        time.sleep(0.05)  # another process may have exchanged the folder during the look: only what stays is foreign
        before, trouble = trouble, _foreign(root)
        if trouble == before:
            raise DataError(trouble)


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
        log.info("made the built-in shapes in %s; data=custom takes a set of your own", root)
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
        DataError: `root` holds files that this generator did not write.
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
        DataError: `root` holds files that this generator did not write.
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
    except ValueError as error:
        parser.error(str(error))
    print(f"{root}: {options['train_images']} train and {options['val_images']} val images, seed {options['seed']}")


if __name__ == "__main__":
    main()
