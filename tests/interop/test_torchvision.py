from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision

from b2inst.interop.adelaidet import Report
from b2inst.interop.coco_classes import COCO
from b2inst.interop.torchvision import is_fcos, is_mask_rcnn, load_fcos, load_mask_rcnn, load_resnet
from b2inst.models.backbone import ResNet
from b2inst.models.boundary import NoBoundary
from b2inst.models.fpn import FPN
from b2inst.models.segmenter import Segmenter
from interop.small import weights
from models import build
from models.two_stage import mask_rcnn, torchvisions, twin


@pytest.fixture(scope="module")
def fcos() -> torch.nn.Module:
    """torchvision's FCOS with weights that find something."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, score_thresh=0.3).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("weight") and value.ndim == 4 and "backbone.body" not in name:
                torch.nn.init.kaiming_normal_(value)
        model.head.regression_head.bbox_reg.bias += 6
        model.head.classification_head.cls_logits.bias += 3
    return model


@pytest.fixture(scope="module")
def ours(fcos: torch.nn.Module) -> tuple[Segmenter, Report]:
    model = build.segmenter(
        NoBoundary(), num_classes=80, backbone=ResNet(50, weights=None), fpn=partial(FPN, channels=256), losses={},
        detector={"num_convs": 4, "score_threshold": 0.09},
    ).eval()  # fmt: skip
    return model, load_fcos(model, fcos.state_dict(), list(COCO))


def test_an_imagenet_resnet() -> None:
    reference = torchvision.models.resnet18(weights=None).eval()
    backbone = ResNet(18, norm="bn", weights=None).eval()
    report = load_resnet(backbone, reference.state_dict())
    assert {"fc.weight", "fc.bias"} <= set(report.left_over) and len(report.loaded) == 100
    x = torch.randn(1, 3, 64, 64)
    c5 = torch.nn.Sequential(*list(reference.children())[:-2])(x)
    torch.testing.assert_close(backbone(x)[-1], c5)


def test_an_imagenet_resnet_that_does_not_fit() -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(ValueError, match="preset=torchvision"):
        load_resnet(ResNet(18, preset="msra", weights=None), state)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv3\.weight \(not in the file\).*depth"):
        load_resnet(ResNet(50, weights=None), state)


def test_the_same_outputs_as_torchvisions_fcos(fcos: torch.nn.Module, ours) -> None:
    model, _ = ours
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        features = list(fcos.backbone(x).values())
        wanted = fcos.head(features)
        outputs = model.detector(model.fpn(model.backbone(x)))
    flat = {
        "cls_logits": torch.cat([t.flatten(2) for t in outputs.cls_logits], 2).transpose(1, 2),
        "bbox_ctrness": torch.cat([t.flatten(2) for t in outputs.quality_logits], 2).transpose(1, 2),
        "ltrb": torch.cat([t.flatten(2) for t in outputs.ltrb], 2).transpose(1, 2),
    }
    torch.testing.assert_close(flat["cls_logits"], wanted["cls_logits"][..., list(COCO)], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flat["bbox_ctrness"], wanted["bbox_ctrness"], rtol=1e-4, atol=1e-4)
    far = (wanted["bbox_regression"] > 0.5).all(dim=-1)
    assert far.float().mean() > 0.5
    shifted = wanted["bbox_regression"] + torch.tensor([0.5, 0.5, -0.5, -0.5])
    torch.testing.assert_close(flat["ltrb"][far], shifted[far], rtol=1e-4, atol=1e-4)


def test_what_is_not_taken_is_accounted_for(ours) -> None:
    model, report = ours
    rows = [name for name in report.left_over if "row" in name]
    assert len(rows) == 11 and rows[:2] == [f"head.classification_head.cls_logits.weight row {i}" for i in (0, 12)]
    assert set(report.fresh) | set(report.loaded) == set(model.state_dict())
    assert all(k.startswith(("basis.", "semantic.", "detector.params.")) for k in report.fresh)


def test_an_fcos_that_does_not_fit(fcos: torch.nn.Module) -> None:
    assert is_fcos(fcos.state_dict()) and not is_fcos(weights())
    with pytest.raises(ValueError, match=r"backbone\.fpn\.inner_blocks\.0\.0\.weight \(256, 512, 1, 1\)"):
        load_fcos(build.segmenter(), fcos.state_dict(), [1, 2, 3])
    with pytest.raises(ValueError, match="below 91"):
        load_fcos(build.segmenter(), fcos.state_dict(), [1, 2, 91])


# ---- Mask R-CNN, whose outputs are compared in models/test_mask_rcnn.py ----------------------------------------------


def test_the_rows_of_our_classes_and_older_names() -> None:
    state = dict(torchvisions().state_dict())
    assert is_mask_rcnn(state) and not is_fcos(state) and not is_mask_rcnn({"fc.weight": torch.zeros(1)})
    older = {
        k.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if k.startswith(("rpn.head.conv", "backbone.fpn")) else k: v for k, v in state.items()
    }  # fmt: skip
    assert older.keys() != state.keys()
    model = twin(torchvisions())
    complete = {k: v.clone() for k, v in model.state_dict().items()}
    load_mask_rcnn(model, older, [3, 1, 2])
    rows = [0, 3, 1, 2]
    for key, value in model.state_dict().items():
        wanted = complete[key]
        if key.startswith(("roi_heads.box_predictor.", "mask_head.predictor.mask_fcn_logits.")):
            wanted = wanted.unflatten(0, (4, -1))[rows].flatten(0, 1)
        assert torch.equal(value, wanted), key


def test_a_mask_rcnn_that_does_not_fit() -> None:
    state = torchvisions().state_dict()
    with pytest.raises(ValueError, match=r"rpn\.head\.conv\.0\.0\.weight \(256, 256, 3, 3\)"):
        load_mask_rcnn(mask_rcnn(), state, [1, 2, 3])
    with pytest.raises(ValueError, match="category ids below 4"):
        load_mask_rcnn(mask_rcnn(), state, [1, 2, 4])
