"""torchvision's detectors, as `weights="DEFAULT"` would build them, but with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from b2inst.bench.setting import CLASSES, Setting

PEERS = ("maskrcnn_resnet50_fpn", "fcos_resnet50_fpn")


def build(name: str, setting: Setting) -> nn.Module:
    """A detector of torchvision that takes images at the size of the setting.

    Batch norms are frozen, as in the published weights, and the stem and the first stage fixed.

    Args:
        name: one of `PEERS`.
        setting: the work.

    Raises:
        ValueError: for another name.
    """
    if name not in PEERS:
        raise ValueError(f"{name}: no peer; choose of {', '.join(PEERS)}")
    common: dict[str, Any] = {
        "backbone_name": "resnet50", "weights": None, "norm_layer": FrozenBatchNorm2d, "trainable_layers": 3,
    }  # fmt: skip
    size = {
        "min_size": min(setting.height, setting.width), "max_size": max(setting.height, setting.width),
    }  # fmt: skip
    if name == "maskrcnn_resnet50_fpn":
        backbone = resnet_fpn_backbone(**common)
        return MaskRCNN(backbone, CLASSES + 1, box_detections_per_img=setting.detections, **size)
    backbone = resnet_fpn_backbone(**common, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    model = FCOS(backbone, CLASSES + 1, detections_per_img=setting.detections, **size)
    nn.init.constant_(model.head.regression_head.bbox_reg.bias, 4.0)  # boxes of 8 strides, as ours
    return model


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a detector by the names that ours have, where there is such a part."""
    parts = {"backbone": model.backbone.body, "fpn": model.backbone.fpn}
    if isinstance(model, MaskRCNN):
        heads = model.roi_heads
        masks = {"mask head": heads.mask_head, "mask predictor": heads.mask_predictor}
        return {**parts, "rpn": model.rpn, "box head": heads.box_head, **masks}
    return {**parts, "detector": model.head}


def calibrate(model: nn.Module, run: Callable[[], Any], candidates: int) -> None:
    """Set the score threshold so that so many candidates of an image pass it.

    Args:
        model: in evaluation mode.
        run: passes one image.
        candidates: how many.
    """
    if isinstance(model, MaskRCNN):
        logits, _ = _output(model.roi_heads.box_predictor, run)
        model.roi_heads.score_thresh = kth_largest(logits.softmax(dim=1)[:, 1:], candidates)
    else:
        output = _output(model.head, run)
        scores = (output["cls_logits"].sigmoid() * output["bbox_ctrness"].sigmoid()).sqrt()
        model.score_thresh = kth_largest(scores, candidates)


def kth_largest(values: Tensor, k: int) -> float:
    """The value that k others exceed, or the smallest of all."""
    values = values.flatten()
    return float(values.topk(min(k + 1, len(values))).values[-1])


@torch.inference_mode()
def _output(module: nn.Module, run: Callable[[], Any]) -> Any:
    outputs: list[Any] = []
    hook = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        run()
    finally:
        hook.remove()
    return outputs[0]
