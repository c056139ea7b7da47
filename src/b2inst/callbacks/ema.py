"""An exponential moving average of the weights."""

from __future__ import annotations

from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Keeps an average of weights and buffers, moved at each step, which validation and checkpoints use.

    Lightning's EMAWeightAveraging computes `decay * average + (1 - decay) * value`, which rounds: a constant buffer
    drifts with every step, for instance the mean of the pixels, and jumps back in a resumed run. This one interpolates.

    Args:
        decay: share of the old average kept at each step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
