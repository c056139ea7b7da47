"""What the fuzz tests call in a process of their own: each target says "used" or "refused", or raises."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from b2inst.data import index as index_module
from b2inst.data.coco import CocoDataset, augment_objects
from b2inst.data.damaged import Damaged
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.data.index import CocoIndex, CocoObject
from b2inst.data.pixels import to_rgb
from b2inst.data.problems import Problem, severity
from b2inst.data.rle import runs
from b2inst.data.scan import extent, missing_files, scan_annotations, unrecorded_files
from b2inst.data.scan_images import scan_images
from b2inst.metrics.ground_truth import load_ground_truth
from b2inst.ops.rasterize import rasterize
from b2inst.predict_source import ImageFiles
from data.make_pictures import HEIGHT, WIDTH, expected, pictures

RECORD = r"(images|categories|annotations)(\[\d+\]| \(id -?\d+\))"
LENIENT = "key '(bbox|segmentation)' is (missing|None|a NoneType|an empty list)"  # what an evaluation may do without
WHOLE_FILE = "is no JSON file|is nested too deeply|holds a |the list '\\w+' is (missing|empty)"


def annotations(folder: Path, text: bytes) -> str:
    """Read, rasterize and verify an annotation file."""
    path = folder / "annotations.json"
    path.write_bytes(text)
    index = _read(path)
    with mock.patch.object(index_module.orjson, "loads", side_effect=ValueError):
        again = _read(path)
    assert type(again) is type(index), f"with orjson: {index}, with json: {again}"
    if isinstance(index, CocoIndex):
        assert _content(index) == _content(again), "orjson and json read different values"
        _rasterize(index, folder)
    _verify(path, folder, index)
    _score(path, index)
    return "used" if isinstance(index, CocoIndex) else "refused"


def _read(path: Path) -> CocoIndex | str:
    """The index, or the message of the refusal, which names file and record."""
    try:
        return CocoIndex.read(path)
    except DataError as error:
        message = str(error)
    assert re.match(rf"{re.escape(str(path))}: ({RECORD}|{WHOLE_FILE})", message), message
    assert message.isprintable() and len(message.encode()) < 1500, message
    return message


def _score(path: Path, index: CocoIndex | str) -> None:
    """The evaluation refuses what training refuses, but for boxes or masks that are missing, and bears the rest."""
    try:
        truth = load_ground_truth(path)
    except ValueError as error:
        assert isinstance(index, str) and (str(error) == index or re.search(LENIENT, index)), error
        assert re.match(rf"{re.escape(str(path))}: ({RECORD}|{WHOLE_FILE}|annotation )", str(error)), str(error)
        return
    if isinstance(index, str):
        assert re.search(LENIENT, index), index
        return
    truth.rasterize()
    assert len(truth.anns) == sum(len(index.objects(image.id)) for image in index.images)


def _content(index: CocoIndex) -> list[object]:
    images = [(image, [(o.id, o.label, o.crowd, _plain(o)) for o in index.objects(image.id)]) for image in index.images]
    return [images, index.category_ids, index.class_names, index.class_counts()]


def _plain(found: CocoObject) -> object:
    polygons = found.segmentation
    return polygons if isinstance(polygons, dict) else [np.asarray(polygon).tolist() for polygon in polygons]


def _rasterize(index: CocoIndex, folder: Path) -> None:
    for image in index.images:
        assert (folder / image.file_name).absolute().is_relative_to(folder) and ".." not in image.file_name.split("/")
        objects = index.objects(image.id)
        for found in objects:
            _check_mask(rasterize(found.segmentation, *image.size), found, image.size)
        if image.size[0] * image.size[1] < 1e6:
            pixels = np.zeros((*image.size, 3), np.uint8)
            _, patches, _ = augment_objects(pixels, objects, None, 0)
            for k, (x, y, patch) in patches.items():
                full = rasterize(objects[k].segmentation, *image.size)
                assert full[y : y + patch.shape[0], x : x + patch.shape[1]].sum() == patch.sum() == full.sum()


def _check_mask(mask: np.ndarray, found: CocoObject, size: Sequence[int]) -> None:
    assert mask.shape == tuple(size) and mask.dtype == bool
    if isinstance(found.segmentation, dict):
        assert mask.sum() == runs(found.segmentation["counts"])[1::2].sum()
    elif mask.any():
        x0, y0, x1, y1 = extent(found.segmentation)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert rows[0] >= y0 - 1 and rows[-1] <= y1 + 1 and columns[0] >= x0 - 1 and columns[-1] <= x1 + 1


def _verify(path: Path, folder: Path, index: CocoIndex | str) -> None:
    """`b2inst.verify` collects problems, and has an error if and only if training refuses the file."""
    problems: list[Problem] = []
    scan = scan_annotations(path, problems.append)
    errors = [str(problem) for problem in problems if severity(problem.kind) == "error"]
    assert index in errors if isinstance(index, str) else not errors, (index, errors)
    missing = missing_files(folder, [image.file_name for image in scan.images])
    for found in scan_images(scan, folder, missing, threads=1, decode=False):
        problems += found
    list(unrecorded_files(folder, set()))
    json.dumps([str(problem) for problem in problems], ensure_ascii=False).encode()
    scan.counts()


def image(folder: Path, given: tuple[str, str, bytes]) -> str:
    """Read a picture as training, prediction and `b2inst.verify` do.

    Args:
        folder: to write it into.
        given: name of the picture that it was made of ("" for none), name of the file, and its bytes.
    """
    kind, name, content = given
    path = folder / name
    path.write_bytes(content)
    try:
        pixels = _pixels(path)
        _check_picture(kind, content, pixels)
        if pixels is None or pixels.size < 1e7:  # others take long
            _check_routes(path, pixels)
        _check_pillow(content)
    finally:
        path.unlink()
    return "refused" if pixels is None else "used"


def _pixels(path: Path, size: tuple[int, int] | None = None) -> np.ndarray | None:
    try:
        pixels = read_image(path, size)
    except DataError as error:
        message = str(error)
        assert message.startswith(f"{path}: ") and "; " in message and len(message) < 1000, message
        return None
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    assert size in (None, pixels.shape[:2])
    return pixels


def _check_picture(kind: str, content: bytes, pixels: np.ndarray | None) -> None:
    """A whole file is read as Pillow reads it; of a part of it, nothing is read, or the same."""
    if not kind:
        return
    whole = pictures()[kind]
    if content == whole:
        assert pixels is not None, f"{kind}: is refused"
    if pixels is not None and whole.startswith(content):
        reference = expected(kind)
        assert pixels.shape == reference.shape, (kind, pixels.shape)
        assert np.abs(pixels.astype(int) - reference).mean() < 2, f"{kind}: other pixels, {len(content)}/{len(whole)}"


def _check_routes(path: Path, pixels: np.ndarray | None) -> None:
    """All who read files agree."""
    assert _pixels(path, (HEIGHT + 1, 7)) is None or pixels.shape[:2] in ((HEIGHT + 1, 7), (7, HEIGHT + 1))
    (frame,) = ImageFiles("fuzz", [path]).frames()
    assert (frame.pixels is None) == (pixels is None) == bool(frame.problem)
    height, width = (HEIGHT, WIDTH) if pixels is None else pixels.shape[:2]
    record = {"id": 1, "file_name": path.name, "height": height, "width": width}
    content = {"images": [record], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    (path.parent / "annotations.json").write_text(json.dumps(content))
    index = CocoIndex.read(path.parent / "annotations.json")
    sample = CocoDataset(index, path.parent, skip_damaged=True)[0]
    assert isinstance(sample, Damaged) == (pixels is None)
    problems = list(scan_images(scan_annotations(index.path, lambda _: None), path.parent, [], threads=1))
    assert bool(problems[0]) == (pixels is None)


def _check_pillow(content: bytes) -> None:
    """A Pillow image is taken or refused, too; Pillow reads most of a file only when it is asked for pixels."""
    try:
        opened = Image.open(io.BytesIO(content))
    except Exception:  # none of ours
        return
    if opened.width * opened.height < 1e7:
        try:
            to_rgb(opened, "image 7")
        except ValueError as error:
            assert str(error).startswith("image 7: "), error
