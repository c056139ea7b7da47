"""The segmenter as one graph of tensors: from pixels to boxes, scores, classes and masks, for any program to run."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn import functional as F
from torchvision.ops import nms

from b2inst.models.fcos import FCOS, DetectorOutputs, Locations
from b2inst.models.segmenter import Segmenter
from b2inst.structures import ImageBatch

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels", "masks", "image_index")
DIVISOR = 32  # of height and width, as for the model itself
# Least pixels of a side; a graph of torch.export is bound to more than one cell at stride 128.
SMALLEST = {"onnx": DIVISOR, "torch_export": 160}
TRACED = (2, 256, 320)  # images, height and width of the example, with which P7 has more than one cell


class ExportModel(nn.Module):
    """What is exported: `Segmenter.find` without Python's lists, so that sizes and numbers may vary at run time.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Find the instances of a batch.

        Args:
            images: (N, 3, H, W) uint8, RGB, resized and padded to the right and below; H and W are multiples of 32.
            sizes: (N, 2) int64, (height, width) of each image in them, without the padding.

        Returns:
            boxes (P, 4) XYXY in pixels of the input, mask scores (P,), labels (P,), mask logits (P, R, R) in the frame
            of the boxes, and the image (P,) of each; image by image, best mask score first.
        """
        batch = ImageBatch(images, sizes, sizes, torch.arange(images.shape[0], device=images.device))
        outputs = self.model(batch)
        places = select(self.model.detector, outputs.detector)
        places, boxes, masks, scores = self.model.assess(outputs, batch, places)
        # One key and not two sorts, for ONNX has none that is said to be stable; a score is far below 1000.
        order = (places.image.double() * 1000 - scores).argsort()
        return boxes[order], scores[order], places.labels[order], masks[order], places.image[order]


@torch.no_grad()
def trace(model: Segmenter) -> ExportedProgram:
    """Write down what the model does, for any number of images and any size.

    Args:
        model: in evaluation mode, on the CPU.

    Returns:
        The graph of `ExportModel`.
    """
    count, height, width = TRACED
    example = (torch.zeros(count, 3, height, width, dtype=torch.uint8), torch.tensor([[height, width]] * count))
    images, rows, columns = (Dim(name) for name in ("images", "rows", "columns"))
    shapes = {"images": {0: images, 2: DIVISOR * rows, 3: DIVISOR * columns}, "sizes": {0: images}}
    with warnings.catch_warnings():
        # torchvision's, about itself
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)
        return export(ExportModel(model).eval(), example, dynamic_shapes=shapes, strict=False)


def select(detector: FCOS, outputs: DetectorOutputs) -> Locations:
    """As `FCOS.select`, for all images at once; detections of different images are mixed, best first."""
    levels = [_best_of_level(detector, outputs, level) for level in range(len(outputs.cls_logits))]
    names = ("level", "y", "x", "boxes", "labels", "scores")
    every = {name: torch.cat([level[name] for level in levels], dim=1) for name in names}
    image, column = (every["scores"] >= 0).nonzero(as_tuple=True)
    places = Locations(image=image, **{name: values[image, column] for name, values in every.items()})
    kept = places.take(_suppress(places, detector.nms_threshold))
    same = kept.image[:, None] == torch.arange(outputs.cls_logits[0].shape[0], device=image.device)  # [P, N]
    rank = same.long().cumsum(dim=0).gather(1, kept.image[:, None])[:, 0]
    return kept.take(rank <= detector.detections_per_image)


def _best_of_level(detector: FCOS, outputs: DetectorOutputs, level: int) -> dict[str, Tensor]:
    """The `pre_nms_topk` best pairs of place and class, (N, pre_nms_topk) each; scores are -1 where there are less."""
    stride, k = detector.strides[level], detector.pre_nms_topk
    width = outputs.cls_logits[level].shape[-1]
    cls_probs = outputs.cls_logits[level].float().sigmoid().flatten(2).transpose(1, 2)  # [N, L, C]
    joint = cls_probs * outputs.quality_logits[level].float().sigmoid().flatten(2).transpose(1, 2)
    candidate = (joint if detector.threshold_with_quality else cls_probs) > detector.score_threshold
    scores = torch.where(candidate, joint, -1.0).flatten(1)
    scores, index = F.pad(scores, (0, k), value=-1.0).topk(k)  # padded: a level may have less than k
    index = torch.where(scores >= 0, index, 0)
    cell, labels = index // detector.num_classes, index % detector.num_classes
    y = cell // width
    x = cell - y * width  # ONNX's exporter knows no remainder by a size that varies
    ltrb = outputs.ltrb[level].float().flatten(2).transpose(1, 2) * stride
    ltrb = ltrb.gather(1, cell[:, :, None].expand(-1, -1, 4))
    points = torch.stack([x, y], dim=2) * stride + stride // 2
    boxes = torch.cat([points - ltrb[:, :, :2], points + ltrb[:, :, 2:]], dim=2)
    scores = torch.where(scores >= 0, scores.clamp(min=0).sqrt(), -1.0)
    return {"level": torch.full_like(x, level), "y": y, "x": x, "boxes": boxes, "labels": labels, "scores": scores}


def _suppress(places: Locations, threshold: float) -> Tensor:
    """Indices of the places that are left by a non-maximum suppression within each class of each image, best first."""
    # Two empty boxes more, which are kept and come last: torchvision tells the exporter that at least two are kept.
    boxes = F.pad(places.boxes, (0, 0, 0, 2))
    scores = F.pad(places.scores, (0, 2), value=-1.0)
    groups = F.pad(torch.stack([places.labels, places.image], dim=1), (0, 0, 0, 2))
    # Classes are moved to the right and images below, so that boxes of different ones cannot meet.
    span = boxes.max() - boxes.min() + 1
    return nms(boxes + (groups * span).repeat(1, 2), scores, threshold)[:-2]
