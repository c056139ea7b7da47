"""The two-stage models from end to end: their numbers, and what the entry points do with them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from b2inst import demo_view
from b2inst.benchmark import benchmark
from b2inst.callbacks.inspection import Inspection
from b2inst.config import ConfigError, plain
from b2inst.evaluate import evaluate_checkpoint
from b2inst.export import export
from b2inst.interop.convert import convert
from b2inst.lit import LitSegmenter
from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.convert import make_records, to_records
from b2inst.paths import config_dir
from b2inst.predict_models import load_models
from b2inst.predict_panels import draw_panels
from b2inst.predictor import B2Inst
from models import build
from models.test_mask_rcnn import found_by
from models.two_stage import torchvisions, twin
from toy import toy_checkpoint

EXPERIMENTS = ["mask_rcnn_r50", "bmask_rcnn_r50"]
IDS = [1, 2, 3]


@pytest.fixture(scope="module", params=EXPERIMENTS)
def ckpt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt", experiment=request.param, best_threshold=0.2)


def settings(name: str, **changes: Any) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose(name))
    assert not changes.keys() - config.keys()
    return {**config, **changes}


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_our_scores_of_it_are_those_of_torchvisions_masks_and_pycocotools(tmp_path: Path) -> None:
    """The objects are a part of what torchvision finds, moved a little, so that some are hit and some are not.

    torchvision rounds a box to whole pixels before it resizes the mask to it, ours sample the mask at the center of
    each pixel; in boxes of some ten pixels that is a few points of mask AP.
    """
    reference = torchvisions().eval()
    model = twin(reference).eval()
    reference.roi_heads.mask_predictor = torch.nn.Sequential(reference.roi_heads.mask_predictor, Round())
    model.mask_head.predictor = torch.nn.Sequential(model.mask_head.predictor, Round())
    images = build.images(3, 64, 96)
    results, _ = found_by(reference, images)
    with torch.no_grad():
        ours = model.detect(model(images), images)
    theirs, truth = [], []
    for n, result in enumerate(results):
        masks = result["masks"][:, 0] > 0.5
        rles = [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]
        values = [result[key].tolist() for key in ("labels", "boxes", "scores")]
        theirs += make_records(n, values[0], values[1], rles, values[2], values[2])
        truth += objects(n, theirs[-len(rles) :], masks)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 96} for n in range(3)],
        "categories": [{"id": i, "name": str(i)} for i in IDS],
        "annotations": [{**record, "id": i + 1} for i, record in enumerate(truth)],
    }))  # fmt: skip
    evaluator = CocoEvaluator(path, ("box", "mask"))
    records = [to_records(detections, n, IDS) for n, detections in enumerate(ours)]
    for n, found in enumerate(records):
        evaluator.update([n], found)
    metrics = evaluator.compute().metrics
    for kind, name, tolerance in (("box", "bbox", 1e-6), ("mask", "segm", 0.06)):
        found = [metrics[f"{kind}/{key}"] for key in ("AP", "AP50", "AP75")]
        assert 0.1 < found[0] < 0.9
        assert found == pytest.approx(pycocotools(path, sum(records, []), name), abs=1e-6), kind
        assert found == pytest.approx(pycocotools(path, theirs, name), abs=tolerance), kind


class Round(torch.nn.Module):
    """Masks without the noise of random weights, which each way to paste them would show in another way."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        place = torch.linspace(-1, 1, 28)
        disk = 1 - place.square() - place.square()[:, None]
        return 8 * disk + torch.nn.functional.avg_pool2d(logits, 13, 1, 6)


def objects(image: int, records: list[dict[str, Any]], masks: torch.Tensor) -> list[dict[str, Any]]:
    """Every third of the records as an annotation, the box moved and the mask cut by a growing number of pixels."""
    found = []
    for shift, index in enumerate(range(0, min(len(records), 30), 3)):
        mask = masks[index].clone()
        mask[: int(records[index]["bbox"][1]) + shift] = False
        if not mask.any():
            continue
        x, y, width, height = records[index]["bbox"]
        rle = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        found.append({
            "image_id": image, "category_id": records[index]["category_id"], "iscrowd": 0, "area": width * height,
            "bbox": [x + shift / 2, y, width, height], "segmentation": {**rle, "counts": rle["counts"].decode()},
        })  # fmt: skip
    return found


