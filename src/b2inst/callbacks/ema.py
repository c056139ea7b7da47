"""An exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from b2inst.callbacks.finite import FiniteSteps


class EMA(WeightAveraging):
    """Keeps an average of weights and buffers, moved at each step, which validation and checkpoints use.

    Lightning's EMAWeightAveraging computes `decay * average + (1 - decay) * value`, which rounds: a constant buffer
    drifts with every step, for instance the mean of the pixels, and jumps back in a resumed run. This one interpolates.
    Steps that `FiniteSteps` skips do not move it.

    Args:
        decay: share of the old average kept at each step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average, unless the last step was skipped."""
        guards = [c for c in trainer.callbacks if isinstance(c, FiniteSteps)]  # type: ignore[attr-defined]
        if all(guard.skipped_at != trainer.global_step for guard in guards):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
