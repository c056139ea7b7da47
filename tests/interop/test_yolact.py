"""YOLACT's names and shapes, which are written out here as its code builds them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from b2inst.interop.convert import convert
from b2inst.interop.names import adelaidet_names
from b2inst.interop.yolact import is_yolact, load_yolact, yolact_names, yolact_overrides
from b2inst.lit import LitSegmenter
from b2inst.models.backbone import ResNet
from b2inst.models.basis import no_semantic
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, NoBoundary, UnsupervisedBoundary
from b2inst.models.fpn_yolact import YolactFPN
from b2inst.models.protonet_yolact import YolactProtonet
from b2inst.models.segmenter import Segmenter
from models import build


def shapes(blocks: tuple[int, ...] = (3, 4, 6, 3), classes: int = 80) -> dict[str, tuple[int, ...]]:
    """Shape of every entry of YOLACT on a ResNet of bottlenecks, but for the counters of steps."""
    entries: dict[str, tuple[int, ...]] = {}

    def conv(key: str, out: int, given: int, size: int, bias: bool = True) -> None:
        entries[f"{key}.weight"] = (out, given, size, size)
        if bias:
            entries[f"{key}.bias"] = (out,)

    def norm(key: str, width: int) -> None:
        entries.update({f"{key}.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")})

    conv("backbone.conv1", 64, 3, 7, bias=False)
    norm("backbone.bn1", 64)
    given = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            key = f"backbone.layers.{stage}.{block}"
            for i, (out, inside, size) in enumerate([(width, given, 1), (width, width, 3), (4 * width, width, 1)], 1):
                conv(f"{key}.conv{i}", out, inside, size, bias=False)
                norm(f"{key}.bn{i}", out)
            if block == 0:
                conv(f"{key}.downsample.0", 4 * width, given, 1, bias=False)
                norm(f"{key}.downsample.1", 4 * width)
            given = 4 * width
    for i, channels in enumerate((2048, 1024, 512)):
        conv(f"fpn.lat_layers.{i}", 256, channels, 1)
        conv(f"fpn.pred_layers.{i}", 256, 256, 3)
    for i in range(2):
        conv(f"fpn.downsample_layers.{i}", 256, 256, 3)
    for i in (0, 2, 4, 8):
        conv(f"proto_net.{i}", 256, 256, 3)
    conv("proto_net.10", 32, 256, 1)
    conv("prediction_layers.0.upfeature.0", 256, 256, 3)
    for name, rows in (("bbox", 12), ("conf", 3 * (classes + 1)), ("mask", 96)):
        conv(f"prediction_layers.0.{name}_layer", rows, 256, 3)
    conv("semantic_seg_conv", classes, 256, 1)
    return entries


def state(**options) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(shape, generator=generator) + 0.5 if "running_var" in key
        else 0.05 * torch.randn(shape, generator=generator)
        for key, shape in shapes(**options).items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return state()


def model(boundary: NoBoundary | None = None, **options) -> Segmenter:
    """YOLACT R-50 with 80 classes."""
    parts = {
        "num_classes": 80, "num_bases": 32, "losses": {}, "backbone": ResNet(50, preset="yolact", weights=None),
        "fpn": YolactFPN, "basis": YolactProtonet, "detector": {"sizes_of_interest": (64, 128, 256, 512)}, **options,
    }  # fmt: skip
    return build.yolact(boundary or NoBoundary(), **parts)


def test_every_key_is_used_and_every_parameter_filled(weights: dict[str, Tensor]) -> None:
    assert len(weights) == 265 + 12 + 4 + 10 + 8 + 2 and is_yolact(weights)
    ours = model()
    report = load_yolact(ours, weights)
    assert report.left_over == [] and report.fresh == {} and len(report.loaded) == len(weights)
    own = ours.state_dict()
    assert len(own) == len(weights)
    for key, theirs in yolact_names(ours).items():
        assert torch.equal(own[key], weights[theirs]), key


def test_where_some_of_them_go(weights: dict[str, Tensor]) -> None:
    """Lists that run the other way, counters that skip layers without tensors."""
    ours = model()
    load_yolact(ours, weights)
    for tensor, theirs in (
        (ours.backbone.stages[0][0].weight, "backbone.conv1.weight"),
        (ours.backbone.stages[3][5].bn2.running_mean, "backbone.layers.2.5.bn2.running_mean"),
        (ours.fpn.lateral[0].weight, "fpn.lat_layers.2.weight"),
        (ours.fpn.outputs[2][0].bias, "fpn.pred_layers.0.bias"),
        (ours.fpn.top[1].weight, "fpn.downsample_layers.1.weight"),
        (ours.basis.tower[2][0].weight, "proto_net.4.weight"),
        (ours.basis.upsampled[0].weight, "proto_net.8.weight"),
        (ours.basis.bases.bias, "proto_net.10.bias"),
        (ours.detector.tower[0].weight, "prediction_layers.0.upfeature.0.weight"),
        (ours.detector.params.bias, "prediction_layers.0.mask_layer.bias"),
        (ours.semantic.conv.weight, "semantic_seg_conv.weight"),
    ):
        assert torch.equal(tensor, weights[theirs]), theirs


def test_what_files_may_have_more_or_less(weights: dict[str, Tensor]) -> None:
    more = {
        **weights, "backbone.bn1.num_batches_tracked": torch.tensor(3), "backbone.layer1.0.conv1.weight": torch.ones(1),
        "fpn.downsample_layers.2.weight": torch.ones(1),
    }  # fmt: skip
    assert len(load_yolact(model(), more).left_over) == 3
    less = {k: v for k, v in weights.items() if not k.startswith("semantic_seg_conv")}
    assert set(load_yolact(model(), less).fresh.values()) == {"not in the file"}
    assert len(load_yolact(model(semantic=no_semantic), weights).left_over) == 2


def test_what_does_not_fit_is_listed(weights: dict[str, Tensor]) -> None:
    changed = dict(weights)
    changed["proto_net.8.weight"] = torch.ones(128, 256, 3, 3)
    del changed["fpn.pred_layers.1.bias"]
    changed["maskiou_net.0.weight"] = torch.ones(1)
    ours = model()
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_yolact(ours, changed, source="x.pth")
    assert str(error.value).splitlines() == [
        "x.pth: does not fit this model", "  fpn.pred_layers.1.bias (not in the file)",
        "  proto_net.8.weight (128, 256, 3, 3) for (256, 256, 3, 3)", "  maskiou_net.0.weight (not in this model)",
    ]  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())


def test_other_classes(weights: dict[str, Tensor]) -> None:
    ours = model(num_classes=3)
    with pytest.raises(ValueError, match=r"conf_layer.weight \(243, 256, 3, 3\) for \(12, 256, 3, 3\)"):
        load_yolact(ours, weights)
    report = load_yolact(ours, weights, reset_classifier=True)
    assert {key.rpartition(".")[0] for key in report.fresh} == {"detector.cls_logits", "semantic.conv"}


@pytest.mark.parametrize(
    ("boundary", "own"), [(GlobalBoundary(), 1), (GlobalBoundary(classes=True), 80), (InstanceBoundary(), 1)]
)
def test_masks_start_as_without_the_boundary_basis(boundary: NoBoundary, own: int, weights: dict[str, Tensor]) -> None:
    plain, extended = model().eval(), model(boundary).eval()
    load_yolact(plain, weights)
    report = load_yolact(extended, weights)
    assert len(report.fresh) == 4
    images = build.images(1, 64, 64)
    with torch.no_grad():
        outputs = [m(images) for m in (plain, extended)]
        assert outputs[1].bases.shape[1] == 32 + own
        assert torch.equal(outputs[0].bases, outputs[1].bases[:, :32])
        assert outputs[1].bases[:, 32:].mean() < -1
        wanted, found = (m.detect(o, images)[0] for m, o in zip((plain, extended), outputs, strict=True))
    assert len(found) > 3
    torch.testing.assert_close(found.mask_logits, wanted.mask_logits)


@pytest.mark.parametrize("entry", ["logit", "sigmoid", "negative"])
def test_a_basis_that_only_the_masks_teach_is_reached(entry: str, weights: dict[str, Tensor]) -> None:
    """Its coefficient is from the start, and with a coefficient that is not 0 the basis is."""
    ours, batch = model(UnsupervisedBoundary(input=entry)), build.batch(build.BATCHES["a single image"])
    load_yolact(ours, weights)
    for _ in range(2):
        ours.zero_grad()
        losses, _ = ours.losses(ours(batch.images), batch)
        losses["mask"].backward()
        coefficients = ours.detector.params.bias.grad.unflatten(0, (3, 33))[:, -1]
        assert coefficients.any()
        with torch.no_grad():
            ours.detector.params.bias.unflatten(0, (3, 33))[:, -1] -= coefficients.sign()
    assert ours.basis.bases.weight.grad[-1].any() and ours.basis.bases.bias.grad[-1] != 0


def test_other_models(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="model.fpn, model.detector, model.basis: not YOLACT's.*yolact_r50"):
        yolact_names(build.segmenter(NoBoundary(), losses={}))
    with pytest.raises(ValueError, match="leave `experiment` alone, and give boundary@model.boundary=global"):
        yolact_names(build.segmenter(GlobalBoundary()))
    with pytest.raises(ValueError, match="fpn.outputs.0.1.weight.*norm=none"):
        yolact_names(model(fpn=partial(YolactFPN, norm="gn")))
    with pytest.raises(ValueError, match="preset=yolact"):
        load_yolact(model(backbone=ResNet(50, weights=None)), weights)
    with pytest.raises(ValueError, match="detector Yolact: AdelaiDet's weights are for FCOS"):
        adelaidet_names(model())


def test_sizes_are_read_off_the_file(weights: dict[str, Tensor]) -> None:
    assert yolact_overrides(weights) == [
        "model.num_classes=80", "model.num_bases=32", "model.backbone.depth=50", "model.backbone.weights=null",
    ]  # fmt: skip
    deep = {"backbone.layers.2.22.conv3.weight": torch.ones(1)}
    deep |= {f"backbone.layers.2.{b}.conv3.weight": torch.ones(1) for b in range(22)}
    heads = {k: v for k, v in weights.items() if k.startswith("prediction_layers")}
    assert "model.backbone.depth=101" in yolact_overrides({**deep, **heads})
    with pytest.raises(ValueError, match="x.pth: .*no DarkNet"):
        yolact_overrides(heads, "x.pth")


def test_the_command_makes_a_checkpoint(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "in.pth")
    told = convert(tmp_path / "in.pth", tmp_path / "out.ckpt")
    assert f"{len(weights)} tensors loaded, 0 left over" in told
    module = LitSegmenter.from_checkpoint(tmp_path / "out.ckpt")
    assert len(module.config["classes"]) == 80 and module.config["model"]["loss_weights"]["mask"] == 6.125
    ours = model()
    load_yolact(ours, weights)
    own = ours.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in module.model.state_dict().items() if key in own)


def test_the_command_makes_a_b2inst_of_it(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """What the error of experiment=b2inst says to give instead does it."""
    torch.save(weights, tmp_path / "in.pth")
    with pytest.raises(ValueError, match="not YOLACT's") as error:
        convert(tmp_path / "in.pth", tmp_path / "out.ckpt", ["experiment=b2inst"])
    settings = re.findall(r"\w+@[^\s']+", str(error.value))
    convert(tmp_path / "in.pth", tmp_path / "out.ckpt", settings)
    ours = LitSegmenter.from_checkpoint(tmp_path / "out.ckpt").model
    assert isinstance(ours.boundary, GlobalBoundary) and set(ours.terms) == {"bce", "dice", "bf1"}
    assert set(ours.scoring.qualities) == {"iou", "boundary"} and len(ours.basis.bases.weight) == 33


def test_the_command_wants_the_right_classes(tmp_path: Path) -> None:
    torch.save(state(classes=3), tmp_path / "in.pth")
    with pytest.raises(ValueError, match="has 3 classes, and there are 80"):
        convert(tmp_path / "in.pth", tmp_path / "out.ckpt")
