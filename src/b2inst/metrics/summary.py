"""COCO's numbers and curves from the arrays of precision and recall."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from b2inst.metrics.accumulate import Accumulated

_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # suffix of a metric -> row of the ranges of area
_AP50, _AP75 = 0, 5  # rows of the thresholds 0.50, 0.55, ..., 0.95


def summary(accumulated: Accumulated, max_detections: Sequence[int]) -> dict[str, float]:
    """AP, AP50, AP75, AP by size, AR by number of detections, AR by size; NaN where there are no objects."""
    precision, recall = accumulated.precision, accumulated.recall
    values = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[_AP50, :, :, 0]),
        "AP75": _mean(precision[_AP75, :, :, 0]),
    }
    values |= {f"AP{size}": _mean(precision[:, :, :, area]) for size, area in _AREAS.items() if size}
    values |= {f"AR{number}": _mean(recall[:, :, 0, index]) for index, number in enumerate(max_detections)}
    return values | {f"AR{size}": _mean(recall[:, :, area, -1]) for size, area in _AREAS.items() if size}


def class_scores(kind: str, accumulated: Accumulated) -> list[dict[str, float]]:
    """AP of each class, of masks also AP50 and AP75, in the order of the category ids."""
    precision = accumulated.precision[:, :, :, 0]
    rows = {f"{kind}/AP": precision}
    if kind == "mask":
        rows |= {"mask/AP50": precision[_AP50, None], "mask/AP75": precision[_AP75, None]}
    return [{name: _mean(values[:, :, index]) for name, values in rows.items()} for index in range(precision.shape[2])]


def curves(accumulated: Accumulated) -> dict[str, list[float]]:
    """Precision at 101 recalls, the mean over classes: at IoU 0.5, 0.75, and over all thresholds.

    Returns:
        `AP`, `AP50`, `AP75` -> 101 numbers, whose mean is the metric of the name; empty without objects.
    """
    precision = accumulated.precision[:, :, :, 0]
    precision = precision[:, :, (precision > -1).all(axis=(0, 1))]
    if precision.shape[2] == 0:
        return {}
    parts = {"AP": precision.mean(axis=(0, 2)), "AP50": precision[_AP50].mean(axis=1)}
    return {name: part.tolist() for name, part in (parts | {"AP75": precision[_AP75].mean(axis=1)}).items()}


def _mean(values: np.ndarray) -> float:
    """Mean over what has ground truth: -1 marks the rest; NaN where nothing has."""
    valid = values[values > -1]
    return float(np.mean(valid)) if len(valid) else float("nan")