def pycocotools(path: Path, records: list[dict[str, Any]], kind: str) -> list[float]:
    """AP, AP50 and AP75 by the reference alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        scored = COCOeval(truth, truth.loadRes([{**record} for record in records]), kind)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.stats[:3].tolist()


# ---- entry points -------------------------------------------------------------------------------------------------


def picture(seed: int, height: int = 70, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_predicts_images_of_any_size(ckpt: Path) -> None:
    model = B2Inst.from_checkpoint(ckpt, "cpu")
    model.model.detections_per_image = 1000
    pictures = [picture(0), picture(1, 40, 120), picture(2)]
    together = model.predict(pictures, batch_size=3)
    assert all(len(found) > 3 and found.scores.min() >= 0.2 for found in together)
    assert [found.size for found in together] == [p.shape[:2] for p in pictures]
    for found, image in zip(together, pictures, strict=True):
        alone = model.predict(image)
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=1e-2)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-4)
    (least,) = model.predict([pictures[0]], score_threshold=0.01)
    assert len(least) > len(together[0]) and least.scores.min() < 0.05  # further down than in the validation


def test_has_no_bases_to_show(ckpt: Path) -> None:
    model = B2Inst.from_checkpoint(ckpt, "cpu")
    assert demo_view.layers_of(model) == ("masks", "outlines")
    found = demo_view.find(model, "noise", picture(0))
    assert found.inside.bases is None and found.inside.boundary is None
    assert demo_view.draw(found, found.prediction, ["masks", "bases", "boundary"], 300).shape[2] == 3
    reasons = {"bases": "made without bases", "boundary": "no boundary basis", "attention": "made without attention"}
    for shown, message in reasons.items():
        with pytest.raises(ConfigError, match=message):
            load_models(settings("predict", ckpt=str(ckpt), device="cpu"), ["masks", shown])


def test_beside_a_model_with_bases(ckpt: Path, tmp_path: Path) -> None:
    basis_based = toy_checkpoint(tmp_path / "blend.ckpt")
    show = ["masks", "bases"]
    models = load_models(settings("predict", ckpt=str(ckpt), compare=str(basis_based), device="cpu"), show)
    insides = [model.run([picture(0)], look_inside=True)[0][1] for model in models.values()]
    assert [inside.bases is None for inside in insides] == [True, False]
    predictions = [model.predict(picture(0)) for model in models.values()]
    panels = [draw_panels(picture(0), p, i, show, None) for p, i in zip(predictions, insides, strict=True)]
    assert [list(part) for part in panels] == [["masks", "masks are made without bases"], ["masks", "bases"]]
    assert panels[0]["masks are made without bases"].min() == 255


def test_evaluates(ckpt: Path, tmp_path: Path) -> None:
    changes = {"kinds": ["box", "mask"], "accelerator": "cpu", "progress": False, "pictures": 1}
    output = tmp_path / "metrics.json"
    scores, _ = evaluate_checkpoint({**settings("evaluate", ckpt=str(ckpt), output=str(output)), **changes})
    assert {"box/AP", "mask/AP"} <= scores.metrics.keys() and output.is_file()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    changes["score_threshold"] = middle = float(np.median([record["score"] for record in results]))
    evaluate_checkpoint({**settings("evaluate", ckpt=str(ckpt), output=str(output)), **changes})
    fewer = json.loads((tmp_path / "results.json").read_text())
    assert len(fewer) < len(results) and all(record["score"] > middle for record in fewer)


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_is_timed(mode: str) -> None:
    small = ["recipe=demo", "model.fpn.channels=16", "model.mask_head.channels=16", "model.fc_channels=16"]
    changes = {
        "mode": mode, "height": 64, "width": 96, "rounds": 1, "warm_up": 0, "experiments": EXPERIMENTS,
        "detections": 5, "candidates": 50, "overrides": small, "peers": [], "reference": EXPERIMENTS[0],
        "device": "cpu",
    }  # fmt: skip
    report = benchmark({**settings("benchmark"), **changes})
    assert [row.name for row in report.rows] == EXPERIMENTS
    for row in report.rows:
        assert {"backbone", "rpn", "box head"} <= row.stages.keys() and row.stages["rpn"] > 0


def test_is_not_exported(ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MaskRCNN cannot be exported"):
        export(settings("export", ckpt=str(ckpt), output=str(tmp_path / "m.onnx")))
    with pytest.raises(ValueError, match="basis-based models, and not for MaskRCNN"):
        convert(ckpt, tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


def test_is_not_inspected(ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="MaskRCNN has none"):
        Inspection(str(tmp_path / "i.json")).on_validation_epoch_start(None, LitSegmenter.from_checkpoint(ckpt))
