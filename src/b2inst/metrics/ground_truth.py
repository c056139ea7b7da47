"""Annotations in COCO format, read once, checked as training checks them, and completed for the scoring."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from b2inst.data.index import load_checked, without_collection

OPTIONAL = ("bbox", "segmentation")  # of an annotation file: one follows from the other, and boxes need no masks
_KEYS = ("images", "annotations", "categories")


class GroundTruth(COCO):
    """A `pycocotools.coco.COCO` that owns its annotations and has every field the scoring reads.

    What is missing follows from the rest: `area` and `bbox` from the mask (`area` from the box where there is
    no mask), `iscrowd` is 0, `info` is empty. Annotations of images or categories that are not listed are left out,
    as pycocotools does when it scores; in a file they are an error, see `load_ground_truth`. Annotation ids are
    renumbered from 1, because pycocotools takes a match with id 0 for no match and would count a hit on that object
    as an error.

    Args:
        dataset: content of an annotation file; it is not changed.
        source: how messages name it.

    Raises:
        ValueError: an entry is missing or damaged, or an annotation id occurs twice; the message says which one and
            what to do.
    """

    def __init__(self, dataset: dict[str, Any], source: str = "annotations") -> None:
        super().__init__()
        self.source = source
        self._rasterized = False
        _check_dataset(dataset, source)
        images = {image["id"] for image in dataset["images"]}
        categories = {category["id"] for category in dataset["categories"]}
        kept = [
            dict(annotation)
            for annotation in dataset["annotations"]
            if annotation["image_id"] in images and annotation["category_id"] in categories
        ]
        self.dataset = {
            "info": dataset.get("info", {}),
            "images": list(dataset["images"]),
            "categories": list(dataset["categories"]),
            "annotations": kept,
        }
        self._given_ids: dict[int, Any] = {}
        for number, annotation in enumerate(kept, start=1):
            self._given_ids[number] = annotation.get("id", f"at position {number - 1}")
            annotation["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            self.createIndex()
        for annotation in kept:
            self._complete(annotation)

    def class_names(self) -> dict[int, str]:
        """Return a name for each category id; a name that occurs twice gets its id behind it."""
        names = {key: str(category.get("name", key)) for key, category in sorted(self.cats.items())}
        counts: dict[str, int] = {}
        for name in names.values():
            counts[name] = counts.get(name, 0) + 1
        return {key: name if counts[name] == 1 else f"{name} ({key})" for key, name in names.items()}

    def image_size(self, image_id: int) -> tuple[int, int]:
        """Return (height, width) of an image in pixels.

        Raises:
            ValueError: the file gives no size for this image.
        """
        image = self.imgs[image_id]
        try:
            return int(image["height"]), int(image["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.source}: image {image_id} has no 'height' and 'width' in pixels, which masks need; add them"
            ) from error

    def rasterize(self) -> None:
        """Turn every segmentation (polygons, uncompressed RLE) into a compressed RLE, once.

        Raises:
            ValueError: an annotation has no mask or one that cannot be read.
        """
        if self._rasterized:
            return
        for annotation in self.dataset["annotations"]:
            annotation["segmentation"] = self._rle(annotation)
        self._rasterized = True

    def _rle(self, annotation: dict[str, Any]) -> dict[str, Any]:
        name = f"{self.source}: annotation {self._given_ids[annotation['id']]}"
        if not annotation.get("segmentation"):
            raise ValueError(
                f"{name} has no segmentation, so mask and boundary AP cannot be computed; add one, "
                "or evaluate boxes only with kinds=[box]"
            )
        height, width = self.image_size(annotation["image_id"])
        try:
            rle = self.annToRLE(annotation)
        except Exception as error:  # pycocotools raises TypeError, IndexError or a bare Exception
            raise ValueError(
                f"{name} has a segmentation that cannot be read ({error}); allowed are polygons of at least 3 points "
                "([[x1, y1, x2, y2, x3, y3, ...], ...]) and RLE; repair or remove it"
            ) from error
        if list(rle["size"]) != [height, width]:
            raise ValueError(
                f"{name} has an RLE of size {list(rle['size'])}, but its image is [{height}, {width}] "
                "(height, width); encode the mask at the size of the image"
            )
        return rle

    def _complete(self, annotation: dict[str, Any]) -> None:
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        has_box, has_area = annotation.get("bbox") is not None, annotation.get("area") is not None
        if has_box and has_area:
            return
        if annotation.get("segmentation"):
            rle = self._rle(annotation)
            if not has_box:
                annotation["bbox"] = rle_tools.toBbox(rle).tolist()
            if not has_area:
                annotation["area"] = float(rle_tools.area(rle))
        elif has_box:
            annotation["area"] = float(annotation["bbox"][2] * annotation["bbox"][3])
        else:
            raise ValueError(
                f"{self.source}: annotation {self._given_ids[annotation['id']]} has neither 'bbox' nor 'segmentation'; "
                "add one of them or remove it"
            )


def load_ground_truth(annotations: str | Path | dict[str, Any] | COCO) -> GroundTruth:
    """Read annotations in COCO format.

    A file has to pass the checks of training and `b2inst.verify`, except that an annotation may lack its box, and,
    where boxes alone are scored, its mask.

    Args:
        annotations: path of a JSON file, its content, or a `COCO` object; a `GroundTruth` is returned as it is.

    Returns:
        Annotations with every field that scoring reads.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON or not an annotation file, or an entry is damaged; of a file it is a `DataError`.
    """
    if isinstance(annotations, GroundTruth):
        return annotations
    if isinstance(annotations, COCO):
        return GroundTruth(annotations.dataset)
    if isinstance(annotations, dict):
        return GroundTruth(annotations)
    path = Path(annotations)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist; check the path")
    with without_collection():
        return GroundTruth(load_checked(path, OPTIONAL), source=str(path))


def read_json(path: str | Path, what: str) -> Any:
    """Read a JSON file, with errors that name it and what it should have been.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        reason = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{what} {path} {reason}; check the path")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{what} {path} is not JSON ({error}); write it again, it may have been cut off") from error


def _check_dataset(dataset: Any, source: str) -> None:
    if not isinstance(dataset, dict):
        raise ValueError(
            f"{source}: an annotation file is a JSON object with {', '.join(_KEYS)}, but this is a "
            f"{type(dataset).__name__}; a list is a results file: give it as the predictions"
        )
    for key in _KEYS:
        if not isinstance(dataset.get(key), list):
            raise ValueError(
                f"{source}: the list '{key}' is missing (found: {', '.join(map(str, dataset)) or 'nothing'}); "
                f"an annotation file has {', '.join(_KEYS)}. Test sets have no annotations"
            )
    required = {"images": ("id",), "categories": ("id",), "annotations": ("image_id", "category_id")}
    for key, names in required.items():
        for index, entry in enumerate(dataset[key]):
            missing = [name for name in names if not isinstance(entry, dict) or name not in entry]
            if missing:
                raise ValueError(f"{source}: {key}[{index}] has no '{missing[0]}'; add it")
    first: dict[Any, int] = {}
    for index, annotation in enumerate(dataset["annotations"]):
        if "id" in annotation and first.setdefault(annotation["id"], index) != index:
            raise ValueError(
                f"{source}: annotations[{index}] (id {annotation['id']}): key 'id' is not unique; "
                f"annotations[{first[annotation['id']]}] has it too: renumber, or remove the duplicate"
            )
