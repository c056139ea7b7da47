"""The scoring head: how good is a mask, by its overlap and by its boundary."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from b2inst.losses.quality import quality_regression
from b2inst.models.checks import whole_numbers
from b2inst.models.scoring_base import MaskScoring, PredictedMasks
from b2inst.ops.laplacian import Padding, boundary, check_options, soft_boundary
from b2inst.ops.rois import fpn_level, with_image_index

QUALITIES = ("iou", "boundary")


def dice_score(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """(2 * sum(a * b) + eps) / (sum(a^2) + sum(b^2) + eps) of each pair of maps.

    Args:
        a, b: (P, R, R).
        eps: avoids a division by zero; two empty maps agree fully.

    Returns:
        (P,) above 0, up to 1.

    Source: B2Inst, the boundary quality S_boundary.

    Example:
        >>> a = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
        >>> round(float(dice_score(a, a.roll(1, dims=2))), 4)
        0.5
    """
    both = (a * b).flatten(1).sum(1)
    return (2 * both + eps) / (a.square().flatten(1).sum(1) + b.square().flatten(1).sum(1) + eps)


class NoScoring(MaskScoring):
    """The class score is the mask score."""

    def __init__(self) -> None:
        super().__init__(())

    def combine(self, class_scores: Tensor, qualities: dict[str, Tensor]) -> Tensor:
        """Mask scores (P,) from class scores and nothing else."""
        return class_scores


def no_scoring(in_channels: int, num_classes: int, strides: list[int]) -> NoScoring:
    """Build no scoring head: the config's `scoring=none`."""
    return NoScoring()


