"""COCO's average precision of boxes, masks and boundaries, from results that arrive in a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from b2inst.metrics import reference
from b2inst.metrics.accumulate import Accumulated, accumulate
from b2inst.metrics.columns import ImageResults, Objects, detected_objects, from_records, to_records, true_objects
from b2inst.metrics.ground_truth import GroundTruth, load_ground_truth
from b2inst.metrics.matching import Matches, lower_to_boundary, match, overlapping_pairs
from b2inst.metrics.operating_point import best_threshold, errors_by_size
from b2inst.metrics.records import check_record
from b2inst.metrics.scores import Scores
from b2inst.metrics.summary import class_scores, curves, summary

KINDS = ("box", "mask", "boundary")
BACKENDS = ("fast", "pycocotools")


class CocoEvaluator:
    """Scores results in COCO format against annotations; only images that were shown to it count.

    `update` takes the images of a batch with what was found in them, so that an image without detections lowers
    the recall, and an image that was never shown (a run over a subset) does not. An image shown twice, as a
    padded distributed sampler does, counts once: the first results win. Memory grows with the RLEs alone.

    Box and mask scores are those of pycocotools. Boundary AP is COCO's with the mask IoU of each pair replaced by
    min(mask IoU, boundary IoU); crowds keep the mask IoU (Cheng et al. 2021).

    In a distributed run each process updates its own evaluator and one process joins them:
    `for state in gathered: evaluator.merge(state)`, with `state` from the property of this name.

    Args:
        annotations: path of an annotation file, its content, or a loaded `GroundTruth`.
        kinds: which of `box`, `mask`, `boundary` to compute.
        dilation_ratio: thickness of the boundary as a fraction of the image diagonal (0.02 for COCO).
        max_detections: ascending numbers of detections per image and class: AR is computed at each, the rest at
            the last.
        detection_area: what makes a detection small, medium or large in mask and boundary scores. `box` is what
            pycocotools does with a results file: the area of `bbox` where a record has one, else of the mask.
            `mask` is always the area of the mask (detectron2 removes `bbox` to this end). It changes
            APs, APm and APl only.
        backend: `fast` matches all images at once; `pycocotools` is the reference, with the same numbers.

    Raises:
        ValueError: an argument is outside the allowed, or the annotations are damaged.
        FileNotFoundError: there is no such annotation file.
    """

    def __init__(
        self,
        annotations: str | Path | dict[str, Any] | COCO,
        kinds: Sequence[str] = KINDS,
        dilation_ratio: float = 0.02,
        max_detections: Sequence[int] = (1, 10, 100),
        detection_area: str = "box",
        backend: str = "fast",
    ) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds or isinstance(kinds, str):
            raise ValueError(f"kinds {kinds!r} is not allowed: give a list of one or more of {', '.join(KINDS)}")
        if not max_detections or min(max_detections) < 1 or sorted(set(max_detections)) != list(max_detections):
            raise ValueError(f"max_detections {tuple(max_detections)} is not allowed: give ascending numbers from 1 on")
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"dilation_ratio {dilation_ratio} is not allowed: give a fraction of the image diagonal")
        if detection_area not in ("box", "mask"):
            raise ValueError(f"detection_area {detection_area!r} is not allowed: give 'box' or 'mask'")
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r} is not allowed: give one of {', '.join(BACKENDS)}")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        self.backend = backend
        self.dilation_ratio = dilation_ratio
        self.max_detections = tuple(int(number) for number in max_detections)
        self.detection_area = detection_area
        self._needs_mask = self.kinds != ("box",)
        self.truth: GroundTruth = load_ground_truth(annotations)
        if self._needs_mask:
            self.truth.rasterize()
        self._found: dict[int, ImageResults] = {}

    def update(self, image_ids: Iterable[int], records: Iterable[Mapping[str, Any]]) -> None:
        """Add images and what was found in them.

        Args:
            image_ids: every image that was looked at, with and without detections.
            records: results of these images, in any order: `image_id`, `category_id`, `score`, `bbox` (XYWH in
                pixels of the original image, optional: the box of the mask takes its place), `segmentation`
                (compressed RLE, `counts` as str or bytes; optional for boxes), `box_score` (optional, ranks
                the boxes in place of `score`). They are not changed and not kept.

        Raises:
            ValueError: a record is malformed, of an image outside `image_ids` or the annotations, or an image
                with detections occurs twice in `image_ids`. Nothing has been added then.
        """
        ids = [int(image_id) for image_id in image_ids]
        found: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in ids}
        for image_id in found:
            if image_id not in self.truth.imgs:
                raise ValueError(
                    f"image_id {image_id} is not in {self.truth.source}; evaluate with the annotations of these images"
                )
        for index, record in enumerate(records):
            try:
                check_record(record, self.truth, need_mask=self._needs_mask)
            except ValueError as error:
                raise ValueError(f"record {index} {error}") from None
            if record["image_id"] not in found:
                raise ValueError(
                    f"record {index} is of image {record['image_id']}, which is not in image_ids; add it there"
                )
            found[int(record["image_id"])].append(record)
        for image_id, times in Counter(ids).items():
            if times > 1 and found[image_id]:
                raise ValueError(
                    f"image_id {image_id} occurs {times} times in one call, so that its results cannot be told apart; "
                    "call update once for each batch or process: the first results of an image win"
                )
        for image_id, image_records in found.items():
            if image_id not in self._found:
                self._found[image_id] = from_records(image_records)

    @property
    def state(self) -> dict[int, ImageResults]:
        """What was found so far by image id, ready to be sent to another process and given to its `merge`."""
        return dict(self._found)

    def merge(self, state: Mapping[int, ImageResults]) -> None:
        """Add the `state` of another evaluator of the same annotations; the first results of an image win."""
        self._found = {**state, **self._found}

    def records(self) -> list[dict[str, Any]]:
        """The results so far as records in COCO's format, `counts` as bytes, made afresh by each call."""
        return [
            record for image_id, results in self._found.items() for record in to_records(image_id, results, self.truth)
        ]

    def reset(self) -> None:
        """Forget all images and results; the annotations stay."""
        self._found = {}

    def compute(self) -> Scores:
        """Score everything so far; results can be added and scored again afterwards.

        Returns:
            COCO's 12 numbers for each kind, the scores of each class, precision-recall curves; with masks the best
            score threshold and the errors by size.

        Raises:
            RuntimeError: no image was shown.
        """
        if not self._found:
            raise RuntimeError("nothing to score: call update with the images first, also those without detections")
        results = self._evaluate()
        metrics: dict[str, float] = {}
        per_class: list[dict[str, float]] = [{} for _ in self.truth.cats]
        for kind, (_, accumulated) in results.items():
            numbers = summary(accumulated, self.max_detections)
            metrics.update({f"{kind}/{name}": value for name, value in numbers.items()})
            for row, scores in zip(per_class, class_scores(kind, accumulated), strict=True):
                row.update(scores)
        for row, instances in zip(per_class, self._count_instances(), strict=True):
            row["instances"] = instances
        errors = {}
        if "mask" in results:
            threshold, f1 = best_threshold(results["mask"][0])
            metrics |= {"mask/best_threshold": threshold, "mask/best_f1": f1}
            errors = {kind: errors_by_size(results[kind][0], threshold) for kind in results if kind != "box"}
        names = self.truth.class_names().values()  # they ascend in category id, like the rows
        drawn = {kind: curves(accumulated) for kind, (_, accumulated) in results.items()}
        return Scores(metrics, dict(zip(names, per_class, strict=True)), errors, drawn)

    def _evaluate(self) -> dict[str, tuple[Matches, Accumulated]]:
        """Matches at the lowest threshold, and precision and recall, of each kind."""
        results: dict[str, tuple[Matches, Accumulated]] = {}
        evaluate = self._fast if self.backend == "fast" else self._reference
        by_mask, limit = self.detection_area == "mask", self.max_detections[-1]
        for shape, family in (("box", ("box",)), ("mask", ("mask", "boundary"))):
            kinds = [kind for kind in family if kind in self.kinds]
            if kinds:
                detections = detected_objects(self._found, self.truth, shape, by_mask, limit)
                for kind, matches, accumulated in evaluate(kinds, detections, sorted(self._found)):
                    results[kind] = matches.lowest(), accumulated
        return results

    def _fast(
        self, kinds: Sequence[str], detections: Objects, image_ids: Sequence[int]
    ) -> Iterator[tuple[str, Matches, Accumulated]]:
        truths = true_objects(image_ids, self.truth, kinds[0])
        pairs = overlapping_pairs(detections, truths)
        for kind in kinds:
            if kind == "boundary":
                pairs = lower_to_boundary(pairs, detections, truths, self.dilation_ratio)
            matches = match(pairs, detections, truths, len(self.truth.cats))
            yield kind, matches, accumulate(matches, self.max_detections)

    def _reference(
        self, kinds: Sequence[str], detections: Objects, image_ids: Sequence[int]
    ) -> Iterator[tuple[str, Matches, Accumulated]]:
        for kind in kinds:
            yield (
                kind,
                *reference.evaluate(kind, detections, image_ids, self.truth, self.max_detections, self.dilation_ratio),
            )

    def _count_instances(self) -> list[int]:
        counts = dict.fromkeys(sorted(self.truth.cats), 0)
        for image_id in self._found:
            for annotation in self.truth.imgToAnns.get(image_id, ()):
                counts[annotation["category_id"]] += not annotation["iscrowd"]
        return list(counts.values())
