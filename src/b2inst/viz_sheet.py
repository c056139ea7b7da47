"""A contact sheet: annotated images of a data set as thumbnails, to be looked at before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from b2inst import viz
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.ops.rasterize import rasterize

THUMBNAIL = 480  # pixels of the longer side, of small images as well: their captions need the room
MAX_NAMES = 20  # with more objects, their names would hide the image
GRAY = 128


@dataclass(frozen=True)
class Sheet:
    """One image of a contact sheet.

    Attributes:
        caption: written above it.
        path: of the image file; gray is drawn where it cannot be read.
        size: (height, width) that the annotations state.
        records: sound annotation records of the image.
    """

    caption: str
    path: Path
    size: tuple[int, int]
    records: Sequence[Mapping[str, Any]]


def contact_sheet(sheets: Sequence[Sheet], names: Mapping[int, str], columns: int = 4) -> Tensor:
    """Draw images with their masks and boxes, crowds hatched, in a table.

    Args:
        sheets: at least one.
        names: of the categories by id.
        columns: images per row.

    Returns:
        (3, H, W) uint8 picture.
    """
    pictures = {f"{number + 1}: {sheet.caption}": _thumbnail(sheet, names) for number, sheet in enumerate(sheets)}
    return viz.side_by_side(pictures, columns=min(columns, len(sheets)))


def _thumbnail(sheet: Sheet, names: Mapping[int, str]) -> Tensor:
    scale = THUMBNAIL / max(sheet.size)
    height, width = (max(1, round(side * scale)) for side in sheet.size)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST_EXACT
    image = cv2.resize(_pixels(sheet), (width, height), interpolation=interpolation)
    objects = [record for record in sheet.records if not record.get("iscrowd", 0)]
    crowd = np.zeros((height, width), bool)
    for record in sheet.records:
        if record.get("iscrowd", 0):
            crowd |= _mask(record, sheet.size, (height, width))
    masks = np.zeros((len(objects), height, width), bool)
    for mask, record in zip(masks, objects, strict=True):
        mask[:] = _mask(record, sheet.size, (height, width))
    boxes = torch.tensor([record["bbox"] for record in objects], dtype=torch.float32).reshape(-1, 4) * scale
    boxes[:, 2:] += boxes[:, :2]  # XYWH -> XYXY
    ids = sorted(names)
    labels = torch.tensor([ids.index(record["category_id"]) for record in objects], dtype=torch.int64)
    return viz.draw_instances(
        torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(masks), labels,
        [str(names[id]) for id in ids] if len(objects) <= MAX_NAMES else None,
        boxes=boxes, crowd=torch.from_numpy(crowd),
    )  # fmt: skip


def _pixels(sheet: Sheet) -> NDArray[np.uint8]:
    """The image at its annotated size; one of another size is stretched, to see whether the masks fit then."""
    try:
        return read_image(sheet.path, sheet.size)
    except DataError:
        image = cv2.imread(str(sheet.path)) if sheet.path.is_file() else None
        if image is None:
            return np.full((*sheet.size, 3), GRAY, np.uint8)
        return cv2.cvtColor(cv2.resize(image, sheet.size[::-1]), cv2.COLOR_BGR2RGB)


def _mask(record: Mapping[str, Any], size: tuple[int, int], thumbnail: tuple[int, int]) -> NDArray[np.bool_]:
    full = rasterize(record["segmentation"], *size).astype(np.uint8)
    return cv2.resize(full, thumbnail[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
