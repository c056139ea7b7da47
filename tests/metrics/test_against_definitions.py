"""Curves, best threshold and Boundary AP against computations of their definitions, on generated and on real masks.

`B2INST_SHARED_DATA` names a folder with `coco/annotations/instances_val2017.json`, all of COCO's or some of it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from b2inst.metrics.boundary_iou import boundary_rle
from b2inst.metrics.results import evaluate_files, save_results
from metrics import generated

FILE = Path(os.environ.get("B2INST_SHARED_DATA", "nowhere")) / "coco/annotations/instances_val2017.json"
IMAGES = 60
Case = tuple[dict[str, Any], list[dict[str, Any]]]


def defined_boundary(mask: np.ndarray, ratio: float = 0.02) -> np.ndarray:
    """Boundary of a (H, W) uint8 mask as the paper's code has it: d erosions by 3x3 ones in a frame of one pixel."""
    height, width = mask.shape
    steps = max(1, int(round(ratio * np.sqrt(height**2 + width**2))))
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=steps)
    return mask - eroded[1 : height + 1, 1 : width + 1]


class DefinedBoundaryEval(COCOeval):
    """COCOeval of masks with min(mask IoU, IoU of the defined boundaries), but for crowds."""

    def computeIoU(self, imgId, catId):  # noqa: N802, N803
        ious = np.array(super().computeIoU(imgId, catId))
        truths, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        if not truths or not detections:
            return ious
        detections = sorted(detections, key=lambda entry: -entry["score"])[: len(ious)]
        found, real = ([self._boundary(entry["segmentation"]) for entry in group] for group in (detections, truths))
        plain = [column for column, truth in enumerate(truths) if not truth["iscrowd"]]
        boundary = rle_tools.iou(found, real, [0] * len(real))
        ious[:, plain] = np.minimum(ious[:, plain], boundary[:, plain])
        return ious

    def _boundary(self, rle):
        return rle_tools.encode(np.asfortranarray(defined_boundary(rle_tools.decode(rle))))


def _real_case() -> Case:
    """The annotations of some images, and results that are their masks, moved, grown and shrunk, and others."""
    content = json.loads(FILE.read_text())
    rng = np.random.default_rng(0)
    crowds = {entry["image_id"] for entry in content["annotations"] if entry["iscrowd"]}
    images = sorted(content["images"], key=lambda image: image["id"] not in crowds)[:IMAGES]
    sizes = {image["id"]: (image["height"], image["width"]) for image in images}
    annotations = [entry for entry in content["annotations"] if entry["image_id"] in sizes]
    truth = {"images": images, "categories": content["categories"], "annotations": annotations}
    classes = sorted({entry["category_id"] for entry in annotations})
    records = []
    for entry in annotations:
        mask = rle_tools.decode(_rle(entry, sizes[entry["image_id"]]))
        for _ in range(int(rng.integers(0, 3))):
            category = entry["category_id"] if rng.random() < 0.9 else int(rng.choice(classes))
            changed = generated.encode(_changed(rng, mask))
            score = round(float(rng.beta(3, 2)), 2)  # with ties
            records.append(
                {"image_id": entry["image_id"], "category_id": category, "score": score, "segmentation": changed}
            )
    return truth, [records[position] for position in rng.permutation(len(records))]


