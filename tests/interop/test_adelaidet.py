from __future__ import annotations

import re
from functools import partial

import pytest
import torch

from b2inst.interop.adelaidet import export_adelaidet, load_adelaidet
from b2inst.interop.names import HEAD, adelaidet_names
from b2inst.models.assembly.dynamic import DynamicConvolutions
from b2inst.models.assembly.linear import LinearCombination
from b2inst.models.backbone import MobileNetV2
from b2inst.models.basis import BasisHead, no_semantic
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, UnsupervisedBoundary
from b2inst.models.fpn import FPN
from b2inst.models.segmenter import Segmenter
from interop.small import blendmask, same, weights
from models import build


def test_names_lead_both_ways() -> None:
    model = blendmask(detector={"use_scale": True})
    names = adelaidet_names(model)
    assert len(set(names.values())) == len(names) == len(model.state_dict())
    assert names["backbone.stages.2.0.downsample.1.bias"] == "backbone.bottom_up.res3.0.shortcut.norm.bias"
    assert names["basis.upsampled.0.weight"] == "basis_module.tower.2.0.weight"  # after one convolution
    assert names["semantic.layers.1.1.bias"] == "basis_module.seg_head.4.bias"


def test_what_is_loaded_is_exported() -> None:
    state = weights(detector={"use_scale": True, "num_share_convs": 2})
    model = blendmask(detector={"use_scale": True, "num_share_convs": 2})
    report = load_adelaidet(model, state)
    assert same(export_adelaidet(model), state)
    assert (report.fresh, report.left_over) == ({}, [])
    assert [state[f"{HEAD}.scales.{level}.scale"].shape for level in range(5)] == [(1,)] * 5
    assert model.detector.scales[3] == state[f"{HEAD}.scales.3.scale"]


def test_an_export_is_a_copy() -> None:
    model = blendmask()
    exported = export_adelaidet(model)
    before = exported["top_layer.bias"].clone()
    with torch.no_grad():
        model.detector.params.bias += 1
    assert torch.equal(exported["top_layer.bias"], before)


def test_lower_precision_is_widened() -> None:
    model, state = blendmask(), weights()
    load_adelaidet(model, {k: v.half() if v.is_floating_point() else v for k, v in state.items()})
    assert same(export_adelaidet(model), state)


# --------------------------------------------------------------------------------------------- the boundary basis


def test_a_boundary_basis_keeps_the_old_rows_and_begins_as_blendmask() -> None:
    state = weights()
    plain, extended = blendmask(), blendmask(GlobalBoundary())
    load_adelaidet(plain, state)
    report = load_adelaidet(extended, state)
    assert torch.equal(extended.basis.bases.weight[:4], plain.basis.bases.weight)
    assert torch.equal(extended.detector.params.weight[: 4 * 49], plain.detector.params.weight)
    assert (extended.detector.params.weight[4 * 49 :] == 0).all()
    assert (extended.detector.params.bias[4 * 49 :] == -4).all() and (extended.basis.bases.bias[4:] == -4).all()
    assert 0 < extended.basis.bases.weight[4:].std() < 0.02
    assert set(report.fresh) == {f"{part}.{kind}" for part in ("basis.bases", "detector.params")
                                 for kind in ("weight", "bias")}  # fmt: skip


@pytest.mark.parametrize("boundary", [GlobalBoundary, UnsupervisedBoundary])
def test_masks_hardly_change_at_the_start_of_fine_tuning(boundary: type[UnsupervisedBoundary]) -> None:
    changes = {}
    state, images = weights(), build.images(1, 64, 96)
    plain = blendmask(detector={"score_threshold": 0.0}).eval()
    load_adelaidet(plain, state)
    wanted = plain.detect(plain(images), images)[0].mask_logits
    for bias in (-4.0, 0.0):
        model = blendmask(boundary(), detector={"score_threshold": 0.0}).eval()
        load_adelaidet(model, state, attention_bias=bias)
        changes[bias] = float((model.detect(model(images), images)[0].mask_logits - wanted).abs().mean())
    assert changes[-4.0] < 0.05 < changes[0.0]


def test_where_the_basis_starts_is_said_by_the_variant() -> None:
    """At the prior of a boundary where losses teach it, and above 0 where masks alone do."""
    starts = {}
    for variant in (GlobalBoundary, InstanceBoundary, UnsupervisedBoundary):
        model = blendmask(variant())
        load_adelaidet(model, weights())
        starts[variant] = model.basis.bases.bias[4].item()
    assert starts == {GlobalBoundary: -4, InstanceBoundary: -4, UnsupervisedBoundary: 1}
    load_adelaidet(model, weights(), boundary_bias=-2.0)
    assert model.basis.bases.bias[4] == -2


