"""The fast backend gives the numbers of pycocotools, also where matching is a matter of order."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from b2inst.metrics.accumulate import RECALLS
from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.matching import AREAS, THRESHOLDS
from metrics import generated

SIDE = 24


def scores_of(truth, records, backend, **options):
    evaluator = CocoEvaluator(truth, backend=backend, **options)
    evaluator.update([image["id"] for image in truth["images"]], records)
    return evaluator.compute()


def flat(value, name=""):
    """All numbers of nested dicts and lists by their path."""
    if isinstance(value, dict):
        return {key: number for k, entry in value.items() for key, number in flat(entry, f"{name}/{k}").items()}
    if isinstance(value, list):
        return {key: number for k, entry in enumerate(value) for key, number in flat(entry, f"{name}/{k}").items()}
    return {name: float(value)}


def assert_backends_agree(truth, records, **options):
    """Metrics, classes, threshold, errors and curves; returns the metrics."""
    fast, reference = (scores_of(truth, records, backend, **options) for backend in ("fast", "pycocotools"))
    for part in ("metrics", "per_class", "errors", "curves"):
        one, two = flat(getattr(fast, part)), flat(getattr(reference, part))
        assert list(one) == list(two)
        assert np.allclose([*one.values()], [*two.values()], rtol=0, atol=1e-9, equal_nan=True), part
    return fast.metrics


def rectangle(rng):
    """Few places and sizes, so that overlaps are often equal, and often exactly on a threshold."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    top, left = rng.choice([0, 2, 4], 2)
    height, width = rng.choice([8, 10, 12], 2)
    mask[top : top + height, left : left + width] = 1
    return mask


def crowded_case(seed):
    """Rectangles that tie: in overlap with several objects, in score, in area with the limits of the sizes."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": 2, "name": "a"}, {"id": 5, "name": "b"}]}
    records = []
    for image_id in range(3):
        truth["images"].append({"id": image_id, "height": SIDE, "width": SIDE})
        for _ in range(int(rng.integers(0, 12))):
            generated._annotate(truth, image_id, int(rng.choice([2, 2, 5])), rectangle(rng), crowd=rng.random() < 0.25)
            truth["annotations"][-1]["area"] = float(rng.choice([100, 1024, 1024.5, 5000, 9216, 9217]))
        for _ in range(int(rng.integers(0, 12))):
            rle = generated.encode(rectangle(rng))
            box = generated.rle_tools.toBbox(rle).tolist()
            if rng.random() < 0.3:
                box[2] = box[3] = float(rng.choice([0, 32, 96]))
            records.append(
                {"image_id": image_id, "category_id": int(rng.choice([2, 2, 5])), "bbox": box, "segmentation": rle,
                 "score": float(rng.choice([0.2, 0.5]))}
            )  # fmt: skip
    return truth, records


def test_crowded_cases_have_ties():
    shared, exact = 0, 0
    for seed in range(20):
        truth, records = crowded_case(seed)
        for record in records:
            ious = [
                generated.rle_tools.iou([record["segmentation"]], [entry["segmentation"]], [entry["iscrowd"]])[0, 0]
                for entry in truth["annotations"]
                if (entry["image_id"], entry["category_id"]) == (record["image_id"], record["category_id"])
            ]
            over = [iou for iou in ious if iou >= 0.5]
            shared += len(set(over)) < len(over)
            exact += bool(set(ious) & set(THRESHOLDS))
    assert shared > 20 and exact > 20


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_ties_of_overlap_score_and_area(first):
    aps = []
    for seed in range(first, first + 20):
        metrics = assert_backends_agree(*crowded_case(seed))
        aps.append(metrics["mask/AP50"])
    assert len(set(aps)) > 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_generated_cases(seed):
    truth, records = generated.make_case(seed)
    assert_backends_agree(truth, records)
    assert_backends_agree(truth, records, max_detections=(1, 2, 5))
    assert_backends_agree(truth, records, kinds=("boundary",), max_detections=(5, 300), detection_area="mask")
    assert_backends_agree(truth, records, dilation_ratio=0.005)


@pytest.mark.parametrize("seed", [3, 4])
def test_classes_alone_equal_pycocotools(seed):
    truth, records = generated.make_case(seed)
    scores = scores_of(truth, records, "fast")
    for category in truth["categories"][:2]:
        only = {**truth, "annotations": [a for a in truth["annotations"] if a["category_id"] == category["id"]]}
        for kind, plain, cls in [
            ("box", "bbox", generated.COCOeval),
            ("mask", "segm", generated.COCOeval),
            ("boundary", "segm", generated.PlainBoundaryEval),
        ]:
            expected = generated.plain_scores(only, records, plain, evaluation_class=cls)["AP"]
            assert scores.per_class[category["name"]][f"{kind}/AP"] == pytest.approx(expected, abs=1e-9)


def _twice(truth):
    return {**truth, "annotations": [dict(a, id=n) for n, a in enumerate(truth["annotations"] * 2)]}


@pytest.mark.parametrize(
    "change",
    [
        lambda truth, records: (truth, []),
        lambda truth, records: ({**truth, "annotations": []}, records),
        lambda truth, records: ({**truth, "annotations": []}, []),
        lambda truth, records: ({**truth, "annotations": [dict(a, iscrowd=1) for a in truth["annotations"]]}, records),
        lambda truth, records: ({**truth, "categories": truth["categories"][1:]}, []),
        lambda truth, records: (truth, [dict(record, score=0.5) for record in records]),
        lambda truth, records: (truth, [dict(record, score=-record["score"]) for record in records]),
        lambda truth, records: (_twice(truth), records),
    ],
    ids=["no detections", "no objects", "nothing", "only crowds", "class left out", "one score", "negative", "twice"],
)
def test_extreme_cases(change):
    assert_backends_agree(*change(*copy.deepcopy(generated.make_case(5))))


def test_detections_with_empty_masks_and_boxes():
    truth, records = copy.deepcopy(generated.make_case(6))
    empty = generated.encode(np.zeros((generated.HEIGHT, generated.WIDTH), np.uint8))
    for index, record in enumerate(records[:30]):
        record["segmentation"] = empty
        record.pop("bbox") if index % 2 else record.update(bbox=[3.0, 4.0, 0.0, 0.0])
    truth["annotations"][0]["segmentation"] = empty
    assert_backends_agree(truth, records)


def test_more_masks_than_fit_a_byte():
    # pycocotools 2.0.11 cannot measure 256 masks in one call
    truth, records = generated.make_case(0)
    many = [{key: value for key, value in record.items() if key != "bbox"} for record in records * 3]
    assert len(many) > 512
    assert_backends_agree(truth, many, kinds=("box", "mask"))


def test_thresholds_sizes_and_recalls_are_those_of_pycocotools():
    params = generated.COCOeval(iouType="segm").params
    assert np.array_equal(THRESHOLDS, params.iouThrs) and np.array_equal(RECALLS, params.recThrs)
    assert np.array_equal(AREAS, params.areaRng)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend 'hot' is not allowed: give one of fast, pycocotools"):
        CocoEvaluator(generated.make_case(0)[0], backend="hot")
