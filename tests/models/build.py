"""Tiny segmenters and batches for the tests of the model."""

from __future__ import annotations

from functools import partial

import torch

from b2inst.data.boundary_target import BoundaryTarget
from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.dice import Dice
from b2inst.models.assembly.blend import AttentionBlend
from b2inst.models.assembly.linear import LinearCombination
from b2inst.models.backbone import ResNet
from b2inst.models.basis import BasisHead, SemanticHead
from b2inst.models.boundary import GlobalBoundary
from b2inst.models.fcos import FCOS
from b2inst.models.fpn import FPN
from b2inst.models.fpn_yolact import YolactFPN
from b2inst.models.protonet_yolact import YolactProtonet
from b2inst.models.scoring import ScoringHead, no_scoring
from b2inst.models.scoring_base import PredictedMasks
from b2inst.models.scoring_fcn import MaskFCN
from b2inst.models.segmenter import Segmenter
from b2inst.models.semantic_yolact import YolactSemanticHead
from b2inst.models.yolact import Yolact
from b2inst.structures import Batch, ImageBatch, Targets

CLASSES = 3
WEIGHTS = {
    "cls": 1.0, "box": 1.0, "quality": 1.0, "mask": 1.0, "semantic": 0.3, "boundary": 1.0, "score_iou": 1.0,
    "score_boundary": 1.0,
}  # fmt: skip


def scoring(mode=None, **options):
    """A small scoring head: one of a mode, `fcn_iou`, or none."""
    if mode is None:
        return no_scoring
    if mode == "fcn_iou":
        return partial(MaskFCN, **{"channels": (4, 8, 16), "canvas": 48, **options})
    return partial(ScoringHead, mode=mode, **{"channels": 16, "fc_channels": 16, "roi_size": 8, **options})


def segmenter(boundary=None, mode=None, *, seed=0, head=FCOS, detector=None, score=None, **parts):
    """ResNet-18, 64 channels, one convolution a tower, 4 bases; every part can be replaced."""
    torch.manual_seed(seed)
    defaults = {
        "num_classes": CLASSES,
        "num_bases": 4,
        "backbone": ResNet(18, norm="bn", freeze_at=0, weights=None),
        "fpn": partial(FPN, channels=64),
        "detector": partial(head, **{"num_convs": 1, **(detector or {})}),
        "basis": partial(BasisHead, channels=16, num_convs=1),
        "assembly": AttentionBlend(attention_size=7, mask_size=28),
        "boundary": GlobalBoundary() if boundary is None else boundary,
        "scoring": scoring(mode, **(score or {})),
        "losses": {"bce": BinaryCrossEntropy(), "dice": Dice()},
        "semantic": partial(SemanticHead, channels=16),
        "loss_weights": WEIGHTS,
    }
    return Segmenter(**{**defaults, **parts})


def yolact(boundary=None, mode=None, **options):
    """YOLACT's parts at these sizes, with 8 prototypes."""
    defaults = {
        "head": Yolact,
        "detector": {"sizes_of_interest": (32, 64, 128, 256)},
        "num_bases": 8,
        "fpn": partial(YolactFPN, channels=64),
        "basis": partial(YolactProtonet, channels=16, num_convs=1),
        "assembly": LinearCombination(mask_size=28),
        "semantic": YolactSemanticHead,
    }
    return segmenter(boundary, mode, **{**defaults, **options})


def scored(logits, boxes, image, labels, size=(256, 256)):
    """Predicted masks in images of one size."""
    sizes = torch.tensor([size]).expand(int(image.max()) + 1 if len(image) else 1, 2)
    return PredictedMasks(logits, boxes, image, labels, sizes)


def images(count=2, height=64, width=96, sizes=None, seed=0):
    """Noise; sizes: valid (height, width) of each image, the rest is padding."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor(sizes or [(height, width)] * count)
    for n, (h, w) in enumerate(sizes.tolist()):
        pixels[n, :, h:] = 0
        pixels[n, :, :, w:] = 0
    names = tuple(f"{n}.jpg" for n in range(count))
    return ImageBatch(pixels, sizes, sizes.clone(), torch.arange(count), names)


def targets(boxes_of_images, height=64, width=96):
    """Ellipses that fill integer boxes, listed image by image; the class counts up."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    boxes, index, masks = [], [], []
    for n, listed in enumerate(boxes_of_images):
        for x0, y0, x1, y1 in listed:
            relative_x = (x - (x0 + x1) / 2) / ((x1 - x0) / 2)
            relative_y = (y - (y0 + y1) / 2) / ((y1 - y0) / 2)
            masks.append(relative_x**2 + relative_y**2 <= 1)
            boxes.append([float(x0), float(y0), float(x1), float(y1)])
            index.append(n)
    return Targets(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.arange(len(boxes)) % CLASSES,
        image_index=torch.tensor(index, dtype=torch.int64),
        masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
        crowd=torch.zeros(len(boxes_of_images), height, width, dtype=torch.bool),
    )


def batch(boxes_of_images, **options):
    """Images with these ellipses and their boundary ground truth."""
    pictures = images(len(boxes_of_images), **options)
    made = targets(boxes_of_images, *pictures.pixels.shape[-2:])
    return BoundaryTarget()(Batch(pictures, made))


BATCHES = {
    "normal": [[(4, 4, 40, 44), (36, 12, 76, 60)], [(20, 8, 92, 56)]],
    "one image without instances": [[], [(20, 8, 92, 56)]],
    "no instances": [[], []],
    "a single image": [[(4, 4, 40, 44), (36, 12, 76, 60)]],
    "a single image without instances": [[]],
    "a pixel": [[(11, 11, 12, 12)], [(20, 8, 92, 56)]],
    "only a pixel": [[(11, 11, 12, 12)]],
}