def test_five_bases_are_exported_and_loaded_as_five() -> None:
    model = blendmask(GlobalBoundary())
    exported = export_adelaidet(model)
    assert exported["basis_module.tower.3.weight"].shape[0] == 5 and exported["top_layer.bias"].shape[0] == 5 * 49
    again = blendmask(GlobalBoundary(), seed=1)
    assert load_adelaidet(again, exported).fresh == {}
    assert same(again.state_dict(), model.state_dict())


def test_a_basis_that_is_only_supervised_is_dropped() -> None:
    exported = export_adelaidet(blendmask(GlobalBoundary(use_prediction=False)))
    assert exported["basis_module.tower.3.weight"].shape[0] == 4 and exported["top_layer.bias"].shape[0] == 4 * 49
    model = blendmask(GlobalBoundary(use_prediction=False))
    assert "basis.bases.bias" in load_adelaidet(model, exported).fresh


def test_masks_that_adelaidet_cannot_make_are_not_exported() -> None:
    for entry in ("sigmoid", "negative"):
        with pytest.raises(ValueError, match=f"input={entry}"):
            export_adelaidet(blendmask(GlobalBoundary(input=entry)))
    with pytest.raises(ValueError, match="classes=true"):
        export_adelaidet(blendmask(GlobalBoundary(classes=True)))


def test_a_boundary_by_class_keeps_the_old_rows() -> None:
    state, model = weights(), blendmask(GlobalBoundary(classes=True, use_prediction=False))
    load_adelaidet(model, state)
    rows = len(model.basis.bases.weight)
    assert rows > 5 and same(export_adelaidet(model), state)


def test_another_number_of_bases_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("basis_module.tower.3.bias (4,) for (6,)")):
        load_adelaidet(blendmask(num_bases=6), weights())


# -------------------------------------------------------------------------------------------------- lists and errors


def test_every_unknown_and_missing_key_is_named_and_nothing_is_loaded() -> None:
    state = weights()
    del state["top_layer.bias"], state["backbone.fpn_lateral4.weight"]
    state |= {f"controller.{i}": torch.zeros(1) for i in range(12)}
    model = blendmask()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_adelaidet(model, state, source="file.pth")
    message = str(error.value)
    assert message.startswith("file.pth: does not fit this model")
    assert "12 in the file, but not in this model" in message
    assert all(f"controller.{i}" in message for i in range(12))
    assert "2 in this model, but not in the file: backbone.fpn_lateral4.weight, top_layer.bias" in message
    assert same(model.state_dict(), before)


ALLOWED = [
    "pixel_mean", "pixel_std", "mask_head._iter", "mask_head.sizes_of_interest", "fc1000.weight",
    "backbone.bottom_up.stem.fc.bias", "backbone.bottom_up.res2.0.conv1.bias",
    "backbone.bottom_up.stem.conv1.norm.num_batches_tracked", "mask_branch.seg_head.1.1.running_mean",
    "mask_branch.logits.bias",
]  # fmt: skip


@pytest.mark.parametrize("key", ALLOWED)
def test_what_may_be_left_over(key: str) -> None:
    assert load_adelaidet(blendmask(), weights() | {key: torch.zeros(1)}).left_over == [key]


def test_what_may_be_missing() -> None:
    optional = re.compile(r".*num_batches_tracked|basis_module\.seg_head\..*")
    state = {k: v for k, v in weights().items() if not optional.fullmatch(k)}
    fresh = load_adelaidet(blendmask(), state).fresh
    assert set(fresh.values()) == {"not in the file"} and len(fresh) == len(weights()) - len(state)
    fresh = load_adelaidet(blendmask(mode="iou"), weights()).fresh
    assert fresh and all(k.startswith("scoring.") for k in fresh)


def test_semantic_weights_are_left_over_without_such_a_head() -> None:
    left_over = load_adelaidet(blendmask(semantic=no_semantic), weights()).left_over
    assert len(left_over) == 14 and all(k.startswith("basis_module.seg_head.") for k in left_over)


def test_an_fcos_fills_the_detector_alone_and_only_on_demand() -> None:
    source = blendmask(detector={"use_scale": True})
    state = export_adelaidet(source, detector_only=True)
    model = blendmask(detector={"use_scale": True}, seed=1)
    with pytest.raises(ValueError, match="top_layer.weight"):
        load_adelaidet(model, state)
    fresh = load_adelaidet(model, state, detector_only=True).fresh
    assert all(k.startswith(("basis.", "semantic.", "detector.params.")) for k in fresh)
    assert torch.equal(model.detector.cls_logits.weight, source.detector.cls_logits.weight)


