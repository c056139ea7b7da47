"""Boundary F-measure: how well predicted boundary maps find true ones, over all thresholds, from a stream of images.

The measure of BSDS, with its tolerance, 0.0075 of the image diagonal, and per class as SBD has it. A predicted boundary
pixel is right, and a true one found, if they are a pair of a matching one to one, which has as many pairs within the
tolerance as there can be: a second response beside a boundary is wrong. What is predicted is thinned first, by
non-maximum suppression along rows or columns, to as many pixels as the contour of a mask has; BSDS thins the binary
map of each threshold instead.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from b2inst.metrics.one_to_one import matched_in_order, neighbors_within
from b2inst.ops.distance import clipped_distance
from b2inst.ops.thinning import thinned
from b2inst.writing import whole_file

TOLERANCE = 0.0075  # of the image diagonal
THRESHOLDS = 99  # 0.01, 0.02, ..., 0.99
ALL = "all"  # the row of whatever class in the table of the curve

Counts = NDArray[np.int64]


def tolerance_pixels(height: int, width: int, tolerance: float = TOLERANCE) -> float:
    """Largest distance of two boundary pixels that match.

    Example:
        >>> tolerance_pixels(480, 640)
        6.0
    """
    return tolerance * math.hypot(height, width)


def threshold_values(number: int = THRESHOLDS) -> NDArray[np.float64]:
    """Thresholds between 0 and 1, evenly spaced.

    Example:
        >>> threshold_values(3).tolist()
        [0.25, 0.5, 0.75]
    """
    return np.arange(1, number + 1) / (number + 1)


def count_matches(
    probs: Tensor, truth: Tensor, tolerance: float, thresholds: NDArray[np.float64], ignored: Tensor | None = None
) -> Counts:
    """Count right and wrong pixels of one map at all thresholds.

    Args:
        probs: (H, W) boundary probabilities, thinned or not; a pixel is predicted at a threshold if it is not lower.
        truth: (H, W) bool, the true boundary.
        tolerance: pixels, largest distance of pixels that match.
        thresholds: (T,) ascending, above 0.
        ignored: (H, W) bool: pixels, predicted and true, that are not counted, though others may be paired with them.

    Returns:
        (T, 4) int64: predicted pixels, those of them that are right, true pixels, those of them that are found.
    """
    counted = torch.ones_like(truth) if ignored is None else ~ignored
    likely = probs >= thresholds[0]
    right = found = _paired(probs, likely & counted, truth, tolerance)
    if ignored is not None:
        found = _paired(probs, likely, truth & counted, tolerance)
    columns = [
        _at_least(probs[likely & counted], thresholds),
        _at_least(right, thresholds),
        np.full(len(thresholds), int((truth & counted).sum())),
        _at_least(found, thresholds),
    ]
    return np.stack(columns, axis=1).astype(np.int64)


def precision_recall_f(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and their harmonic mean, each (...), from (..., 4) counts; 0 where nothing is predicted.

    Recall and F are NaN where there is no true pixel.
    """
    predicted, right, true, found = (counts[..., i].astype(np.float64) for i in range(4))
    precision = right / np.maximum(predicted, 1)
    recall = np.where(true > 0, found / np.maximum(true, 1), np.nan)
    return precision, recall, 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)


def best_of_image(counts: Counts) -> Counts:
    """(..., 4) counts at the threshold with the largest F of an image, from (..., T, 4).

    Of equal ones, and where an image has no true pixel, the largest threshold, with which least is wrong.
    """
    values = np.nan_to_num(precision_recall_f(counts)[2])
    last = values.shape[-1] - 1 - values[..., ::-1].argmax(axis=-1)
    return np.take_along_axis(counts, last[..., None, None], axis=-2)[..., 0, :]


@dataclass
class State:
    """Sums over images, which do not grow with their number; can be sent to another process.

    Attributes:
        total: (M, T, 4) of M maps: whatever class, then each class.
        best: (M, 4), each image at its own best threshold.
        images: ids of the images in the sums.
        last: id and (M, T, 4) counts of the newest image, which is not in the sums yet: a padded distributed sampler
            may have given it to another process too.
    """

    total: Counts
    best: Counts
    images: set[int] = field(default_factory=set)
    last: tuple[int, Counts] | None = None

    def add(self, image: tuple[int, Counts] | None) -> None:
        """Add an image to the sums, unless it is in them."""
        if image is not None and image[0] not in self.images:
            self.total += image[1]
            self.best += best_of_image(image[1])
            self.images.add(image[0])


def joined(states: Sequence[State]) -> State:
    """The sums of all processes, with the newest image of each."""
    result = State(sum(state.total for state in states), sum(state.best for state in states))
    result.images.update(*(state.images for state in states))
    for state in states:
        result.add(state.last)
    return result


