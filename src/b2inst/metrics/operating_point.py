"""What a score threshold does: the best one by F1, and the errors that remain with it, by size."""

from __future__ import annotations

import math

import numpy as np

from b2inst.metrics.matching import Matches

SIZES = ("all", "small", "medium", "large")


def best_threshold(matches: Matches) -> tuple[float, float]:
    """Score threshold with the largest F1 = 2 hits / (detections + objects) at IoU 0.5, all classes together.

    The matching goes from high scores to low ones, so that dropping low scores changes none of the other matches.
    Of equal F1 the higher threshold wins.

    Returns:
        The threshold, halfway between the lowest score to be kept and the next one (or 0), so that neither rounding
        nor `>` in place of `>=` matters, and its F1. NaN and 0 where nothing was hit; both NaN without objects.
    """
    objects = int(matches.positives[:, 0].sum())
    counted = ~matches.ignored[:, 0, 0]
    scores, hits = matches.scores[counted], matches.matched[counted, 0, 0]
    if objects == 0:
        return math.nan, math.nan
    if not hits.any():
        return math.nan, 0.0
    order = np.argsort(-scores)
    scores, hits = scores[order], hits[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # equal scores are kept or dropped together
    f1 = 2 * np.cumsum(hits)[last] / (last + 1 + objects)
    best = int(f1.argmax())
    score = float(scores[last[best]])
    below = float(scores[last[best] + 1]) if best + 1 < len(last) else min(0.0, score)
    return (score + below) / 2, float(f1[best])


def errors_by_size(matches: Matches, threshold: float) -> dict[str, dict[str, float]]:
    """What is found, missed and wrong at IoU 0.5 among the detections above a score threshold.

    Args:
        matches: of masks or boundaries.
        threshold: detections with a lower score do not count; NaN: all count.

    Returns:
        `all`, `small`, `medium`, `large` -> `objects`, `found`, `missed`, `false` (detections that hit no object;
        their own size decides), `precision`, `recall`, and `overlap`, the mean of the found objects. NaN for 0 / 0.
    """
    kept = matches.scores > (-np.inf if math.isnan(threshold) else threshold)
    rows = {}
    for area, size in enumerate(SIZES):
        counted = kept & ~matches.ignored[:, 0, area]
        hits = counted & matches.matched[:, 0, area]
        objects, found, detections = int(matches.positives[:, area].sum()), int(hits.sum()), int(counted.sum())
        rows[size] = {
            "objects": objects, "found": found, "missed": objects - found, "false": detections - found,
            "precision": _ratio(found, detections), "recall": _ratio(found, objects),
            "overlap": _ratio(float(matches.overlap[hits, area].sum()), found),
        }  # fmt: skip
    return rows


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
