"""When the newest checkpoint is written, and who decides to stop."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from b2inst.callbacks.ema import EMA
from b2inst.callbacks.finite import FiniteSteps
from b2inst.callbacks.last import LastCheckpoint
from b2inst.checkpoint_io import AtomicCheckpointIO
from b2inst.stop import REQUEUE, Stopped
from callbacks.small_run import SmallModule, batch, state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NAMES = ["a.jpg", "b.jpg", "c.jpg", "nan.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg"]


class Votes:
    """A strategy of several processes, of which the others have these votes."""

    def __init__(self, *others: bool) -> None:
        self.others = others

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        return (min if all else max)((decision, *self.others))


def a_trainer(done: int, accumulate: int, *others: bool) -> SimpleNamespace:
    """Stands before a batch of the second step of an epoch, where so many are done; keeps what it saves."""
    progress = SimpleNamespace(current=SimpleNamespace(completed=done), total=SimpleNamespace(completed=done))
    trainer = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress, _batches_that_stepped=1)),
        accumulate_grad_batches=accumulate, global_step=done // accumulate, num_training_batches=10, current_epoch=0,
        loggers=[], strategy=Votes(*others), world_size=1 + len(others), saved=[],
    )  # fmt: skip
    trainer.save_checkpoint = lambda path, **_: trainer.saved.append(path.name)
    return trainer


def a_callback(signum: int | None) -> LastCheckpoint:
    last = LastCheckpoint("folder", every_n_steps=1)
    last.stop = SimpleNamespace(signum=signum)
    return last


def test_between_two_batches_of_one_step_nothing_is_written() -> None:
    """Their gradients are not stored; a signal waits for the end of the step."""
    trainer, last = a_trainer(3, 2), a_callback(15)
    last._validated = True
    last.on_train_batch_start(trainer, None, None, 3)
    assert trainer.saved == []
    trainer = a_trainer(4, 2)
    with pytest.raises(Stopped):
        last.on_train_batch_start(trainer, None, None, 4)
    assert trainer.saved == ["last.ckpt"]


@pytest.mark.parametrize(("signum", "others"), [(None, [True]), (None, [False, True]), (10, [False])])
def test_one_process_with_a_signal_stops_all(signum: int | None, others: list[bool]) -> None:
    trainer = a_trainer(2, 1, *others)
    with pytest.raises(Stopped) as error:
        a_callback(signum).on_train_batch_start(trainer, None, None, 2)
    assert error.value.code == REQUEUE and trainer.saved == ["last.ckpt"]


def test_without_a_signal_none_stops_and_a_validation_is_not_left_by_one_alone() -> None:
    a_callback(None).on_train_batch_start(a_trainer(2, 1, False, False), None, None, 2)
    trainer = a_trainer(2, 1, False)
    trainer.state, trainer.sanity_checking = SimpleNamespace(fn="fit"), False
    a_callback(15).on_validation_batch_end(trainer, None)
    with pytest.raises(Stopped):
        trainer.world_size, trainer.strategy = 1, Votes()
        a_callback(15).on_validation_batch_end(trainer, None)


class Loader(DataLoader):
    """Begins a resumed epoch behind the batches that are done."""

    skip = 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skip = state["batches"]

    def __iter__(self) -> Iterator[Any]:
        yield from islice(super().__iter__(), self.skip, None)


class Data(pl.LightningDataModule):
    """One batch a name."""

    batch_sizes, group_by_aspect = {"train": 4}, False

    def dataset(self, split: str) -> Any:
        return SimpleNamespace(images=Images())

    def train_dataloader(self) -> DataLoader:
        return Loader([batch(name) for name in NAMES], batch_size=None)


class Images(list):
    ids = torch.arange(3).numpy()


class Kill(pl.Callback):
    """Ends the run in the batch after so many."""

    def __init__(self, done: int) -> None:
        self.done = done

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.current.completed == self.done:
            raise KeyError("killed")


def fit(folder: Path, accumulate: int, kill: int = -1, resume: bool = False) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    last = LastCheckpoint(str(folder), every_n_steps=1)
    ema = EMA(decay=0.5)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, accumulate_grad_batches=accumulate, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[FiniteSteps(str(folder / "bad")), last, Kill(kill), ema],
        default_root_dir=folder, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    module = SmallModule()
    path = folder / "last.ckpt" if resume else None
    trainer.fit(module, datamodule=Data(), ckpt_path=path, weights_only=True)
    trainer.callbacks = [ema]
    return state(module, trainer)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_kill_right_behind_a_skipped_step_leaves_no_trace_in_the_average(accumulate: int, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", accumulate)
    with pytest.raises(KeyError, match="killed"):
        fit(tmp_path / "killed", accumulate, kill=4)
    saved = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert saved["callbacks"]["FiniteSteps"]["skipped_at"] == saved["global_step"] == 4 // accumulate
    resumed = fit(tmp_path / "killed", accumulate, resume=True)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
