"""The scoring head of YOLACT++: the IoU of a mask from nothing but the mask, as it lies in its image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from b2inst.losses.quality import smooth_quality_regression
from b2inst.models.scoring_base import MaskScoring, PredictedMasks
from b2inst.ops.canvas import masks_on_canvas
from b2inst.ops.precision import without_autocast


class MaskFCN(MaskScoring):
    """Regresses S_IoU with a small convolutional network on the mask in a picture of its whole image.

    The mask is not thresholded and 0 outside of its box; strided convolutions without padding and a last 1x1
    convolution give a map for each class, whose maximum is the IoU that is predicted. It sees no features of the image,
    but, since it sees the mask on the image, where it lies and how large it is.

    Args:
        in_channels, strides: of the FPN, which it does not look at.
        num_classes: C; the IoU is predicted per class.
        channels: of the 3x3 convolutions of stride 2.
        canvas: side S of the picture that the image is squeezed to.
        min_area: masks whose true area is not above this are not learned from, in cells of the picture.
        detach_masks: no gradient from this head into the masks.
        boxes: frames of the masks in training: `gt_box` or `pred_box` (the decoded box of each positive).
        max_positives: positives per image that are scored in training.
        clamp: limit predictions to [0, 1] before they are combined.

    Raises:
        ValueError: unknown boxes, or a picture of which the convolutions leave nothing.

    Source: YOLACT++ (arXiv 1912.06218), fast mask re-scoring network; its sizes are the defaults. What is different is
        listed in docs/family.md.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: list[int],
        *,
        channels: Sequence[int] = (8, 16, 32, 64, 128),
        canvas: int = 138,
        min_area: float = 25.0,
        detach_masks: bool = True,
        boxes: str = "gt_box",
        max_positives: int = 100,
        clamp: bool = True,
    ) -> None:
        super().__init__(("iou",), detach_masks=detach_masks, boxes=boxes, max_positives=max_positives, clamp=clamp)
        least = 2 ** (len(channels) + 1) - 1  # a convolution makes n of 2 n + 1 cells
        if canvas < least:
            raise ValueError(f"scoring canvas={canvas}: {len(channels)} convolutions need at least {least} cells")
        self.canvas = canvas
        self.min_area = min_area
        self.net = _layers([1, *channels], num_classes)

    def forward(self, features: list[Tensor], masks: PredictedMasks) -> dict[str, Tensor]:
        """Predict the IoU of masks, 0 or more, from the masks alone; see `MaskScoring.forward`."""
        probs = masks.logits.float().sigmoid()
        on_image = masks_on_canvas(probs, masks.boxes, masks.sizes[masks.image], self.canvas)
        with without_autocast(on_image):  # cells that are equal by rounding would share the gradient of their maximum
            of_classes = self.net(on_image[:, None]).amax(dim=(2, 3))  # [P, C]
        return {"iou": of_classes.gather(1, masks.labels[:, None])[:, 0]}

    def learned(self, shares: Tensor) -> Tensor:
        """Which true masks have more than `min_area` cells, see `MaskScoring.learned`."""
        return shares * self.canvas**2 > self.min_area

    def losses(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted scalar: smooth L1, mean over instances."""
        return {"iou": smooth_quality_regression(predictions["iou"], targets["iou"])}


def _layers(channels: list[int], num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(channels, channels[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, stride=2), nn.ReLU()]
    layers += [nn.Conv2d(channels[-1], num_classes, 1), nn.ReLU()]
    for layer in layers[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    # Our choice: from 0, a class whose map is negative for every mask would have no gradient and score 0 for good.
    nn.init.constant_(layers[-2].bias, 0.5)
    return nn.Sequential(*layers)
