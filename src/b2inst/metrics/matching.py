"""COCO's greedy matching of detections with objects, for all images, thresholds and sizes at once.

pycocotools walks through the detections of each image and class, best first, and gives each the free object that it
overlaps most. Only pairs that overlap by the lowest threshold at all can match, and those are few; so the pairs are
kept as a list, and the walk takes the first such detection of every image and class together, then the second ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as rle_tools

from b2inst.metrics.boundary_iou import boundary_ious
from b2inst.metrics.columns import Objects

# As pycocotools computes them, bit for bit.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ((0.0, 1e5**2), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e5**2))  # all, small, medium, large


@dataclass(frozen=True)
class Pairs:
    """Detections and objects of the same image and class that overlap, ordered by detection, then object.

    Attributes:
        found: (P,) int64, index of the detection.
        real: (P,) int64, index of the object.
        overlap: (P,) float64.
    """

    found: np.ndarray
    real: np.ndarray
    overlap: np.ndarray


@dataclass(frozen=True)
class Matches:
    """Which detections are hits.

    Attributes:
        classes, scores, ranks: (D,) of the detections, see `Objects`; images and classes in ascending order.
        matched: (D, T, A) bool, at T thresholds and for A ranges of area.
        ignored: (D, T, A) bool, neither right nor wrong: matched with a crowd or outside of the range.
        overlap: (D, A) float64, of the match at the lowest threshold; NaN without one.
        positives: (C, A) int64, objects of each class to be found.
    """

    classes: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    overlap: np.ndarray
    positives: np.ndarray

    def lowest(self) -> Matches:
        """Those at the lowest threshold alone (T = 1), in a tenth of the memory."""
        return replace(self, matched=self.matched[:, :1].copy(), ignored=self.ignored[:, :1].copy())


def overlapping_pairs(detections: Objects, truths: Objects, lowest: float = THRESHOLDS[0]) -> Pairs:
    """IoU (with crowds: the share of the detection) of all pairs of one image and class that reach `lowest`."""
    found, real, overlap = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    shared = np.intersect1d(detections.groups, truths.groups)
    starts, ends = (np.searchsorted(detections.groups, shared, side) for side in ("left", "right"))
    real_starts, real_ends = (np.searchsorted(truths.groups, shared, side) for side in ("left", "right"))
    crowd = truths.crowd.astype(np.uint8)
    for start, end, first, last in zip(*(x.tolist() for x in (starts, ends, real_starts, real_ends)), strict=True):
        ious = rle_tools.iou(detections.shapes[start:end], truths.shapes[first:last], crowd[first:last])
        rows, columns = np.nonzero(ious >= lowest)
        if len(rows):
            found.append(rows + start)
            real.append(columns + first)
            overlap.append(ious[rows, columns])
    return Pairs(np.concatenate(found), np.concatenate(real), np.concatenate(overlap))


def lower_to_boundary(pairs: Pairs, detections: Objects, truths: Objects, dilation_ratio: float) -> Pairs:
    """Replace the mask IoU by min(mask IoU, boundary IoU), but for crowds.

    Pairs below the lowest threshold are missing, and rightly so: the minimum is below it as well.
    """
    overlap = pairs.overlap.copy()
    plain = np.flatnonzero(~truths.crowd[pairs.real])
    groups = truths.groups[pairs.real[plain]]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    for pair in np.split(plain, starts[1:]) if len(plain) else ():
        boundary = boundary_ious(detections.shapes, truths.shapes, pairs.found[pair], pairs.real[pair], dilation_ratio)
        overlap[pair] = np.minimum(overlap[pair], boundary)
    return Pairs(pairs.found, pairs.real, overlap)


def match(pairs: Pairs, detections: Objects, truths: Objects, num_classes: int) -> Matches:
    """Match as pycocotools does.

    Args:
        pairs: overlaps that reach the lowest threshold.
        detections: at most the largest number of detections in each image and class, best first.
        truths: ground truth of the same images.
        num_classes: C.
    """
    low, high = np.array(AREAS).T
    outside = (truths.areas[:, None] < low) | (truths.areas[:, None] > high)
    unwanted = truths.crowd[:, None] | outside  # [G, A]
    shape = (len(detections), len(THRESHOLDS), len(AREAS))
    partner = np.full(shape, -1, np.int32)
    _walk(pairs, detections, truths.crowd, unwanted, partner)
    matched = partner >= 0
    ignored = (detections.areas[:, None] < low) | (detections.areas[:, None] > high)
    ignored = np.repeat(ignored[:, None], len(THRESHOLDS), axis=1)
    row, threshold, area = np.nonzero(matched)
    ignored[row, threshold, area] = unwanted[partner[row, threshold, area], area]
    positives = np.zeros((num_classes, len(AREAS)), np.int64)
    np.add.at(positives, truths.classes, ~unwanted)
    overlap = _overlap_of(pairs, partner[:, 0])
    return Matches(detections.classes, detections.scores, detections.ranks, matched, ignored, overlap, positives)


def _walk(pairs: Pairs, detections: Objects, crowd: np.ndarray, unwanted: np.ndarray, partner: np.ndarray) -> None:
    """Give each detection its object at each threshold and area, (D, T, A) `partner`."""
    rows, first, count = np.unique(pairs.found, return_index=True, return_counts=True)
    if len(rows) == 0:
        return
    taken = np.zeros((len(crowd), *partner.shape[1:]), bool)
    groups = detections.groups[rows]
    turns = np.arange(len(rows)) - np.searchsorted(groups, groups)
    for turn in range(int(turns.max()) + 1):
        now = np.flatnonzero(turns == turn)
        # objects in falling order: of equal overlaps the last one wins
        column = count[now, None] - 1 - np.arange(int(count[now].max()))
        place = first[now, None] + np.maximum(column, 0)
        real = pairs.real[place]  # [B, K]
        overlap = np.where(column >= 0, pairs.overlap[place], -1.0)[:, :, None, None]
        free = ~taken[real] | crowd[real][:, :, None, None]
        possible = np.where(free & (overlap >= THRESHOLDS[:, None]), overlap, -1.0)  # [B, K, T, A]
        choice = _best(possible, unwanted[real][:, :, None, :])
        batch, threshold, area = np.nonzero(choice >= 0)
        chosen = real[batch, choice[batch, threshold, area]]
        partner[rows[now[batch]], threshold, area] = chosen
        taken[chosen, threshold, area] = True


def _best(possible: np.ndarray, unwanted: np.ndarray) -> np.ndarray:
    """Index along axis 1 of the largest value >= 0 that is wanted, else of the largest that is not, else -1."""
    choice = np.full((possible.shape[0], *possible.shape[2:]), -1)
    for allowed in (unwanted, ~unwanted):
        values = np.where(allowed, possible, -1.0)
        best = values.argmax(axis=1)
        hit = np.take_along_axis(values, best[:, None], axis=1)[:, 0] >= 0
        choice = np.where(hit, best, choice)
    return choice


def _overlap_of(pairs: Pairs, partner: np.ndarray) -> np.ndarray:
    overlap = np.full(partner.shape, np.nan)
    pair, area = np.nonzero(partner[pairs.found] == pairs.real[:, None])
    overlap[pairs.found[pair], area] = pairs.overlap[pair]
    return overlap
