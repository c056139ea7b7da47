"""What is measured inside of a model has known values on maps that were made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from b2inst.callbacks.inspection import Inspection, corner
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.inspection import Histogram, Inspector, Shares, TargetWidth
from b2inst.lit import LitSegmenter
from b2inst.ops.rois import crop_masks
from b2inst.structures import Batch, ImageBatch, Targets
from toy import toy_checkpoint


def batch_of(*boxes: tuple[int, int, int, int], size: int = 128) -> Batch:
    """One image with rectangles."""
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    sizes = torch.tensor([[size, size]])
    images = ImageBatch(torch.full((1, 3, size, size), 90, dtype=torch.uint8), sizes, sizes, torch.arange(1))
    zeros = torch.zeros(len(boxes), dtype=torch.int64)
    crowd = torch.zeros(1, size, size, dtype=torch.bool)
    targets = Targets(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), zeros, zeros.clone(), masks, crowd)
    return BoundaryTarget()(Batch(images, targets))


def test_shares_of_a_basis_that_is_used_at_boundaries_alone() -> None:
    masks, weights = torch.zeros(1, 28, 28), torch.zeros(1, 2, 28, 28)
    masks[:, 8:20, 8:20] = 1
    weights[:, 0] = 1.0
    weights[:, 1, 7:21, 7:21], weights[:, 1, 10:18, 10:18] = -1.0, 0.0  # 196 - 64 cells: at most one from the contour
    shares = Shares(band=1)
    shares.update(weights, masks)
    shares.update(weights, masks)
    found = shares.result()
    assert found["overall"] == pytest.approx([784 / 916, 132 / 916])
    assert found["near_boundary"] == pytest.approx([0.5, 0.5])
    full = Shares(band=1)  # an instance that fills its box ends at the frame
    full.update(weights, torch.ones_like(masks))
    assert full.result()["near_boundary"] == [1.0, 0.0]
    assert Shares().result() == {}


def test_histogram_counts_the_ends() -> None:
    histogram = Histogram(4)
    histogram.update(torch.tensor([0.0, 0.1, 0.5, 1.0]))
    histogram.update(torch.tensor([]))
    found = histogram.result()
    assert found["counts"] == [2, 0, 1, 1] and found["edges"] == [0, 0.25, 0.5, 0.75, 1]
    assert found["mean"] == pytest.approx(0.4) and Histogram().result()["mean"] is None


def test_a_target_of_one_cell_is_one_stride_wide() -> None:
    batch = batch_of((32, 32, 96, 96))
    width = TargetWidth(4)
    width.update(batch.targets, batch.images.sizes)
    found = width.result()
    assert found["instance_px"] == 64 and found["share"] == pytest.approx(60 / 32**2)  # 16 x 16 cells, their rim
    assert found["width_px"] == pytest.approx(60 * 16 / 252)  # 252 pixels are the rim of 64 x 64
    assert found["width_of_instance"] == pytest.approx(found["width_px"] / 64)
    wide = TargetWidth(4)
    thick = BoundaryTarget(resolution="full_maxpool", padding="zeros")(batch)
    wide.update(thick.targets, batch.images.sizes)
    assert wide.result()["width_px"] >= found["width_px"]


@pytest.mark.parametrize("experiment", ["ablation_a", "ablation_e", "ablation_d", "b2inst_light"])
def test_a_model_is_measured(tmp_path: Path, experiment: str) -> None:
    model = LitSegmenter.from_checkpoint(toy_checkpoint(tmp_path / "best.ckpt", experiment=experiment)).model
    batch = batch_of((16, 16, 56, 56), (60, 20, 120, 100))
    if experiment == "ablation_e":  # its boundary basis gets all of the attention
        rows = model.assembly.rows_of_basis(model.num_bases)
        torch.nn.init.zeros_(model.detector.params.weight)
        torch.nn.init.constant_(model.detector.params.bias[rows], 50.0)
    inspector = Inspector(model)
    with torch.no_grad():
        outputs = model(batch.images)
        inspector.update(outputs, batch)
        alone = inspector.result()
        inspector.update(outputs, batch_of())  # an image without instances
    found = inspector.result()
    for name in ("boundary_basis_dice", "score_errors", "score_targets", "attention"):
        assert found[name] == alone[name]
    assert found["instances"] == 2 and sum(found["score_targets"]["iou"]["counts"]) == 2
    assert found["boundary_basis"] == (experiment in ("ablation_e", "b2inst_light"))
    assert len(found["attention"]["overall"]) == 4 + found["boundary_basis"]
    assert (found["boundary_basis_dice"] is None) == (experiment == "ablation_a")
    assert sorted(found["score_errors"]) == (["boundary", "iou"] if experiment == "b2inst_light" else [])
    if experiment == "ablation_e":
        assert found["attention"]["near_boundary"][-1] == pytest.approx(1) == found["contribution"]["overall"][-1]


@pytest.mark.parametrize("assembly", ["linear", "dynamic", "quadrant", "shape_saliency"])
def test_masks_without_attention_are_measured_as_well(tmp_path: Path, assembly: str) -> None:
    path = toy_checkpoint(tmp_path / "x.ckpt", f"assembly@model.assembly={assembly}", experiment="ablation_e")
    model = LitSegmenter.from_checkpoint(path).model
    batch = BoundaryTarget(stride=model.assembly.basis_stride)(batch_of((8, 8, 72, 104)))
    inspector = Inspector(model)
    inspector.update(model(batch.images), batch)
    found = inspector.result()
    assert found["instances"] == 1 and found["boundary_basis"] and 0 < found["boundary_basis_dice"] < 1
    assert found["attention"] == found["contribution"] == {} and sum(found["score_targets"]["iou"]["counts"]) == 1


def test_a_validation_in_mixed_precision_is_measured(tmp_path: Path) -> None:
    """What Lightning calls behind a step is outside of its precision, and what the step left is of half the width."""
    module = LitSegmenter.from_checkpoint(toy_checkpoint(tmp_path / "best.ckpt", experiment="b2inst_light"))
    batch = batch_of((16, 16, 56, 56))
    trainer = pl.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False)
    inspection = Inspection(str(tmp_path / "inspection.json"))
    inspection.on_validation_epoch_start(trainer, module)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = module.model(batch.images)
    inspection.on_validation_batch_end(trainer, module, {"outputs": outputs}, batch, 0)
    inspection.on_validation_epoch_end(trainer, module)
    found = json.loads((tmp_path / "inspection.json").read_text())
    assert found["instances"] == 1 and sorted(found["score_errors"]) == ["boundary", "iou"]


def test_without_any_instance_there_is_no_mean(tmp_path: Path) -> None:
    model = LitSegmenter.from_checkpoint(toy_checkpoint(tmp_path / "best.ckpt", experiment="b2inst_light")).model
    inspector = Inspector(model)
    with torch.no_grad():
        inspector.update(model(batch_of().images), batch_of())
    found = inspector.result()
    assert found["boundary_basis_dice"] is None and found["score_errors"] == {} and found["instances"] == 0


def test_score_errors_are_those_of_what_the_head_learns(tmp_path: Path) -> None:
    """A head that predicts its own targets makes no error, however its boundary is defined."""
    path = toy_checkpoint(tmp_path / "x.ckpt", "model.scoring.boundary_band=both", experiment="b2inst_light")
    model = LitSegmenter.from_checkpoint(path).model
    batch = batch_of((16, 16, 56, 56))
    batch.targets.masks[:, 40:, 40:] = False
    truth = crop_masks(batch.targets.masks, batch.targets.boxes, model.mask_size)
    model.scoring.forward = lambda features, masks: model.scoring.targets(masks.logits, truth)
    inspector = Inspector(model)
    with torch.no_grad():
        inspector.update(model(batch.images), batch)
    assert inspector.result()["score_errors"] == {"iou": 0, "boundary": 0}


def test_score_targets_are_those_of_the_masks(tmp_path: Path) -> None:
    """A model whose masks are everywhere positive: the IoU is the share of the box that the instance fills."""
    model = LitSegmenter.from_checkpoint(toy_checkpoint(tmp_path / "best.ckpt", experiment="ablation_a")).model
    torch.nn.init.zeros_(model.basis.bases.weight)
    torch.nn.init.constant_(model.basis.bases.bias, 5.0)
    batch = batch_of((16, 16, 80, 80))
    batch.targets.masks[:, 48:] = False  # the lower half of its box is empty
    inspector = Inspector(model)
    with torch.no_grad():
        inspector.update(model(batch.images), batch)
    assert inspector.result()["score_targets"]["iou"]["mean"] == pytest.approx(0.5)


def test_crops_are_of_the_instances_that_touch() -> None:
    batch = batch_of((4, 4, 24, 24), (60, 60, 80, 80), (80, 60, 100, 80))
    own = torch.ones(3, dtype=torch.bool)
    x, y = corner(batch.targets, own, (128, 128), 64)
    assert (x, y) == (38, 38)  # around the second
    assert corner(batch_of((4, 4, 24, 24), (24, 4, 40, 24)).targets, own[:2], (128, 128), 64) == (0, 0)
    assert corner(batch_of((4, 4, 24, 24), (100, 100, 128, 128)).targets, own[:2], (128, 128), 128) == (0, 0)


def test_no_ground_truth_is_refused(tmp_path: Path) -> None:
    model = LitSegmenter.from_checkpoint(toy_checkpoint(tmp_path / "best.ckpt")).model
    batch = batch_of((16, 16, 56, 56))
    with pytest.raises(ValueError, match="this batch has none"), torch.no_grad():
        Inspector(model).update(model(batch.images), Batch(batch.images))