class BoundaryF:
    """Boundary F-measure of a data set: ODS, with one threshold for all images, and OIS, with that of each image.

    Of both the counts of all images are added before precision, recall and F are computed, as BSDS does; thresholds are
    the given ones, without its interpolation between them. An image that is given again counts once; one that was given
    to two processes does too, if it is the last of all but one of them.

    Args:
        classes: names of classes with a map of their own, in the order of the maps; () for whatever class alone.
        thresholds: number of thresholds between 0 and 1.
        tolerance: largest distance of pixels that match, as a share of the image diagonal.
        thin: suppress what is not largest across the boundary.

    Raises:
        ValueError: a tolerance or a number of thresholds that is no such.

    Source: Martin et al. (PAMI 2004) and BSDS; Hariharan et al. (ICCV 2011), SBD, per class.
    """

    def __init__(
        self,
        classes: tuple[str, ...] = (),
        thresholds: int = THRESHOLDS,
        tolerance: float = TOLERANCE,
        thin: bool = True,
    ) -> None:
        if thresholds < 1:
            raise ValueError(f"thresholds={thresholds}: give a number of at least 1")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance={tolerance}: give a share of the image diagonal, between 0 and 1")
        self.classes = classes
        self.thresholds = threshold_values(thresholds)
        self.tolerance = tolerance
        self.thin = thin
        self.state = self._empty()

    def update(
        self, image_id: int, probs: Iterable[Tensor], truth: Iterable[Tensor], ignored: Tensor | None = None
    ) -> None:
        """Add an image.

        Args:
            image_id: of the annotation file.
            probs: M maps (H, W) in [0, 1], at the size of the image: whatever class, then each class.
            truth: M maps (H, W) bool, one-pixel boundaries.
            ignored: (H, W) bool, crowds: what is there or within the tolerance counts neither as right nor as wrong.

        Raises:
            ValueError: shapes that do not fit.
        """
        counts, ignored = np.zeros_like(self.state.total), ignored if ignored is None or ignored.any() else None
        maps = 0
        for own, true in zip(probs, truth, strict=True):
            if own.shape != true.shape or own.ndim != 2:
                raise ValueError(f"map {maps}: probs {tuple(own.shape)}, truth {tuple(true.shape)}; both are (H, W)")
            distance = tolerance_pixels(*own.shape, self.tolerance)
            if maps == 0 and ignored is not None:
                ignored = clipped_distance(ignored[None], math.floor(distance) + 1)[0] <= distance
            if maps < len(counts) and (own.max() >= self.thresholds[0] or true.any()):
                own = thinned(own[None])[0] if self.thin else own
                counts[maps] = count_matches(own, true, distance, self.thresholds, ignored)
            maps += 1
        if maps != len(counts):
            raise ValueError(f"{maps} maps; give 1 + {len(self.classes)}: whatever class, then each class")
        self.state.add(self.state.last)
        self.state.last = image_id, counts

    def reset(self) -> None:
        """Forget all images."""
        self.state = self._empty()

    def join(self, states: Sequence[State]) -> None:
        """Take what all processes have counted, this one among them, in place of what it has."""
        self.state = joined(states)

    def compute(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Score everything so far; more can be added afterwards.

        Returns:
            metrics: `boundary_f/ODS`, `boundary_f/OIS`, the `threshold`, `precision` and `recall` of the former; with
            classes also `class_ODS` and `class_OIS`, the means over the classes with a true pixel;
            and class name -> its `boundary_f/ODS` and `boundary_f/OIS`. NaN where no image has a true pixel.
        """
        state = joined([self.state])
        precision, recall, values = precision_recall_f(state.total)
        image_best = precision_recall_f(state.best)[2]
        at = np.nan_to_num(values).argmax(axis=-1)
        best = values[np.arange(len(at)), at]
        metrics = {
            "ODS": best[0], "OIS": image_best[0], "threshold": self.thresholds[at[0]], "precision": precision[0, at[0]],
            "recall": recall[0, at[0]],
        }  # fmt: skip
        if self.classes:
            metrics |= {"class_ODS": _mean(best[1:]), "class_OIS": _mean(image_best[1:])}
        rows = zip(self.classes, best[1:].tolist(), image_best[1:].tolist(), strict=True)
        per_class = {name: {"boundary_f/ODS": ods, "boundary_f/OIS": ois} for name, ods, ois in rows}
        return {f"boundary_f/{name}": float(value) for name, value in metrics.items()}, per_class

    def write(self, path: str | Path) -> None:
        """Write precision, recall and F at each threshold as CSV, of whatever class (`all`) and of each class."""
        tables = zip((ALL, *self.classes), *precision_recall_f(joined([self.state]).total), strict=True)
        with whole_file(path) as file:
            writer = csv.writer(file)
            writer.writerow(["class", "threshold", "precision", "recall", "f"])
            for name, *columns in tables:
                writer.writerows([name, *row] for row in zip(self.thresholds.tolist(), *columns, strict=True))

    def _empty(self) -> State:
        maps = 1 + len(self.classes)
        return State(np.zeros((maps, len(self.thresholds), 4), np.int64), np.zeros((maps, 4), np.int64))


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what is there."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else math.nan


def _at_least(values: Tensor, thresholds: NDArray[np.float64]) -> Counts:
    """(T,) how many values are not lower than each threshold."""
    reached = np.searchsorted(thresholds, values.double().cpu().numpy(), side="right")  # thresholds of each value
    return np.bincount(reached, minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:]


def _paired(probs: Tensor, predicted: Tensor, truth: Tensor, tolerance: float) -> Tensor:
    """Values of the predicted pixels that get a true one of their own, if those of larger values come first."""
    if not truth.any():
        return probs.new_zeros(0)
    near = clipped_distance(truth[None], math.floor(tolerance) + 1)[0] <= tolerance
    candidates = predicted & near
    values, order = probs[candidates].sort(descending=True, stable=True)
    places = candidates.nonzero()[order].cpu().numpy()
    truth = truth.cpu().numpy()
    matched = matched_in_order(neighbors_within(places, truth, tolerance), int(truth.sum()))
    return values[torch.from_numpy(matched).to(values.device)]
