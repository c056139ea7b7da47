"""Steps with a loss or gradients that are not finite change nothing; what is needed to find out why is kept."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.ops import FrozenBatchNorm2d

from b2inst.replay import save_step
from b2inst.structures import Batch
from b2inst.writing import may_fail

log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """Too many steps in a row were not finite; the message names the images, the files and the remedy."""


@dataclass(frozen=True)
class Suspect:
    """A batch after which the loss or the gradients of the step were not finite.

    Attributes:
        batch: on the CPU; None where another process has it.
        micro: which batch of the step, of those that are accumulated.
        rank: process that had it.
        reason: such as `loss nan`.
        images: its image files.
        loss: whether the loss itself was not finite; else the gradients alone, to which an earlier batch or, in DDP,
            another process may have led.
    """

    batch: Batch | None
    micro: int
    rank: int
    reason: str
    images: tuple[str, ...]
    loss: bool


class FiniteSteps(pl.Callback):
    """Leaves out an optimizer step whose loss or gradient norm is not finite.

    Weights, optimizer state and running statistics stay as they were before the first batch of the step, also where
    several are accumulated; with `callbacks=ema` the average too. The step counts for the schedule. In a distributed
    run all processes leave it out together. The image files are logged, and the batches are written with the weights,
    for `python -m b2inst.replay FILE`. The log has the count as `train/skipped_steps`.

    With `precision=16-mixed`, gradients that overflow are the business of its scaler, which leaves the step out and
    lowers the scale; here they count once the scale is 1 or less.

    Args:
        folder: where the batches go.
        max_in_row: skipped steps in a row that end the run.
        keep: files of each process that are kept, the newest; 0 for none.

    Attributes:
        skipped: steps so far.
        skipped_at: the number of steps after the last skipped one, -1 where there is none.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, folder: str, max_in_row: int = 10, keep: int = 3) -> None:
        if max_in_row < 1 or keep < 0:
            raise ValueError(f"callbacks.finite: max_in_row={max_in_row}, keep={keep}; give at least 1 and 0")
        self.folder = Path(folder)
        self.max_in_row = max_in_row
        self.keep = keep
        self.skipped = 0
        self.in_row = 0
        self.skipped_at = -1
        self._row: list[str] = []
        self._before: list[tuple[Tensor, Tensor]] | None = None  # statistics, and what they were; None between steps
        self._suspects: list[Suspect] = []
        self._micro = 0
        self._batch: Batch | None = None
        self._loss: Tensor | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the running statistics, which the forward pass changes before the loss is known."""
        self._batch = batch
        if self._before is None:
            self._before = [(buffer, buffer.clone()) for buffer in _statistics(pl_module)]
            self._suspects, self._micro = [], 0

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss."""
        self._loss = loss.detach()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at loss and gradients; what was found is dealt with where the step would be made."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss, norm = torch.stack([self._loss.float(), norm.to(self._loss.device)]).tolist()  # one wait for the device
        reason = None
        if not math.isfinite(loss):
            reason = f"loss {loss}"
        elif not math.isfinite(norm) and not self._suspects and not _scaler_may_help(trainer):
            reason = f"gradient norm {norm}"
        if reason is not None:
            kept = self._batch.to("cpu") if self.keep else None
            images = tuple(self._batch.images.file_names)
            rank = trainer.global_rank
            self._suspects.append(Suspect(kept, self._micro, rank, reason, images, not math.isfinite(loss)))
        self._micro += 1

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the step do nothing, if something was found in any process.

        Raises:
            NonFiniteError: it was one too many in a row.
        """
        before, self._before, self._batch = self._before or [], None, None
        if not trainer.strategy.reduce_boolean_decision(bool(self._suspects), all=False):
            self.in_row, self._row = 0, []
            return
        optimizer.zero_grad()  # sets them to None: what has no gradient is left alone by every optimizer
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        self.skipped += 1
        self.in_row += 1
        self.skipped_at = trainer.global_step + 1
        self._report(trainer, pl_module)
        if self.in_row >= self.max_in_row:
            raise NonFiniteError(self._stopped())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the count."""
        self._loss = None
        pl_module.log("train/skipped_steps", float(self.skipped), batch_size=len(batch))

    def state_dict(self) -> dict[str, Any]:
        """Counts, which go on after an interruption."""
        return {"skipped": self.skipped, "in_row": self.in_row, "skipped_at": self.skipped_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the counts."""
        self.skipped, self.in_row = state_dict["skipped"], state_dict["in_row"]
        self.skipped_at = state_dict["skipped_at"]

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the batches of this process, and tell of all in the first one."""
        step = trainer.global_step
        suspects = _to_blame(_gather(trainer, [replace(suspect, batch=None) for suspect in self._suspects]))
        mine = {suspect.micro for suspect in suspects if suspect.rank == trainer.global_rank}
        for suspect in [s for s in self._suspects if s.micro in mine][: self.keep]:
            with may_fail("batches of skipped steps"):
                save_step(self._file(step, suspect), pl_module, suspect.batch, step, suspect.reason, trainer.precision)
                self._remove_old(trainer.global_rank)
        self._suspects = []
        lines = [f"{s.reason}: images {', '.join(s.images)}" for s in suspects]
        if self.keep:
            lines = [f"{line}; batch {self._file(step, s)}" for line, s in zip(lines, suspects, strict=True)]
        self._row += [f"step {step}, {line}" for line in lines]
        if trainer.is_global_zero:
            count = f"{self.skipped} so far, {self.in_row} of {self.max_in_row} in a row"
            log.warning("step %d is skipped (%s): %s", step, count, "; ".join(lines))

    def _file(self, step: int, suspect: Suspect) -> Path:
        return self.folder / f"step{step:08d}-{suspect.micro:03d}-rank{suspect.rank}.ckpt"

    def _remove_old(self, rank: int) -> None:
        for path in sorted(self.folder.glob(f"step*-rank{rank}.ckpt"))[: -self.keep]:
            path.unlink()

    def _stopped(self) -> str:
        lines = "\n".join(self._row[-self.max_in_row :])
        return (
            f"{self.in_row} steps in a row had a loss or gradients that are not finite (callbacks.finite.max_in_row):\n"
            f"{lines}\n"
            "look at one with `python -m b2inst.replay FILE`; lower optim.lr, lengthen schedule.warmup_steps, set "
            "trainer.gradient_clip_val=1.0, or use trainer.precision=32-true, and go on from the last checkpoint with "
            "ckpt_path=last"
        )


def _statistics(module: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass may change."""
    parts = (part for part in module.modules() if not isinstance(part, FrozenBatchNorm2d))
    return [buffer for part in parts for buffer in part.buffers(recurse=False)]


def _scaler_may_help(trainer: pl.Trainer) -> bool:
    """Whether a lower loss scale may make gradients finite that are not."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1


def _gather(trainer: pl.Trainer, mine: list[Suspect]) -> list[Suspect]:
    if trainer.world_size == 1:
        return mine
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, mine)
    return [suspect for part in parts for suspect in part]


def _to_blame(suspects: list[Suspect]) -> list[Suspect]:
    """Those with a loss that is not finite; else those after which the gradients were the first not to be."""
    with_loss = [suspect for suspect in suspects if suspect.loss]
    first = min(suspect.micro for suspect in suspects)
    return with_loss or [suspect for suspect in suspects if suspect.micro == first]
