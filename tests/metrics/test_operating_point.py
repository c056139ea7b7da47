from __future__ import annotations

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.curves import write_curves
from b2inst.metrics.scores import Scores
from metrics import generated


def score(truth, records, kinds=("mask",)):
    evaluator = CocoEvaluator(truth, kinds)
    evaluator.update([image["id"] for image in truth["images"]], records)
    return evaluator.compute()


def plain_f1(truth, records):
    """F1 of masks at IoU 0.5 by pycocotools, with what is left of the results."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **copy.deepcopy(truth)}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(records)), "segm")
        evaluation.params.areaRng, evaluation.params.iouThrs = [[0, 1e10]], np.array([0.5])
        evaluation.evaluate()
    entries = [entry for entry in evaluation.evalImgs if entry is not None]
    hits = sum(np.count_nonzero((e["dtMatches"] > 0) & ~e["dtIgnore"].astype(bool)) for e in entries)
    counted = sum(np.count_nonzero(~e["dtIgnore"].astype(bool)) for e in entries)
    objects = sum(np.count_nonzero(np.asarray(e["gtIgnore"]) == 0) for e in entries)
    return 2 * hits / (counted + objects)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_best_threshold_is_the_best_of_all(seed):
    truth, records = generated.make_case(seed)
    rng = np.random.default_rng(seed)
    records = [dict(r, score=float(np.clip(r["score"] + rng.choice([0, 0.03]), 0, 1))) for r in records]  # still ties
    metrics = score(truth, records).metrics
    by_score = {
        value: plain_f1(truth, [record for record in records if record["score"] >= value])
        for value in sorted({record["score"] for record in records})
    }
    assert len(by_score) > 8
    assert metrics["mask/best_f1"] == pytest.approx(max(by_score.values()), abs=1e-12)
    threshold = metrics["mask/best_threshold"]
    assert plain_f1(truth, [record for record in records if record["score"] > threshold]) == metrics["mask/best_f1"]


def squares(*corners, side=10):
    masks = []
    for top, left in corners:
        mask = np.zeros((60, 60), np.uint8)
        mask[top : top + side, left : left + side] = 1
        masks.append(mask)
    return masks


def small_case(scores):
    """Two objects; the first two detections hit them exactly and by IoU 0.8 (8 of 10 lines), the others miss."""
    truth = {"images": [{"id": 1, "height": 60, "width": 60}], "annotations": [], "categories": [{"id": 1}]}
    first, second, half, wrong, far = squares((0, 0), (20, 20), (20, 20), (40, 0), (40, 40))
    half[28:30] = 0
    for mask in (first, second):
        generated._annotate(truth, 1, 1, mask, crowd=False)
    records = [
        {"image_id": 1, "category_id": 1, "score": value, "segmentation": generated.encode(mask)}
        for value, mask in zip(scores, (first, half, wrong, far), strict=True)
    ]
    return truth, records


def test_threshold_lies_halfway_to_the_next_score():
    metrics = score(*small_case([0.9, 0.7, 0.5, 0.1])).metrics
    assert metrics["mask/best_f1"] == 1.0 and metrics["mask/best_threshold"] == pytest.approx(0.6)
    metrics = score(*small_case([0.9, 0.1, 0.5, 0.5])).metrics  # keeping the first alone: 2 / (1 + 2)
    assert metrics["mask/best_f1"] == pytest.approx(2 / 3) and metrics["mask/best_threshold"] == pytest.approx(0.7)
    metrics = score(*small_case([0.9, 0.5, 0.95, 0.5])).metrics  # all: 4 / (4 + 2), no score below
    assert metrics["mask/best_f1"] == pytest.approx(2 / 3) and metrics["mask/best_threshold"] == pytest.approx(0.25)


def test_no_hits_and_no_objects_have_no_threshold():
    truth, records = small_case([0.9, 0.7, 0.5, 0.1])
    for given in (records[2:], []):
        metrics = score(truth, given).metrics
        assert math.isnan(metrics["mask/best_threshold"]) and metrics["mask/best_f1"] == 0.0
    metrics = score({**truth, "annotations": []}, records).metrics
    assert math.isnan(metrics["mask/best_threshold"]) and math.isnan(metrics["mask/best_f1"])


def test_errors_by_size_count_above_the_threshold():
    scores = score(*small_case([0.9, 0.1, 0.5, 0.5]))  # the threshold is 0.7
    row = {"objects": 2, "found": 1, "missed": 1, "false": 0, "precision": 1.0, "recall": 0.5, "overlap": 1.0}
    assert scores.errors["mask"]["all"] == scores.errors["mask"]["small"] == row
    large = scores.errors["mask"]["large"]
    assert large["objects"] == large["found"] == large["false"] == 0 and math.isnan(large["overlap"])
    scores = score(*small_case([0.9, 0.5, 0.95, 0.5]), kinds=("mask", "boundary"))  # all count
    errors = scores.errors["mask"]["small"]
    assert (errors["found"], errors["missed"], errors["false"]) == (2, 0, 2)
    assert errors["overlap"] == pytest.approx(0.9)
    # d = 2: a ring of 10 x 10 - 6 x 6 = 64 pixels, and one of 8 x 10 - 4 x 6 = 56; they share the second but for
    # 2 x 6 pixels, which lie in the middle of the square
    assert scores.errors["boundary"]["small"]["overlap"] == pytest.approx((1 + 44 / 76) / 2)
    assert "small" in scores.error_table() and "90.0" in scores.error_table()


def test_errors_are_written(tmp_path):
    scores = score(*small_case([0.9, 0.1, 0.5, 0.5]))
    scores.to_json(tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["errors"]["mask"]["all"]["missed"] == 1 and written["errors"]["mask"]["large"]["overlap"] is None
    assert written["mask/best_threshold"] == scores.metrics["mask/best_threshold"]


def test_curves_have_the_metrics_as_their_means(tmp_path):
    truth, records = generated.make_case(0)
    scores = score(truth, records, kinds=("box", "mask", "boundary"))
    for kind in ("box", "mask", "boundary"):
        for name in ("AP", "AP50", "AP75"):
            line = scores.curves[kind][name]
            assert len(line) == 101 and line == sorted(line, reverse=True)
            assert np.mean(line) == pytest.approx(scores.metrics[f"{kind}/{name}"], abs=1e-12)
    data, picture = write_curves(scores, tmp_path / "new")
    written = json.loads(data.read_text())
    assert written["recall"][50] == 0.5 and written["mask/AP50"] == scores.curves["mask"]["AP50"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_no_curves_without_objects(tmp_path):
    assert write_curves(Scores({}), tmp_path) == []
    truth, records = small_case([0.9, 0.7, 0.5, 0.1])
    assert score({**truth, "annotations": []}, records).curves == {"mask": {}}
    assert write_curves(score({**truth, "annotations": []}, records), tmp_path) == []
