"""The segmenter as one graph of tensors: from pixels to boxes, scores, classes and masks, for any program to run."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

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
        places = self.model.detector.select_in_graph(outputs.detector)
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
