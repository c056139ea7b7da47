"""Results files in COCO format: read with checks, write, and score without a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from b2inst.metrics.coco import KINDS, CocoEvaluator
from b2inst.metrics.ground_truth import load_ground_truth, read_json
from b2inst.metrics.records import check_record, check_runs
from b2inst.metrics.scores import Scores, write_json

__all__ = ["Scores", "evaluate_files", "load_results", "save_results"]

log = logging.getLogger(__name__)


def load_results(path: str | Path, annotations: str | Path | dict[str, Any] | COCO) -> list[dict[str, Any]]:
    """Read a results file and check every record of it.

    Args:
        path: JSON list of results (image_id, category_id, score, bbox XYWH and/or segmentation as compressed RLE).
        annotations: the annotations that the results belong to.

    Returns:
        The records, as they stand in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a results file, or a record does not fit the annotations; the message names file,
            record and remedy.
    """
    truth = load_ground_truth(annotations)
    records = read_json(path, "results file")
    if isinstance(records, dict):
        hint = "this looks like an annotation file" if "images" in records else "a JSON object"
        if isinstance(records.get("annotations"), list):
            hint += "; if its 'annotations' are results, write that list alone"
        raise ValueError(f"results file {path} must be a JSON list of results, but it is {hint}")
    if not isinstance(records, list):
        raise ValueError(f"results file {path} must be a JSON list of results, but it is a {type(records).__name__}")
    for index, record in enumerate(records):
        try:
            check_record(record, truth)
            if record.get("segmentation") is not None:
                check_runs(record["segmentation"])
        except ValueError as error:
            raise ValueError(f"results file {path}: record {index} {error}") from None
    return records


def save_results(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as a results file that `load_results` and pycocotools read; a reader never sees half of it.

    Args:
        path: file to write; folders are made, an old file is replaced.
        records: results; `counts` may be bytes and numbers may be NumPy's. They are not changed.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
        TypeError: a value is nothing that JSON can hold.
    """
    try:
        write_json([_plain(record) for record in records], path)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}; check the model for NaN scores or boxes") from error


def evaluate_files(
    predictions: str | Path,
    annotations: str | Path | dict[str, Any] | COCO,
    output: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    dilation_ratio: float = 0.02,
    max_detections: Sequence[int] = (1, 10, 100),
    detection_area: str = "box",
    backend: str = "fast",
) -> Scores:
    """Score a results file, without a model. All images of the annotation file count, as COCO's rules say.

    Args:
        predictions: results file.
        annotations: annotation file.
        output: where to write the scores as JSON, if anywhere.
        kinds: of `box`, `mask`, `boundary`; None is all of them where the results have masks (boxes that are missing
            are then those of the masks), else `box` alone.
        dilation_ratio: see `CocoEvaluator`.
        max_detections: see `CocoEvaluator`.
        detection_area: see `CocoEvaluator`.
        backend: see `CocoEvaluator`.

    Returns:
        The scores.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is malformed, or has no masks where `kinds` needs them.
    """
    truth = load_ground_truth(annotations)
    records = load_results(predictions, truth)
    if kinds is None:
        kinds = _kinds_of(records, predictions)
        if "mask" not in kinds:
            log.warning("%s has boxes without masks, so that boxes alone are scored", predictions)
    evaluator = CocoEvaluator(truth, kinds, dilation_ratio, max_detections, detection_area, backend)
    try:
        evaluator.update(truth.getImgIds(), records)
    except ValueError as error:
        raise ValueError(f"results file {predictions}: {error}") from None
    with_results = len({record["image_id"] for record in records})
    log.info("%s has %d results in %d of %d images", predictions, len(records), with_results, len(truth.imgs))
    scores = evaluator.compute()
    if output is not None:
        scores.to_json(output)
    return scores


def _kinds_of(records: Sequence[Mapping[str, Any]], path: str | Path) -> tuple[str, ...]:
    has_mask = [record.get("segmentation") is not None for record in records]
    if all(has_mask):
        return KINDS
    if any(has_mask):
        raise ValueError(
            f"results file {path}: record {has_mask.index(False)} has no segmentation, but record "
            f"{has_mask.index(True)} has one; give all of them masks, or evaluate boxes only with kinds=[box]"
        )
    return ("box",)


def _plain(value: Any) -> Any:
    """Turn bytes and NumPy values into what JSON holds."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value