class ScoringHead(MaskScoring):
    """Regresses S_IoU and S_boundary from the predicted mask, its boundary and the RoI features.

    Args:
        in_channels: channels of the FPN.
        num_classes: C; each quality is predicted per class.
        strides: of P3, P4, P5 and further levels; the first three are pooled from.
        mode: `iou` (S_class * S_IoU), `boundary` (S_class * S_boundary) or `iou_boundary`
            (S_class * sqrt(S_IoU * S_boundary)).
        branch: `fc`: a full branch of three linear layers per quality (the paper's design); `gap`: global average
            pooling and one linear layer (light).
        channels: of the four convolutions.
        fc_channels: of the linear layers of `fc`.
        reduced: channels that a 1x1 convolution leaves of the FPN before it is pooled; None pools all of them.
        roi_size: side of the pooled features; half of it, rounded up, after the last convolution.
        boundary_input: whether the boundary of the predicted mask is an input channel.
        boundary_band: of the target: `inner` contour, `both` sides, or `dilate_<k>`.
        boundary_padding: of the target: with `replicate` a mask has no boundary where it reaches the frame of its box,
            with `zeros` it ends there.
        binarize: threshold the predicted mask at 0.5 before its boundary is compared with the true one.
        detach_masks: no gradient from this head into the masks.
        boxes: RoIs in training: `gt_box` or `pred_box` (the decoded box of each positive).
        max_positives: positives per image that are scored in training.
        clamp: limit predictions to [0, 1] before they are combined.

    Raises:
        ValueError: for unknown options, or features without a cell.

    Source: B2Inst section 3 for inputs, the two branches and their combination; layer sizes after Mask Scoring
        R-CNN (arXiv 1903.00241).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: list[int],
        *,
        mode: str = "iou_boundary",
        branch: str = "fc",
        channels: int = 256,
        fc_channels: int = 1024,
        reduced: int | None = None,
        roi_size: int = 14,
        boundary_input: bool = True,
        boundary_band: str = "inner",
        boundary_padding: Padding = "replicate",
        binarize: bool = True,
        detach_masks: bool = True,
        boxes: str = "gt_box",
        max_positives: int = 64,
        clamp: bool = True,
    ) -> None:
        modes = {"iou": ("iou",), "boundary": ("boundary",), "iou_boundary": QUALITIES}
        if mode not in modes or branch not in ("fc", "gap"):
            raise ValueError(f"scoring mode={mode!r}, branch={branch!r}; allowed: {', '.join(modes)}; fc, gap")
        super().__init__(modes[mode], detach_masks=detach_masks, boxes=boxes, max_positives=max_positives, clamp=clamp)
        whole_numbers(roi_size=roi_size)
        check_options(padding=boundary_padding, band=boundary_band)
        self.strides = strides[:3]
        self.roi_size = roi_size
        self.boundary_input = boundary_input
        self.boundary_band = boundary_band
        self.boundary_padding = boundary_padding
        self.binarize = binarize
        self.reduce = nn.Identity() if reduced is None else nn.Conv2d(in_channels, reduced, 1)
        self.convs = _convs((reduced or in_channels) + 1 + boundary_input, channels)
        self.branches = nn.ModuleDict(
            {name: _branch(branch, channels, (roi_size + 1) // 2, fc_channels, num_classes) for name in self.qualities}
        )

    def forward(self, features: list[Tensor], masks: PredictedMasks) -> dict[str, Tensor]:
        """Predict the qualities of masks from them and P3, P4, P5, see `MaskScoring.forward`."""
        pooled = self._pool(features, masks.boxes, masks.image)
        x = self.convs(torch.cat([pooled, self._mask_input(masks.logits).to(pooled.dtype)], dim=1))
        return {
            name: branch(x).float().gather(1, masks.labels[:, None])[:, 0] for name, branch in self.branches.items()
        }

    def _pool(self, features: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(P, C, S, S) RoI features, each from the level that fits its size."""
        features = [self.reduce(feature) for feature in features[: len(self.strides)]]
        levels = fpn_level(boxes) - 3
        pooled = features[0].new_zeros(boxes.shape[0], features[0].shape[1], self.roi_size, self.roi_size)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=False)):
            index = (levels == level).nonzero(as_tuple=True)[0]
            # Not in the type of the features: half of a coordinate is none, and RoIAlign takes both in full precision.
            rois = with_image_index(boxes[index], image_index[index])
            pooled = pooled.index_copy(0, index, roi_align(feature, rois, self.roi_size, 1 / stride, 2, aligned=True))
        return pooled

    def _mask_input(self, mask_logits: Tensor) -> Tensor:
        """(P, 1 or 2, S, S): the mask's probabilities and, if wanted, their boundary."""
        probs = mask_logits.float().sigmoid()
        maps = [probs, soft_boundary(probs)] if self.boundary_input else [probs]
        return _max_pooled(torch.stack(maps, dim=1), self.roi_size)

    @torch.no_grad()
    def targets(self, mask_logits: Tensor, true_masks: Tensor, outside: Tensor | None = None) -> dict[str, Tensor]:
        """True qualities of predicted masks, of those that are predicted; see `MaskScoring.targets`."""
        values = super().targets(mask_logits, true_masks, outside)
        if "boundary" in self.qualities:
            probs = mask_logits.float().sigmoid()
            hard = (probs >= 0.5).float()
            contour = partial(boundary, padding=self.boundary_padding, band=self.boundary_band)
            found = contour(hard) if self.binarize else soft_boundary(probs, padding=self.boundary_padding)
            # Nothing and a mask that fills its frame may both have no boundary, and do not agree.
            both = hard.flatten(1).any(dim=1) == true_masks.flatten(1).any(dim=1)
            values["boundary"] = dice_score(found, contour(true_masks)) * both
        return {name: values[name] for name in self.qualities}

    def losses(self, predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted scalar of each quality: 0.5 * squared error, mean over instances with a positive target.

        That leaves out masks that miss their instance (an IoU of 0), as Mask Scoring R-CNN does. The epsilon of
        `dice_score` makes every other boundary target positive: boundaries of one pixel have nothing in common as soon
        as a mask is two pixels too large, and a head that never saw such masks would score them too high.
        """
        return {name: quality_regression(predictions[name], targets[name]) for name in self.qualities}


def _max_pooled(maps: Tensor, size: int) -> Tensor:
    """(P, C, S, S) as `F.adaptive_max_pool2d`, which ONNX has only where the sides of the windows are all the same."""
    side = maps.shape[-1]
    if side % size == 0:
        return F.max_pool2d(maps, side // size)
    windows = [slice(i * side // size, -(-(i + 1) * side // size)) for i in range(size)]
    rows = torch.stack([maps[:, :, window].amax(dim=2) for window in windows], dim=2)
    return torch.stack([rows[:, :, :, window].amax(dim=3) for window in windows], dim=3)


def _convs(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(4):
        conv = nn.Conv2d(channels if i else in_channels, channels, 3, stride=2 if i == 3 else 1, padding=1)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers)


def _branch(kind: str, channels: int, side: int, hidden: int, num_classes: int) -> nn.Sequential:
    last = nn.Linear(channels if kind == "gap" else hidden, num_classes)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    if kind == "gap":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    layers: list[nn.Module] = [nn.Flatten()]
    for width in (channels * side * side, hidden):
        linear = nn.Linear(width, hidden)
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, last)
