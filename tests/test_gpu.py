"""What only a CUDA device can show; `make gpu-check` runs it there, and B2INST_TEST_DEVICE=cpu tries the tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from b2inst import B2Inst, Prediction
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.lit import LitSegmenter
from b2inst.models.inference import Switches
from b2inst.ops.laplacian import boundary
from b2inst.structures import Batch
from b2inst.train import train
from models import build
from toy import toy_checkpoint, toy_config

DEVICE = os.environ.get("B2INST_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """TF32 rounds to 10 bits; what is compared here is the code and not the rounding."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt", experiment="ablation_e", best_threshold=0.3)


def images(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 90, 120 + 8 * i), dtype=torch.uint8, generator=generator) for i in range(count)]


def batch() -> Batch:
    """Touching and cut ellipses; the second image is smaller than the canvas."""
    boxes = [[(4, 4, 40, 44), (36, 12, 76, 60)], [(20, 8, 92, 56)]]
    return build.batch(boxes, height=96, width=128, sizes=[(96, 128), (80, 100)])


def agree(found: Prediction, wanted: Prediction, count: int, pixels: float = 0.05, iou: float = 0.99) -> None:
    """The best instances have the same classes, boxes and masks."""
    assert found.labels[:count].tolist() == wanted.labels[:count].tolist()
    assert np.abs(found.boxes[:count] - wanted.boxes[:count]).max() < pixels
    one, other = found.bool_masks()[:count], wanted.bool_masks()[:count]
    assert ((one & other).sum((1, 2)) >= iou * (one | other).sum((1, 2))).all() and one.any()


@pytest.mark.parametrize("resolution", ["stride", "full_maxpool", "detail"])
@pytest.mark.parametrize("merge", ["per_instance_max", "union"])
def test_ground_truth_on_the_device_is_that_of_the_cpu(resolution: str, merge: str) -> None:
    make = BoundaryTarget(resolution=resolution, merge=merge)
    found, wanted = make(batch().to(DEVICE)).targets, make(batch()).targets
    assert found.boundary.device.type == torch.device(DEVICE).type and wanted.boundary.count_nonzero() > 50
    assert torch.equal(found.boundary.cpu(), wanted.boundary)
    assert torch.equal(found.boundary_weight.cpu(), wanted.boundary_weight)


def test_the_laplacian_is_exact_in_half_precision() -> None:
    masks = batch().targets.masks
    with torch.autocast(DEVICE, torch.bfloat16):
        found = boundary(masks.to(DEVICE))
    assert torch.equal(found.float().cpu(), boundary(masks))


def test_losses_on_the_device_are_those_of_the_cpu() -> None:
    model, target = build.segmenter(mode="iou_boundary").train(), BoundaryTarget()
    wanted, _ = model.losses(model(batch().images), target(batch()))
    model, there = model.to(DEVICE), target(batch().to(DEVICE))
    found, _ = model.losses(model(there.images), there)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-4), name


def test_losses_of_mixed_precision_are_near_and_their_gradients_finite() -> None:
    model, there = build.segmenter(mode="iou_boundary").train().to(DEVICE), BoundaryTarget()(batch().to(DEVICE))
    exact = model.total_loss(model.losses(model(there.images), there)[0]).item()
    with torch.autocast(DEVICE, torch.bfloat16):
        losses, _ = model.losses(model(there.images), there)
    assert all(value.dtype == torch.float32 for value in losses.values())
    total = model.total_loss(losses)
    total.backward()
    assert total.item() == pytest.approx(exact, rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_model_finds_on_the_device_what_it_finds_on_the_cpu(ckpt: Path) -> None:
    here, there = (B2Inst.from_checkpoint(ckpt, device) for device in ("cpu", DEVICE))
    for wanted, found in zip(here.predict(images(), 0.1), there.predict(images(), 0.1, batch_size=3), strict=True):
        assert abs(len(found) - len(wanted)) <= 1 and len(wanted) > 20  # rounding decides at thresholds
        same = min(len(found), len(wanted), 10)
        assert found.scores[:same] == pytest.approx(wanted.scores[:same], abs=1e-3)
        agree(found, wanted, same)


@pytest.mark.parametrize("switches", [Switches(precision="bf16"), Switches(compile=True)], ids=["bf16", "compiled"])
def test_switches_keep_what_is_found(ckpt: Path, switches: Switches) -> None:
    plain, fast = B2Inst.from_checkpoint(ckpt, DEVICE), B2Inst.from_checkpoint(ckpt, DEVICE, switches)
    wanted, found = plain.predict(images(1)[0], 0.1), fast.predict(images(1)[0], 0.1)
    near = 0.05 if switches.precision == "bf16" else 1e-3
    assert len(wanted) > 20 and found.scores[:5] == pytest.approx(wanted.scores[:5], abs=near)
    if switches.compile:  # bf16 may change the order of what is nearly equal
        agree(found, wanted, 5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_run_in_mixed_precision(tmp_path: Path, precision: str) -> None:
    if precision == "16-mixed" and DEVICE == "cpu":
        pytest.skip("PyTorch has no scaler for the gradients on a CPU")
    changes = [f"trainer.precision={precision}", "training.channels_last=true", "experiment=b2inst"]
    config = toy_config(tmp_path / "set", tmp_path / "run", *changes, "model.fpn.channels=64")
    config["trainer"]["accelerator"] = "gpu" if DEVICE == "cuda" else DEVICE
    scores = train(config)
    assert scores.metrics["mask/AP"] >= 0
    state = LitSegmenter.from_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict()
    assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


def test_boundary_logits_do_not_depend_on_the_memory_format() -> None:
    model = build.segmenter().eval().to(DEVICE)
    there = batch().to(DEVICE)
    with torch.no_grad():
        wanted = model(there.images).bases
        found = model.to(memory_format=torch.channels_last)(replace(there.images)).bases
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