@pytest.mark.parametrize("key", ["sem_seg_head.predictor.weight", "panoptic_module.x"])
def test_panoptic_models_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="a panoptic model.*instance model"):
        load_adelaidet(blendmask(), weights() | {key: torch.zeros(1)})


def test_another_number_of_classes_needs_consent() -> None:
    state, model = weights(num_classes=5), blendmask(num_classes=3)
    before = model.detector.cls_logits.weight.clone()
    with pytest.raises(ValueError, match=r"cls_logits\.weight 5 for 3.*seg_head\.6\.bias 6 for 4"):
        load_adelaidet(model, state)
    fresh = load_adelaidet(model, state, reset_classifier=True).fresh
    assert len(fresh) == 4 and torch.equal(model.detector.cls_logits.weight, before)
    assert torch.equal(model.detector.box_pred.bias, state[f"{HEAD}.bbox_pred.bias"])


def test_models_that_adelaidet_does_not_have() -> None:
    with pytest.raises(ValueError, match="MobileNetV2.*ResNets"):
        adelaidet_names(blendmask(backbone=MobileNetV2(weights=None)))
    with pytest.raises(ValueError, match=r"no place for fpn\.pyramid.*model\.fpn\.norm=none"):
        adelaidet_names(blendmask(fpn=partial(FPN, channels=64, norm="gn")))


def test_another_norm_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"basis_module\.tower\.0\.1\.running_mean"):
        load_adelaidet(blendmask(basis=partial(BasisHead, channels=32, num_convs=1, norm="gn")),
                       weights(basis=partial(BasisHead, channels=32, num_convs=1)))  # fmt: skip


def test_older_names_are_understood() -> None:
    state = {k.replace("ctrness", "centerness"): v for k, v in weights().items()}
    assert load_adelaidet(blendmask(), state).fresh == {}


def condinst(boundary=None, seed: int = 0, **options: int) -> Segmenter:
    return blendmask(boundary, seed=seed, assembly=DynamicConvolutions(mask_size=28, **options), num_bases=8,
                     semantic=no_semantic, detector={"use_scale": True, "score_threshold": 0.0})  # fmt: skip


def test_a_boundary_basis_joins_condinst_without_a_change_of_its_masks() -> None:
    plain, extended = condinst().eval(), condinst(GlobalBoundary(), seed=1).eval()
    load_adelaidet(plain, weights(condinst()))
    report = load_adelaidet(extended, export_adelaidet(plain))
    assert {key for key in report.fresh if not key.startswith("terms.")} == {
        "basis.bases.weight", "basis.bases.bias", "detector.params.weight", "detector.params.bias",
    }  # fmt: skip
    images = build.images(1, 128, 160)
    with torch.no_grad():
        (a,), (b,) = (model.detect(model(images), images) for model in (plain, extended))
    assert len(a) > 3 and a.mask_logits.std() > 0
    torch.testing.assert_close(a.mask_logits, b.mask_logits)
    assert plain.basis.num_bases + 1 == extended.basis.num_bases


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_a_boundary_basis_joins_dynamic_convolutions_of_any_depth(num_layers: int) -> None:
    plain, extended = condinst(num_layers=num_layers), condinst(GlobalBoundary(), seed=1, num_layers=num_layers)
    with torch.no_grad():
        plain.detector.params.bias.copy_(torch.arange(1.0, 1 + len(plain.detector.params.bias)))
    load_adelaidet(extended, export_adelaidet(plain))
    kept, wanted = extended.detector.params.bias, plain.detector.params.bias
    assert torch.equal(kept[kept != 0], wanted)
    of_bases = kept[: plain.assembly.shapes(9)[0][0] * 11].unflatten(0, (-1, 11))
    assert (of_bases[:, -1] == 0).all() and of_bases[:, :-1].all()


def test_an_assembly_that_adelaidet_does_not_have() -> None:
    model = blendmask(assembly=LinearCombination(mask_size=28), num_bases=None)
    with pytest.raises(ValueError, match="no LinearCombination; models with blend or dynamic"):
        export_adelaidet(model)
    detector = export_adelaidet(blendmask(seed=1), detector_only=True)
    report = load_adelaidet(model, detector, detector_only=True)
    assert same(export_adelaidet(model, detector_only=True), detector)
    assert {key.split(".")[0] for key in report.fresh} == {"basis", "detector", "semantic"}
    with pytest.raises(ValueError, match="in the file, but not in this model: .*basis_module"):
        load_adelaidet(model, weights())
