"""Edge agreement loss of Zimmermann and Siems (arXiv 1809.07069) on masks of RoIs.

The filters, applied without flipping (cross-correlation), as in the authors' implementation:

=========  ================================  =================================
kernel     first filter                      second filter
=========  ================================  =================================
sobel      [1 2 1; 0 0 0; -1 -2 -1]          [1 0 -1; 2 0 -2; 1 0 -1]
prewitt    [1 1 1; 0 0 0; -1 -1 -1]          [1 0 -1; 1 0 -1; 1 0 -1]
kayyali    [6 0 -6; 0 0 0; -6 0 6]           [-6 0 6; 0 0 0; 6 0 -6]
roberts    [1 0; 0 -1]                       [0 -1; 1 0]
laplacian  [1 1 1; 1 -8 1; 1 1 1]            -
=========  ================================  =================================
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from b2inst.losses.reduction import mean_over_pixels, prepare
from b2inst.losses.term import Reduction, Term
from b2inst.ops.precision import without_autocast

Kernel = Literal["sobel", "prewitt", "kayyali", "roberts", "laplacian"]

KERNELS: dict[str, list[list[list[float]]]] = {
    "sobel": [[[1, 2, 1], [0, 0, 0], [-1, -2, -1]], [[1, 0, -1], [2, 0, -2], [1, 0, -1]]],
    "prewitt": [[[1, 1, 1], [0, 0, 0], [-1, -1, -1]], [[1, 0, -1], [1, 0, -1], [1, 0, -1]]],
    "kayyali": [[[6, 0, -6], [0, 0, 0], [-6, 0, 6]], [[-6, 0, 6], [0, 0, 0], [6, 0, -6]]],
    # 2 x 2 filters in the lower right of a 3 x 3 window: that is where "same" padding puts them
    "roberts": [[[0, 0, 0], [0, 1, 0], [0, 0, -1]], [[0, 0, 0], [0, 0, -1], [0, 1, 0]]],
    "laplacian": [[[1, 1, 1], [1, -8, 1], [1, 1, 1]]],
}
# Gaussian of sigma 1 pixel, integrated over the pixels of a 3 x 3 window and normalized: the reference's numbers.
GAUSSIAN = [[[0.077847, 0.123317, 0.077847], [0.123317, 0.195346, 0.123317], [0.077847, 0.123317, 0.077847]]]


def edge_agreement_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    kernel: Kernel = "sobel",
    power: float = 2,
    smooth_prediction: bool = False,
    smooth_target: bool = False,
    cross_entropy: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Mean distance between the edges of the predicted and of the true mask, found by fixed filters.

    .. math:: L = \mathrm{mean}_{i, f}\,|(k_f * \sigma(x))_i - (k_f * g)_i|^p

    With `cross_entropy` what is averaged is the cross-entropy of each pixel, weighted by its edges:

    .. math:: L = \mathrm{mean}_i\,H(\sigma(x_i), g_i) \exp\left(\tfrac{1}{16}\,\mathrm{mean}_f\,
        |(k_f * \sigma(x))_i - (k_f * g)_i|^p\right)

    Borders are padded with zeros, so the frame is an edge of a mask that touches it, in prediction and target alike.

    Args:
        logits: (B, H, W) masks, before the sigmoid.
        target: (B, H, W) masks in [0, 1].
        weight: (B, H, W), 0 = ignored; None for ones. It applies to the filter outputs.
        kernel: name of the pair of filters, see the table of the module; the paper found Sobel best.
        power: exponent p, 1 to 5 in the paper, 2 by default.
        smooth_prediction: blur the prediction with a 3 x 3 Gaussian first.
        smooth_target: blur the target likewise.
        cross_entropy: weigh the pixels' cross-entropy by the edges. It is that of the masks as they are; in the
            authors' implementation it is of the blurred ones where these are asked for.
        reduction: `"mean"`: one mean over the pixels of all maps; `"none"`: one mean a map.

    Returns:
        A scalar or (B,), float32; a zero attached to the graph where no pixel has weight.

    Raises:
        ValueError: shapes that differ, an unknown kernel or reduction, a power below 1, or one that lets the weights
            of `cross_entropy` overflow.

    Example:
        >>> target = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]])
        >>> edge_agreement_loss(torch.full((1, 3, 3), -50.0), target, kernel="laplacian")  # (8 * 1 + 64) / 9
        tensor(8.)
    """
    _check_options(kernel, power, cross_entropy)
    with without_autocast(logits):
        logits, target, weight = prepare(logits, target, weight)
        probs = logits.sigmoid()
        found = _filter(probs, GAUSSIAN)[:, 0] if smooth_prediction else probs
        wanted = _filter(target, GAUSSIAN)[:, 0] if smooth_target else target
        # Filters are linear: filtering the difference equals the difference of the filtered maps.
        values = _filter(found - wanted, KERNELS[kernel]).abs().pow(power).mean(dim=1)  # (B, F, H, W) -> (B, H, W)
        if cross_entropy:
            values = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * (values / 16).exp()
        return mean_over_pixels(values, weight, reduction)


class EdgeAgreement(Term):
    """`edge_agreement_loss` as a configurable term on the mask logits of the positives.

    Args:
        kernel: `sobel`, `prewitt`, `kayyali`, `roberts` or `laplacian`.
        power: exponent of the difference.
        smooth_prediction: blur the prediction with a 3 x 3 Gaussian first.
        smooth_target: blur the target likewise.
        cross_entropy: weigh the pixels' cross-entropy by the edges instead of adding the edges up.
        weight: factor of the term in the first epoch.
        weight_step: added to the factor in each later epoch.
        weight_max: upper limit of the factor.
    """

    supervises = "mask"

    def __init__(
        self,
        kernel: Kernel = "sobel",
        power: float = 2,
        smooth_prediction: bool = False,
        smooth_target: bool = False,
        cross_entropy: bool = False,
        *,
        weight: float = 1.0,
        weight_step: float = 0.0,
        weight_max: float = float("inf"),
    ) -> None:
        super().__init__(weight, weight_step, weight_max)
        _check_options(kernel, power, cross_entropy)
        self.kernel = kernel
        self.power = power
        self.smooth_prediction = smooth_prediction
        self.smooth_target = smooth_target
        self.cross_entropy = cross_entropy

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor, reduction: Reduction = "mean") -> Tensor:
        """See `edge_agreement_loss`."""
        return edge_agreement_loss(
            logits,
            target,
            weight,
            kernel=self.kernel,
            power=self.power,
            smooth_prediction=self.smooth_prediction,
            smooth_target=self.smooth_target,
            cross_entropy=self.cross_entropy,
            reduction=reduction,
        )


def _check_options(kernel: str, power: float, cross_entropy: bool) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; choose one of {sorted(KERNELS)}")
    if power < 1:
        raise ValueError(f"power={power}: below 1 the gradient is infinite where edges agree; choose 1 or more")
    largest = max(sum(abs(value) for row in rows for value in row) for rows in KERNELS[kernel])  # of differences of 1
    if cross_entropy and largest**power / 16 > 80:  # exp(88) is the largest float32
        raise ValueError(
            f"power={power}: with kernel={kernel} an edge would weigh exp({largest**power / 16:g}), which overflows; "
            "choose a smaller power, or cross_entropy=false"
        )


def _filter(maps: Tensor, filters: list[list[list[float]]]) -> Tensor:
    weights = torch.tensor(filters, dtype=maps.dtype, device=maps.device).unsqueeze(1)  # (F, 1, 3, 3)
    return F.conv2d(maps.unsqueeze(1), weights, padding=1)  # (B, 1, H, W) -> (B, F, H, W)
