"""The checkpoint to go on from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from b2inst.callbacks.loop_state import Position, at
from b2inst.random_state import random_state, set_random_state
from b2inst.resume_check import training_data
from b2inst.stop import Stopped, StopRequest

log = logging.getLogger(__name__)

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` so that a run that goes on from it is, bit for bit, the one that was not interrupted.

    It is written between two batches, after the log of the one and before the next: every so many optimizer steps,
    before and after each validation, at the last step, and where a signal asks to stop. The one before stays as
    `previous.ckpt`. Between two batches that share an optimizer step there is none, for their gradients are not stored.

    Args:
        folder: where they go.
        every_n_steps: optimizer steps between two of them.

    Attributes:
        stop: tells when to stop; None: never.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, folder: str, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.last.every_n_steps={every_n_steps}: give a number of steps of at least 1")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.stop: StopRequest | None = None
        self._position: Position | None = None  # of the checkpoint that is being written
        self._step = 0  # of the newest one
        self._validated = False
        self._random: dict[str, Any] | None = None
        self._data: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        self._data = training_data(trainer.datamodule, trainer.world_size)  # type: ignore[attr-defined]
        if self.stop is not None:
            self.stop.listen()
            self.stop.waiting = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write where it is time, now that everything of the batch before is done; leave where a signal came."""
        self._go_on()
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        stop = self._asked(trainer)
        if done % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or stop
        if self._validated or (due and step != self._step):
            self._save(trainer)
        if stop:
            self._leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write before a validation within the training, so that an interrupted one costs no steps."""
        if not self._in_training(trainer):
            return
        self._go_on()
        loop = trainer.fit_loop.epoch_loop
        done, step = loop.batch_progress.current.completed, trainer.global_step
        boundary = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
        finished = step >= trainer.max_steps > 0  # Lightning would not go on from there with the validation
        if boundary and not finished and step != self._step:
            self._save(trainer, validation=True)
        if self._asked(trainer) and (boundary or finished):
            self._leave()

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Leave where a signal came; the processes of DDP leave after the validation, all at the same step."""
        if trainer.world_size == 1 and self._in_training(trainer) and self._asked(trainer):
            self._leave()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next checkpoint has a new best score."""
        self._validated = self._in_training(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write after the last step, which no batch follows."""
        if trainer.global_step >= trainer.max_steps > 0 or trainer.should_stop:
            self._save(trainer)
        if self._asked(trainer) and trainer.global_step == self._step:
            self._leave()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What follows needs no saving."""
        if self.stop is not None:
            self.stop.waiting = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the evaluation that follows behind the last step, with the same epoch where no step was left to do."""
        loop = trainer.fit_loop
        loop.epoch_loop._batches_that_stepped = trainer.global_step
        loop.epoch_progress.current.completed = loop.epoch_loop.batch_progress.total.processed // int(loop.max_batches)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A signal need not wait any more."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Step and random states, and which images the batches have, to be compared."""
        return {"step": self._step, "random": random_state(), "data": self._data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the step; the random states are set as late as they were taken."""
        self._step, self._random = state["step"], state["random"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the position into the checkpoints that this callback writes."""
        if self._position is not None:
            checkpoint["loops"]["fit_loop"] = at(self._position, checkpoint["loops"]["fit_loop"])

    def _save(self, trainer: pl.Trainer, validation: bool = False) -> None:
        loop = trainer.fit_loop.epoch_loop
        progress = loop.batch_progress
        done, in_all = progress.current.completed, progress.total.completed
        stepped = loop._batches_that_stepped + validation  # counted after the validation
        last = done == trainer.num_training_batches
        self._position = Position(trainer.current_epoch, done, in_all, stepped, last, validation)
        self._step, self._validated = trainer.global_step, False
        for logger in trainer.loggers:
            logger.save()
        try:
            storage = {"previous": self.folder / PREVIOUS}
            trainer.save_checkpoint(self.folder / LAST, weights_only=False, storage_options=storage)
        finally:
            self._position = None

    def _go_on(self) -> None:
        """Set the random states of the checkpoint that the run goes on from."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether a process got a signal to stop."""
        here = self.stop is not None and self.stop.signum is not None
        return trainer.strategy.reduce_boolean_decision(here, all=False) if self.stop is not None else False

    def _leave(self) -> None:
        log.info("stopped; goes on after step %d with output=%s ckpt_path=last", self._step, self.folder.parent)
        raise Stopped(self.stop.signum or 15)

    def _in_training(self, trainer: pl.Trainer) -> bool:
        return trainer.state.fn == "fit" and not trainer.sanity_checking
