"""Dynamic convolutions (CondInst): every instance has the weights of a small network of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from b2inst.losses.dice import dice_loss
from b2inst.models.assembly.base import Assembly, Instances
from b2inst.models.checks import whole_numbers
from b2inst.ops.points import locations
from b2inst.ops.precision import without_autocast
from b2inst.ops.upsample import aligned_bilinear


class DynamicConvolutions(Assembly):
    """Masks of the whole image from 1x1 convolutions whose weights are the parameters, sampled in the box.

    The input of an instance is the bases and the coordinates relative to its location, in units of what its level is
    for. The parameters are the weights of all layers, (out, in) each, and then their biases; with 8 bases and 3 layers
    169 numbers. The boundary basis is one more input channel, which makes them 177.

    Args:
        channels: of the hidden layers.
        num_layers: convolutions; the last one has one output, so that a single one has no hidden layer.
        upsampling: factor between the grid of the bases and that of the mask logits.
        mask_size: side R of a mask.
        sampling_ratio: of RoIAlign, on the mask logits.
        basis_stride: of the bases.

    Raises:
        ValueError: no channel or layer, or an up-sampling that does not divide the stride of the bases.

    Source: CondInst (arXiv 2003.05664); AdelaiDet's behavior and order of the parameters.
    """

    usual_bases = 8

    def __init__(
        self,
        channels: int = 8,
        num_layers: int = 3,
        upsampling: int = 2,
        mask_size: int = 56,
        sampling_ratio: int = 1,
        basis_stride: int = 8,
    ) -> None:
        super().__init__(mask_size, sampling_ratio, basis_stride)
        if upsampling < 1 or basis_stride % upsampling:
            raise ValueError(f"upsampling={upsampling}: give a divisor of basis_stride={basis_stride}")
        whole_numbers(channels=channels, num_layers=num_layers)
        self.channels = channels
        self.num_layers = num_layers
        self.upsampling = upsampling

    def shapes(self, num_bases: int) -> list[tuple[int, int]]:
        """(out, in) of each layer."""
        inputs = [num_bases + 2, *[self.channels] * (self.num_layers - 1)]
        return list(zip([*inputs[1:], 1], inputs, strict=True))

    def num_params(self, num_bases: int) -> int:
        """Weights and biases of the layers."""
        return sum(rows * columns + rows for rows, columns in self.shapes(num_bases))

    def rows_without_boundary(self, num_bases: int) -> Tensor:
        """All but the weights of the last input channel, see `Assembly.rows_without_boundary`."""
        rows = torch.arange(self.num_params(num_bases + 1))
        shape = self.shapes(num_bases + 1)[0]
        first = rows[: math.prod(shape)].unflatten(0, shape)
        return torch.cat([first[:, :-1].flatten(), rows[first.numel() :]])

    def layers(self, params: Tensor, num_bases: int) -> list[tuple[Tensor, Tensor]]:
        """Weights (P, out, in) and biases (P, out, 1) of each layer, from (P, num_params)."""
        shapes = self.shapes(num_bases)
        sizes = [rows * columns for rows, columns in shapes] + [rows for rows, _ in shapes]
        parts = params.split(sizes, dim=1)
        weights = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=False)]
        return list(zip(weights, (part[:, :, None] for part in parts[len(shapes) :]), strict=True))

    def image_logits(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, h, w) mask logits on the grid of the bases, of the whole image each."""
        height, width = bases.shape[-2:]
        pixels = locations(height, width, self.basis_stride, bases.device)  # [h * w, 2]
        relative = (instances.points[:, None] - pixels) / instances.reach[:, None, None]  # [P, h * w, 2]
        own = bases.float().flatten(2)[instances.per_mask(instances.image)]  # [P, K, h * w]
        x = torch.cat([relative.transpose(1, 2), own], dim=1)
        with without_autocast(bases):  # small sums of few channels, which half precision would coarsen
            for i, (weight, bias) in enumerate(self.layers(instances.params.float(), bases.shape[1])):
                x = torch.baddbmm(bias, weight, x.relu() if i else x)
        return x.unflatten(2, (height, width))[:, 0]

    def forward(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, R, R) mask logits in the frame of the boxes, see `Assembly.forward`."""
        return self._cut(self._enlarged(bases, instances), instances)

    def learn(
        self, bases: Tensor, instances: Instances, target: Tensor, truth: Tensor, weight: Tensor, normalizer: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Assembly.learn`; the loss is that of the whole image.

        In its box a mask that covers all is right for the most part, and Dice hardly lets it go from there.
        """
        logits = self._enlarged(bases, instances)
        stride = self.basis_stride // self.upsampling
        centers = truth[:, stride // 2 :: stride, stride // 2 :: stride]
        loss = self.loss(logits[:, 0], instances.per_mask(centers).float(), weight, normalizer)
        return self._cut(logits, instances), loss

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor, normalizer: Tensor) -> Tensor:
        """Dice loss with squared denominators, mean over the positives whose target is not empty, all of one weight.

        CondInst has the others in its mean, as constants of 1 without a gradient.
        """
        return dice_loss(logits, target)

    def _enlarged(self, bases: Tensor, instances: Instances) -> Tensor:
        """(P, 1, H', W') mask logits of the whole image, at the stride of the bases divided by `upsampling`."""
        return aligned_bilinear(self.image_logits(bases, instances)[:, None], self.upsampling)

    def _cut(self, logits: Tensor, instances: Instances) -> Tensor:
        """(P, R, R) in the frame of the boxes."""
        own = torch.arange(logits.shape[0], device=logits.device)  # each mask is cut out of a map of its own
        stride = self.basis_stride // self.upsampling
        # A cell has learned its pixel stride // 2, whose center is behind the middle of the cell if the stride is even.
        behind = stride // 2 + 0.5 - stride / 2
        return self.pool(logits, instances.per_mask(instances.boxes) - behind, own, stride)[:, 0]
