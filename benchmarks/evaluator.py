"""Mask AP against pycocotools, hotcoco and faster-coco-eval, boundary AP against faster-coco-eval, from RLE."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

from harness import Result, compare, main  # isort: skip - sets the number of threads
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic import coco_like

from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.ground_truth import GroundTruth

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
Data = tuple[dict[str, Any], list[dict[str, Any]]]


def benchmarks() -> Iterator[Result]:
    """500 images with 100 detections each for masks, 100 images for boundaries, with dilation 0.02."""
    data = _without_boxes(coco_like(500))
    for name, route, package in [
        ("pycocotools", _pycocotools, None),
        ("faster-coco-eval", _faster("segm"), "faster_coco_eval"),
        ("hotcoco", _hotcoco, "hotcoco"),
    ]:
        yield compare("mask AP, 500 images", _ours(data, "mask"), name, lambda r=route: r(data), _equal, package)
    data = _without_boxes(coco_like(100))
    route = _faster("boundary")
    yield compare("boundary AP, 100 images", _ours(data, "boundary"), "faster-coco-eval", lambda: route(data), _equal,
                  "faster_coco_eval")  # fmt: skip


def _without_boxes(data: Data) -> Data:
    """So that all take the areas from the masks."""
    truth, results = data
    return truth, [{key: value for key, value in record.items() if key != "bbox"} for record in results]


def _equal(ours: np.ndarray, peer: np.ndarray) -> bool | str:
    difference = float(np.abs(ours - peer).max())
    return True if difference <= 1e-9 else f"differs by {difference:.1e}"


def _ours(data: Data, kind: str) -> Callable[[], np.ndarray]:
    truth = GroundTruth(data[0])
    truth.rasterize()

    def route() -> np.ndarray:
        evaluator = CocoEvaluator(truth, (kind,))
        evaluator.update([image["id"] for image in truth.dataset["images"]], data[1])
        metrics = evaluator.compute().metrics
        return np.array([metrics[f"{kind}/{name}"] for name in NAMES])

    return route


def _pycocotools(data: Data) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = data[0]
        coco.createIndex()
        return _score(COCOeval(coco, coco.loadRes(_fresh(data[1])), "segm"))


def _faster(kind: str) -> Callable[[Data], np.ndarray]:
    def route(data: Data) -> np.ndarray:
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        coco = FasterCOCO({**data[0], "annotations": _fresh(data[0]["annotations"])})
        return _score(COCOeval_faster(coco, coco.loadRes(_fresh(data[1])), kind, print_function=len))

    return route


def _hotcoco(data: Data) -> np.ndarray:
    import hotcoco

    with contextlib.redirect_stdout(io.StringIO()):
        coco = hotcoco.COCO(data[0])
        return _score(hotcoco.COCOeval(coco, coco.loadRes(data[1]), "segm"))


def _fresh(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies, one level deep: these peers write into the records that they get."""
    return [copy.copy(record) for record in records]


def _score(evaluation: Any) -> np.ndarray:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.array([float(value) for value in evaluation.stats[:12]])


if __name__ == "__main__":
    main(benchmarks)
