"""Tiny two-stage models for the tests, and torchvision's model with the same weights."""

from __future__ import annotations

from functools import partial

import torch
import torchvision

from b2inst.interop.torchvision import load_mask_rcnn
from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.dice import Dice
from b2inst.models.backbone import ResNet
from b2inst.models.bmask import BoundaryMaskHead
from b2inst.models.fpn import FPN
from b2inst.models.mask_head import MaskHead
from b2inst.models.mask_rcnn import MaskRCNN
from models.build import CLASSES

WEIGHTS = {"rpn_cls": 1.0, "rpn_box": 2.0, "cls": 3.0, "box": 4.0, "mask": 5.0, "boundary": 0.5}
P2_TO_P6 = {"lowest": 2, "top_levels": 1, "top": "pool"}


def mask_rcnn(*, seed=0, **parts):
    """ResNet-18, 16 channels; every part can be replaced."""
    torch.manual_seed(seed)
    defaults = {
        "num_classes": CLASSES,
        "backbone": ResNet(18, norm="bn", freeze_at=0, weights=None),
        "fpn": partial(FPN, channels=16, **P2_TO_P6),
        "loss_weights": WEIGHTS,
        "losses": {},
        "mask_head": partial(MaskHead, channels=16),
        "anchor_sizes": [8, 16, 32, 64, 128],
        "rois_per_image": 32,
        "fc_channels": 16,
    }
    return MaskRCNN(**{**defaults, **parts})


def bmask(*, head=None, **parts):
    """The same with a boundary branch."""
    terms = {"bce": BinaryCrossEntropy(), "dice": Dice(squared=False, smooth=1.0, eps=0.0)}
    options = {"channels": 16, **(head or {})}
    return mask_rcnn(**{"losses": terms, "mask_head": partial(BoundaryMaskHead, **options), **parts})


KINDS = {"mask_rcnn": mask_rcnn, "bmask": bmask}


def torchvisions(size=(64, 96)):
    """torchvision's Mask R-CNN with random weights that find something, for images that it does not resize."""
    torch.manual_seed(0)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=size[0], max_size=size[1]
    )
    with torch.no_grad():  # classes, boxes and masks that differ, and no logit so large that it is 0 or 1 as a score
        for value in model.backbone.fpn.layer_blocks.parameters():
            value.mul_(0.01)
        model.rpn.head.bbox_pred.bias.normal_(0, 0.3)
        model.roi_heads.box_predictor.cls_score.weight.mul_(80.0)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(20.0)
        model.roi_heads.mask_predictor.mask_fcn_logits.bias.normal_()
        logits = []
        hook = model.roi_heads.box_predictor.register_forward_hook(lambda *call: logits.append(call[2][0]))
        model.eval()([torch.rand(3, *size, generator=torch.Generator().manual_seed(0))])
        hook.remove()
        model.roi_heads.box_predictor.cls_score.bias -= logits[0].mean(dim=0)  # else one class wins everywhere
    return model


def twin(reference, **options):
    """Our Mask R-CNN with the weights of torchvision's."""
    model = mask_rcnn(
        backbone=ResNet(50, norm="bn", freeze_at=0, weights=None), fpn=partial(FPN, channels=256, **P2_TO_P6),
        mask_head=partial(MaskHead, channels=256), anchor_sizes=[32, 64, 128, 256, 512], rois_per_image=512,
        fc_channels=1024, pre_nms_topk={"training": 2000, "testing": 1000},
        post_nms_topk={"training": 2000, "testing": 1000}, **options,
    )  # fmt: skip
    load_mask_rcnn(model, reference.state_dict(), list(range(1, CLASSES + 1)))
    return model
