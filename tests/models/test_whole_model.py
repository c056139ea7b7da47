"""The segmenter end to end: losses stay finite and attached where there is little or nothing to learn from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from b2inst.config import CHECKPOINT_TARGETS, build
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.models.segmenter import Segmenter
from b2inst.ops.points import conv3x3_at
from b2inst.structures import Batch, ImageBatch, Targets
from toy import toy_config


def make_batch(boxes: list[list[tuple[int, int, int, int]]], size: int = 64) -> Batch:
    """One image per list; each box is filled by its mask."""
    count = len(boxes)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[size, size]] * count)
    flat = [(n, box) for n, image in enumerate(boxes) for box in image]
    masks = torch.zeros(len(flat), size, size, dtype=torch.bool)
    for mask, (_, (x0, y0, x1, y1)) in zip(masks, flat, strict=True):
        mask[y0:y1, x0:x1] = True
    targets = Targets(
        torch.tensor([box for _, box in flat], dtype=torch.float32).reshape(-1, 4),
        torch.arange(len(flat)) % 3, torch.tensor([n for n, _ in flat], dtype=torch.int64), masks,
        torch.zeros(count, size, size, dtype=torch.bool),
    )  # fmt: skip
    return BoundaryTarget(classes=True)(Batch(ImageBatch(pixels, sizes, sizes, torch.arange(count)), targets))


def make_model(*overrides: str) -> Segmenter:
    """A small model with 3 classes."""
    config = toy_config(Path("unused"), Path("unused"), "model.num_classes=3", *overrides)
    torch.manual_seed(0)
    return build(config["model"], CHECKPOINT_TARGETS).train()


BATCHES = {
    "normal": [[(4, 4, 40, 36), (30, 30, 60, 60)], [(8, 8, 24, 56)]],
    "one image empty": [[(4, 4, 40, 36)], []],
    "all images empty": [[], []],
    "one image": [[(4, 4, 40, 36)]],
    "one pixel": [[(20, 20, 21, 21)], [(8, 8, 24, 56)]],
}
VARIANTS = [
    ("boundary@model.boundary=none", "loss@model.losses=[]"),
    ("boundary@model.boundary=unsupervised", "loss@model.losses=[]"),
    ("boundary@model.boundary=instance", "model.boundary.use_prediction=false"),
    ("boundary@model.boundary=instance", "loss@model.losses=[bce,dice,bf1,kervadec,edge_agreement]"),
    ("boundary@model.boundary=global", "model.boundary.use_prediction=false"),
    ("boundary@model.boundary=global", "loss@model.losses=[bce,dice,bf1,kervadec,edge_agreement]"),
    ("boundary@model.boundary=global", "model.scoring.boxes=pred_box"),
    ("boundary@model.boundary=global", "model.boundary.classes=true", "model.boundary.use_prediction=false"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: " ".join(v))
@pytest.mark.parametrize("boxes", BATCHES.values(), ids=BATCHES)
def test_losses_are_finite_and_attached(variant: tuple[str, ...], boxes: list) -> None:
    # 64 channels: with one per group, group norm has a single value left on the top level of one small image
    model = make_model("scoring@model.scoring=light", "model.fpn.channels=64", *variant)
    batch = make_batch(boxes)
    losses, _ = model.losses(model(batch.images), batch)
    assert losses.keys() == model.weights().keys() - ({"semantic"} if model.semantic is None else set())
    for name, value in losses.items():
        assert value.ndim == 0 and value.isfinite(), name
        assert value.requires_grad, name
    model.total_loss(losses).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "DistributedDataParallel would wait for these"
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_losses_need_targets() -> None:
    batch = make_batch([[(4, 4, 40, 36)], []])
    model = make_model()
    with pytest.raises(ValueError, match="needs targets"):
        model.losses(model(batch.images), Batch(batch.images))


def test_the_mask_loss_reaches_the_boundary_basis_only_if_it_is_used() -> None:
    batch = make_batch(BATCHES["normal"])
    for override, reached in (("logit", True), ("sigmoid", True), ("detached", False)):
        model = make_model(f"model.boundary.input={override}")
        losses, _ = model.losses(model(batch.images), batch)
        losses["mask"].backward()
        assert bool(model.basis.bases.weight.grad[-1].abs().sum() > 0) == reached
    model = make_model("model.boundary.use_prediction=false")
    losses, _ = model.losses(model(batch.images), batch)
    losses["mask"].backward()
    assert model.basis.bases.weight.grad[-1].abs().sum() == 0
    assert model.detector.params.out_channels == 4 * 7 * 7


def test_detections_are_sorted_and_inside_the_image() -> None:
    batch = make_batch(BATCHES["normal"])
    model = make_model("model.detector.score_threshold=0.0", "scoring@model.scoring=light").eval()
    for found in model.detect(model(batch.images), batch.images):
        assert 0 < len(found) <= 100
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all() and (found.boxes <= 64).all()
        assert (found.scores <= found.box_scores).all()
        assert found.mask_logits.shape == (len(found), 28, 28)


def test_sizes_of_the_published_model() -> None:
    """Parameter counts of BlendMask R-50, and what the boundary basis adds."""
    model = make_model(
        "experiment=ablation_e", "model.num_classes=80", "model.fpn.channels=256", "model.detector.num_convs=4",
        "model.basis.channels=128", "model.basis.num_convs=3", "model.assembly.attention_size=14",
    )  # fmt: skip
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    params = sum(p.numel() for p in model.detector.params.parameters())
    assert count["detector"] - params == 4_920_661
    assert params == 1_807_120 + 451_780
    assert count["basis"] == 885_504 + 591_364 + 129
    assert count["semantic"] == 453_329


def test_a_convolution_at_some_cells_equals_the_dense_one() -> None:
    conv = torch.nn.Conv2d(8, 5, 3, padding=1)
    features = torch.randn(2, 8, 6, 7)
    image, y, x = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 5, 3, 2]), torch.tensor([6, 2, 0, 3])
    torch.testing.assert_close(conv3x3_at(conv, features, image, y, x), conv(features)[image, :, y, x])
