"""Precision and recall of each class from matches, as COCO computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from b2inst.metrics.matching import AREAS, THRESHOLDS, Matches

# As pycocotools computes them, bit for bit.
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Accumulated:
    """Arrays like those of `COCOeval.eval`; -1 where a class has no objects of an area.

    Attributes:
        precision: (T, 101, C, A) at the largest number of detections; T thresholds, A ranges of area.
        recall: (T, C, A, M) at M numbers of detections.
    """

    precision: np.ndarray
    recall: np.ndarray


def accumulate(matches: Matches, max_detections: Sequence[int]) -> Accumulated:
    """Compute precision at 101 recalls, and the final recall.

    Args:
        matches: of all images.
        max_detections: M ascending numbers of detections per image and class.
    """
    classes = len(matches.positives)
    precision = -np.ones((len(THRESHOLDS), len(RECALLS), classes, len(AREAS)))
    recall = -np.ones((len(THRESHOLDS), classes, len(AREAS), len(max_detections)))
    order = np.lexsort((-matches.scores, matches.classes))
    bounds = np.searchsorted(matches.classes[order], np.arange(classes + 1))
    for index in range(classes):
        wanted = np.flatnonzero(matches.positives[index])
        rows = order[bounds[index] : bounds[index + 1]]
        if len(wanted) == 0:
            continue
        counted = ~matches.ignored[rows][:, :, wanted]
        hits = matches.matched[rows][:, :, wanted] & counted
        positives = matches.positives[index, wanted]
        precision[:, :, index, wanted] = _precision(hits, counted, positives)
        for number, limit in enumerate(max_detections):
            total = hits[matches.ranks[rows] < limit].sum(axis=0)
            recall[:, index, wanted, number] = total / positives
    return Accumulated(precision, recall)


def _precision(hits: np.ndarray, counted: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Largest precision at each recall or above, (T, 101, A), from (D, T, A) flags in falling order of score."""
    result = np.zeros((hits.shape[1], len(RECALLS), hits.shape[2]))
    seen = np.cumsum(counted, axis=0, dtype=np.int32)
    for area, number in enumerate(positives):
        # the number of hits at which each recall is reached, compared as floats like pycocotools does
        needed = np.maximum(np.searchsorted(np.arange(number + 1) / number, RECALLS), 1) - 1
        for threshold in range(hits.shape[1]):
            at = np.flatnonzero(hits[:, threshold, area])  # the precision is largest at hits only
            if len(at):
                right = np.arange(1.0, len(at) + 1)
                wrong = seen[at, threshold, area] - right
                best = np.maximum.accumulate((right / (wrong + right + np.spacing(1)))[::-1])[::-1]
                reached = needed[needed < len(at)]
                result[threshold, : len(reached), area] = best[reached]
    return result
