"""The detector: FCOS with one more output, the parameters of each instance's mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, sigmoid_focal_loss

from b2inst.losses.giou import giou_ltrb
from b2inst.models import fcos_graph
from b2inst.models.detector_base import Detector, Locations, flatten
from b2inst.models.fcos_targets import Assignment, assign, centerness
from b2inst.ops.dist import normalizer, processes
from b2inst.ops.points import locations
from b2inst.ops.ranks import best_of_groups
from b2inst.structures import Targets


@dataclass(frozen=True)
class FCOSOutputs:
    """Raw outputs, one tensor a level.

    Attributes:
        cls_logits: (N, C, h, w).
        ltrb: (N, 4, h, w) distances to the sides of the box, not negative, in units of the stride.
        quality_logits: (N, 1, h, w) centerness or IoU.
        tower: (N, F, h, w) features of the box tower; the mask parameters are read from them where needed.
    """

    cls_logits: list[Tensor]
    ltrb: list[Tensor]
    quality_logits: list[Tensor]
    tower: list[Tensor]


class FCOS(Detector[FCOSOutputs]):
    """One-stage detector, shared over the levels.

    Args:
        in_channels: channels of the FPN.
        num_classes: C.
        num_params: outputs per location that describe its mask (0: none).
        strides: of the levels.
        sizes_of_interest: upper ends of the regression ranges of all levels but the last, in pixels.
        num_convs: convolutions of each tower.
        num_share_convs: convolutions before the towers part.
        use_scale: a learned factor of the box output per level (FCOS, CondInst: true; BlendMask: false).
        center_radius: center sampling radius in strides.
        box_quality: `ctrness` or `iou`, what the third output predicts.
        normalizer: of the class loss: `fg` (positives), `moving_fg` (running mean of them) or `all` (locations).
        focal_alpha, focal_gamma: of the focal loss.
        prior: class probability at the start.
        score_threshold: smallest class score kept.
        threshold_with_quality: whether that is compared with class times quality, or with the class alone.
        pre_nms_topk: pairs of location and class kept per level and image.
        nms_threshold: IoU of the class-wise non-maximum suppression.
        detections_per_image: kept after it.

    Source: FCOS (arXiv 1904.01355), AdelaiDet's behavior.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_params: int,
        strides: list[int],
        *,
        sizes_of_interest: tuple[int, ...] | list[int] = (64, 128, 256, 512),
        num_convs: int = 4,
        num_share_convs: int = 0,
        use_scale: bool = False,
        center_radius: float = 1.5,
        box_quality: str = "ctrness",
        normalizer: str = "fg",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior: float = 0.01,
        score_threshold: float = 0.05,
        threshold_with_quality: bool = True,
        pre_nms_topk: int = 1000,
        nms_threshold: float = 0.6,
        detections_per_image: int = 100,
    ) -> None:
        super().__init__(num_classes, strides, sizes_of_interest)
        _check_choice("box_quality", box_quality, ("ctrness", "iou"))
        _check_choice("normalizer", normalizer, ("fg", "moving_fg", "all"))
        borders = [-1.0, *map(float, sizes_of_interest), 1e8]
        self.ranges = list(zip(borders[:-1], borders[1:], strict=True))
        self.center_radius = center_radius
        self.box_quality = box_quality
        self.normalizer = normalizer
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.score_threshold = score_threshold
        self.threshold_with_quality = threshold_with_quality
        self.pre_nms_topk = pre_nms_topk
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

        self.share_tower = _tower(in_channels, num_share_convs)
        self.cls_tower = _tower(in_channels, num_convs)
        self.box_tower = _tower(in_channels, num_convs)
        self.cls_logits = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.box_pred = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.quality = nn.Conv2d(in_channels, 1, 3, padding=1)
        self.params = nn.Conv2d(in_channels, num_params, 3, padding=1) if num_params else None
        self.scales = nn.Parameter(torch.ones(len(strides))) if use_scale else None
        self.register_buffer("moving_positives", torch.tensor(100.0), persistent=normalizer == "moving_fg")
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))

    def forward(self, features: list[Tensor]) -> FCOSOutputs:
        """Run the head on every level, (N, in_channels, h, w) each."""
        cls_logits, ltrb, quality, towers = [], [], [], []
        for level, feature in enumerate(features):
            shared = self.share_tower(feature)
            tower = self.box_tower(shared)
            boxes = self.box_pred(tower)
            if self.scales is not None:
                boxes = boxes * self.scales[level]
            cls_logits.append(self.cls_logits(self.cls_tower(shared)))
            ltrb.append(F.relu(boxes))
            quality.append(self.quality(tower))
            towers.append(tower)
        return FCOSOutputs(cls_logits, ltrb, quality, towers)

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(self, outputs: FCOSOutputs, targets: Targets) -> tuple[dict[str, Tensor], Locations, Tensor]:
        """Class, box and quality loss.

        Returns:
            Unweighted scalars `cls`, `box`, `quality`; the positives, with the centerness target as their score; and
            the sum of these scores (mean over processes), by which per-positive losses are divided.
        """
        grid = _Grid.of(outputs, self.strides)
        ranges = torch.tensor(self.ranges, device=grid.points.device)[grid.level]
        num_images = outputs.cls_logits[0].shape[0]
        assigned = assign(grid.points, grid.stride, ranges, targets, num_images, self.center_radius)
        cls_logits = flatten(outputs.cls_logits).float()  # [N, L, C]
        image, cell = (assigned.instance >= 0).nonzero(as_tuple=True)
        positives, wanted = self._positives(outputs, grid, assigned, targets, image, cell)

        onehot = torch.zeros_like(cls_logits)
        onehot[image, cell, positives.labels] = 1
        focal = sigmoid_focal_loss(cls_logits, onehot, self.focal_alpha, self.focal_gamma, reduction="sum")
        count = normalizer(cls_logits.new_tensor(float(len(image))), 1)
        weight_sum = normalizer(positives.scores.sum(), 1e-6)

        ltrb = flatten(outputs.ltrb).float()[image, cell]
        quality_logits = flatten(outputs.quality_logits).float()[image, cell, 0]
        box = giou_ltrb(ltrb, wanted)
        quality_target = positives.scores if self.box_quality == "ctrness" else _iou_ltrb(ltrb.detach(), wanted)
        quality = F.binary_cross_entropy_with_logits(quality_logits, quality_target, reduction="sum")
        losses = {
            "cls": focal / self._class_normalizer(count, cls_logits),
            "box": (box * positives.scores).sum() / weight_sum,
            "quality": quality / count,
        }
        return losses, positives, weight_sum

    def _positives(
        self, outputs: FCOSOutputs, grid: _Grid, assigned: Assignment, targets: Targets, image: Tensor, cell: Tensor
    ) -> tuple[Locations, Tensor]:
        instance = assigned.instance[image, cell]
        wanted = assigned.ltrb[image, cell]
        ltrb = flatten(outputs.ltrb).float().detach()[image, cell]
        boxes = grid.decode(cell, ltrb)
        places = Locations(
            grid.level[cell], image, grid.y[cell], grid.x[cell], boxes, targets.labels[instance],
            centerness(wanted), instance,
        )  # fmt: skip
        return places, wanted

    def _class_normalizer(self, count: Tensor, cls_logits: Tensor) -> Tensor:
        if self.normalizer == "all":
            return normalizer(cls_logits.new_tensor(float(cls_logits.shape[0] * cls_logits.shape[1])), 1)
        if self.normalizer == "moving_fg":
            if self.training:  # of all processes: a run may be resumed with another number of them
                self.moving_positives.mul_(0.9).add_(count.detach() * processes(), alpha=0.1)
            return self.moving_positives / processes()
        return count

    # ---- inference ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, outputs: FCOSOutputs) -> Locations:
        """Threshold, keep the best of each level, suppress, keep the best of each image.

        Returns:
            The detections of all images, image by image, best first; the score is sqrt(class * quality).
        """
        grid = _Grid.of(outputs, self.strides)
        cls_probs = flatten(outputs.cls_logits).float().sigmoid()
        joint = cls_probs * flatten(outputs.quality_logits).float().sigmoid()
        candidates = (joint if self.threshold_with_quality else cls_probs) > self.score_threshold
        image, cell, label = candidates.nonzero(as_tuple=True)
        level = image * len(self.strides) + grid.level[cell]  # of an image
        best = best_of_groups(joint[image, cell, label], level, self.pre_nms_topk)
        image, cell, label = image[best], cell[best], label[best]
        boxes = grid.decode(cell, flatten(outputs.ltrb).float()[image, cell])
        scores = joint[image, cell, label].sqrt()
        found = Locations(grid.level[cell], image, grid.y[cell], grid.x[cell], boxes, label, scores)
        return found.take(torch.cat([self._suppress(found, n) for n in range(len(joint))]))

    @torch.no_grad()
    def select_in_graph(self, outputs: FCOSOutputs) -> Locations:
        """As `select`, see `b2inst.models.fcos_graph`."""
        return fcos_graph.select(self, outputs)

    def threshold_for(self, score: float) -> float:
        """The square: a score is the root of a probability, at most; the little less is for rounding."""
        return 0.999999 * score**2

    def candidate_scores(self, outputs: FCOSOutputs) -> Tensor:
        """As in `Detector`: class times quality, at each location for each class."""
        levels = zip(outputs.cls_logits, outputs.quality_logits, strict=True)
        return torch.cat([(c[0].float().sigmoid() * q[0].float().sigmoid()).flatten() for c, q in levels])

    def start_for_timing(self) -> None:
        """As in `Detector`: boxes of 8 strides."""
        nn.init.constant_(self.box_pred.bias, 4.0)

    def _suppress(self, found: Locations, image: int) -> Tensor:
        """Indices of what is left of an image, best first."""
        index = (found.image == image).nonzero(as_tuple=True)[0]
        kept = batched_nms(found.boxes[index], found.scores[index], found.labels[index], self.nms_threshold)
        return index[kept[: self.detections_per_image]]