def _rle(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    segmentation = annotation["segmentation"]
    rle = rle_tools.frPyObjects(segmentation, *size)
    return rle_tools.merge(rle) if isinstance(segmentation, list) else rle


def _changed(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    side = np.sqrt(mask.sum())
    dx, dy = rng.normal(0, 0.03 * side, 2).round()
    moved = cv2.warpAffine(mask, np.float32([[1, 0, dx], [0, 1, dy]]), mask.shape[::-1])
    kernel = np.ones((3, 3), np.uint8)
    return [cv2.erode, cv2.dilate, lambda image, _: image][int(rng.integers(3))](moved, kernel)


@pytest.fixture(scope="module", params=["generated", "real"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "generated":
        return generated.make_case(7)
    if not FILE.is_file():
        pytest.skip("B2INST_SHARED_DATA names no folder with COCO's annotations")
    return _real_case()


@pytest.fixture(scope="module")
def scores(case: Case, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("case")
    (folder / "truth.json").write_text(json.dumps(case[0]))
    save_results(folder / "results.json", case[1])
    return evaluate_files(folder / "results.json", folder / "truth.json")


def _evaluation(case: Case, kind: str, cls: type[COCOeval]) -> COCOeval:
    truth, records = copy.deepcopy(case)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        evaluation = cls(coco, coco.loadRes(records), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(
    ("kind", "plain", "cls"),
    [("box", "bbox", COCOeval), ("mask", "segm", COCOeval), ("boundary", "segm", DefinedBoundaryEval)],
)
def test_curves_and_scores_are_those_of_pycocotools(case: Case, scores: Any, kind: str, plain: str, cls: type) -> None:
    evaluation = _evaluation(case, plain, cls)
    for name, value in zip(generated.NAMES, evaluation.stats, strict=True):
        found = scores.metrics[f"{kind}/{name}"]
        assert (-1 if np.isnan(found) else found) == pytest.approx(value, abs=1e-9), name
    precision = evaluation.eval["precision"][..., 0, -1]  # (T, recalls, classes), all sizes, 100 detections
    present = precision[:, :, precision[0, 0] > -1]
    expected = {"AP50": present[0].mean(axis=1), "AP75": present[5].mean(axis=1), "AP": present.mean(axis=(0, 2))}
    assert scores.curves[kind].keys() == expected.keys()
    for name, line in expected.items():
        np.testing.assert_allclose(scores.curves[kind][name], line, rtol=0, atol=1e-12)
        assert len(np.unique(line)) > 2


def test_boundary_ap_is_not_mask_ap(scores: Any) -> None:
    assert 0.02 < scores.metrics["boundary/AP"] < scores.metrics["mask/AP"] - 0.02 < 0.9


def _hits(case: Case) -> tuple[list[tuple[float, bool]], int]:
    """Score and hit of each detection that counts at IoU 0.5, and the number of objects, by COCO's rules."""
    truth, records = case
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    groups: dict[tuple[int, int], tuple[list[Any], list[Any]]] = {}
    for entry in truth["annotations"]:
        groups.setdefault((entry["image_id"], entry["category_id"]), ([], []))[0].append(entry)
    for record in records:
        groups.setdefault((record["image_id"], record["category_id"]), ([], []))[1].append(record)
    found = []
    for (image_id, _), (real, detected) in groups.items():
        free = [entry for entry in real if not entry["iscrowd"]]
        crowds = [_as_rle(entry, sizes[image_id]) for entry in real if entry["iscrowd"]]
        for record in sorted(detected, key=lambda record: -record["score"])[:100]:
            mask = [record["segmentation"]]
            overlaps = [rle_tools.iou(mask, [_as_rle(entry, sizes[image_id])], [0])[0, 0] for entry in free]
            if max(overlaps, default=0) >= 0.5:
                free.pop(max(range(len(free)), key=lambda index: (overlaps[index], index)))
                found.append((record["score"], True))
            elif not any(rle_tools.iou(mask, [crowd], [1])[0, 0] >= 0.5 for crowd in crowds):
                found.append((record["score"], False))
    return found, sum(not entry["iscrowd"] for entry in truth["annotations"])


def _as_rle(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    segmentation = annotation["segmentation"]
    compressed = isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list)
    return segmentation if compressed else _rle(annotation, size)


def test_the_best_threshold_is_that_of_trying_all(case: Case, scores: Any) -> None:
    found, objects = _hits(case)
    values = sorted({score for score, _ in found}, reverse=True)
    f1 = {}
    for value in values:
        kept = [hit for score, hit in found if score >= value]
        f1[value] = 2 * sum(kept) / (len(kept) + objects)
    best = max(f1, key=lambda value: (f1[value], value))
    position = values.index(best)
    below = values[position + 1] if position + 1 < len(values) else 0.0
    assert len(values) > 8 and 0.1 < f1[best] < 0.95 and len(set(f1.values())) > 5
    assert scores.metrics["mask/best_f1"] == pytest.approx(f1[best], abs=1e-12)
    assert scores.metrics["mask/best_threshold"] == pytest.approx((best + below) / 2, abs=1e-12)


@pytest.mark.skipif(not FILE.is_file(), reason="B2INST_SHARED_DATA names no folder with COCO's annotations")
def test_boundaries_of_real_masks_are_the_defined_ones() -> None:
    content = json.loads(FILE.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for entry in content["annotations"][:600]:
        rle = _rle(entry, sizes[entry["image_id"]])
        expected = defined_boundary(rle_tools.decode(rle))
        np.testing.assert_array_equal(rle_tools.decode(boundary_rle(rle)), expected, str(entry["id"]))
