"""Checks of single results ("records") in COCO format, with errors that say what is wrong and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from b2inst.metrics.ground_truth import GroundTruth


def check_record(record: Any, truth: GroundTruth, need_mask: bool = False) -> None:
    """Check keys, types and ids of one result against the annotations.

    Args:
        record: `image_id`, `category_id`, `score`, and `bbox` (XYWH in pixels) or `segmentation` (compressed RLE)
            or both; `box_score` (ranks the boxes in place of `score`) is optional, other keys are ignored.
        truth: the annotations that it belongs to.
        need_mask: refuse a record without `segmentation`.

    Raises:
        ValueError: the first thing that is wrong with it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"is a {type(record).__name__}; it must be an object with image_id, category_id, score")
    for key in ("image_id", "category_id", "score"):
        if key not in record:
            raise ValueError(f"has no '{key}' (found: {', '.join(map(str, record)) or 'nothing'}); add it")
    _check_id(record, "image_id", truth.imgs, truth.source, "predict on the images of this annotation file")
    _check_id(record, "category_id", truth.cats, truth.source, "map the network's labels back to the ids of the file")
    for key in ("score", "box_score"):
        if key in record and not _is_finite(record[key]):
            raise ValueError(f"has {key} {record[key]!r}; it must be a finite number, check the model for NaN")
    has_box, has_mask = record.get("bbox") is not None, record.get("segmentation") is not None
    if not has_box and not has_mask:
        raise ValueError("has neither 'bbox' nor 'segmentation'; add at least one of them")
    if need_mask and not has_mask:
        raise ValueError(
            "has no 'segmentation', which mask and boundary AP need; add it, or evaluate boxes only with kinds=[box]"
        )
    if has_box:
        _check_box(record["bbox"])
    if has_mask:
        _check_rle(record["segmentation"], truth.image_size(record["image_id"]))


def check_runs(rle: Mapping[str, Any]) -> None:
    """Check that the runs of a compressed RLE fill its image: pycocotools reads past damaged ones silently.

    Raises:
        ValueError: the runs do not add up to height x width, or the text is no RLE.
    """
    height, width = rle["size"]
    runs = rle_runs(rle["counts"])
    if len(runs) == 0 or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(
            f"has a segmentation whose runs add up to {int(runs.sum())} pixels in place of {height} x {width} = "
            f"{height * width}; the text is damaged, encode the mask again with pycocotools.mask.encode"
        )


def rle_runs(counts: str | bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths.

    Five bits a character (offset 48), bit 32 says that more follow, bit 16 of the last one is the sign;
    from the fourth run on, each is stored as the difference to the run two before it.

    Args:
        counts: `counts` of a compressed RLE.

    Returns:
        (runs,) int64, lengths of alternating runs of 0 and 1 in column-major order, beginning with 0.

    Raises:
        ValueError: a character is outside the code, or the text ends within a number.

    Example:
        >>> rle_runs("0121").tolist()  # the fourth is 1 more than the second
        [0, 1, 2, 2]
    """
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else bytes(counts)
    chunk = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(chunk) and (chunk.min() < 0 or chunk.max() > 63 or chunk[-1] & 32):
        raise ValueError("has a segmentation that is no compressed RLE; encode the mask with pycocotools.mask.encode")
    last = (chunk & 32) == 0  # (characters,) True at the end of a number
    number = np.cumsum(last) - last
    first = np.flatnonzero(np.concatenate(([True], last[:-1]))) if len(chunk) else np.zeros(0, np.int64)
    shift = 5 * (np.arange(len(chunk)) - first[number])
    if len(shift) and shift.max() > 55:
        raise ValueError("has a segmentation with a run of absurd length; encode the mask again")
    runs = np.zeros(len(first), np.int64)
    np.add.at(runs, number, (chunk & 31) << shift)
    negative = (chunk[last] & 16) != 0
    runs[negative] -= np.int64(1) << (shift[last][negative] + 5)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _check_id(record: Mapping[str, Any], key: str, known: Mapping[int, Any], source: str, remedy: str) -> None:
    value = record[key]
    if type(value) is int and value in known:  # nearly all of them; isinstance with Integral is slow
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"has {key} {value!r} ({type(value).__name__}); it must be an integer")
    if value not in known:
        raise ValueError(f"has {key} {value}, which {source} does not list; {remedy} ({_some(known)})")


def _check_box(box: Any) -> None:
    try:
        numbers = list(box)
    except TypeError:
        numbers = []
    if isinstance(box, str) or len(numbers) != 4 or not all(map(_is_finite, numbers)):
        raise ValueError(f"has bbox {box!r}; it must be 4 finite numbers: x, y, width, height in pixels")
    if numbers[2] < 0 or numbers[3] < 0:
        raise ValueError(f"has bbox {box!r} with a negative size; COCO boxes are x, y, width, height, not two corners")


def _check_rle(rle: Any, size: tuple[int, int]) -> None:
    if not isinstance(rle, Mapping) or "size" not in rle or not isinstance(rle.get("counts"), str | bytes):
        kind = "polygons" if isinstance(rle, list) else "no compressed RLE"
        raise ValueError(
            f"has a segmentation that is {kind}; it must be {{'size': [height, width], 'counts': text}}: encode "
            "the mask with pycocotools.mask.encode (frPyObjects for polygons and uncompressed RLE)"
        )
    if list(rle["size"]) != list(size):
        raise ValueError(
            f"has a segmentation of size {list(rle['size'])}, but its image is {list(size)} (height, width); "
            "encode masks at the original size of the image"
        )


def _is_finite(value: Any) -> bool:
    if type(value) is float:  # as above
        return math.isfinite(value)
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _some(ids: Mapping[int, Any], limit: int = 10) -> str:
    shown = sorted(ids)
    return ", ".join(map(str, shown[:limit])) + (", ..." if len(shown) > limit else "")