@dataclass(frozen=True)
class _Grid:
    """The L locations of all levels in one list."""

    points: Tensor  # (L, 2)
    stride: Tensor  # (L,)
    level: Tensor  # (L,)
    y: Tensor  # (L,)
    x: Tensor  # (L,)
    sizes: list[int]

    @classmethod
    def of(cls, outputs: FCOSOutputs, strides: list[int]) -> _Grid:
        """The grid of the levels of `outputs`, with `strides` in pixels of the network input."""
        shapes = [tuple(t.shape[-2:]) for t in outputs.cls_logits]
        device = outputs.cls_logits[0].device
        points = torch.cat([locations(h, w, s, device) for (h, w), s in zip(shapes, strides, strict=True)])
        sizes = [h * w for h, w in shapes]
        counts = torch.tensor(sizes, device=device)
        level = torch.arange(len(sizes), device=device).repeat_interleave(counts)
        stride = torch.tensor(strides, device=device)[level]
        cell = (points / stride[:, None]).long()  # the offset of stride // 2 is cut off
        return cls(points, stride.float(), level, cell[:, 1], cell[:, 0], sizes)

    def decode(self, cell: Tensor, ltrb: Tensor) -> Tensor:
        """(P, 4) XYXY boxes in pixels from (P, 4) distances in strides."""
        ltrb = ltrb * self.stride[cell, None]
        points = self.points[cell]
        return torch.cat([points - ltrb[:, :2], points + ltrb[:, 2:]], dim=1)


def _tower(channels: int, num_convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(32, channels), nn.ReLU()]
    return nn.Sequential(*layers)


def _iou_ltrb(a: Tensor, b: Tensor) -> Tensor:
    """(P,) IoU of boxes that share their location, given by distances to the sides."""
    low, high = torch.minimum(a, b), torch.stack([a, b])
    area = (high[:, :, 0] + high[:, :, 2]) * (high[:, :, 1] + high[:, :, 3])  # [2, P]
    shared = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
    return shared / (area.sum(0) - shared).clamp(min=1e-6)


def _check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{name}={given!r}; allowed: {', '.join(allowed)}")
