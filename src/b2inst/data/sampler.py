"""Which images come in which order and batch, and with which random numbers: all of it from a seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler


class Draw(NamedTuple):
    """One sample to load: the same seed, epoch and image give the same sample, whoever loads it and when."""

    position: int
    seed: int
    epoch: int

    def sample_seed(self, image_id: int) -> int:
        """The seed of the augmentation."""
        # SeedSequence takes no negative numbers, which an annotation file may hold as ids
        return int(np.random.SeedSequence([self.seed, self.epoch, image_id % 2**64]).generate_state(1)[0])


class EpochSampler(RandomSampler):  # Lightning takes it for shuffled by its class
    """A random order of a data set for each epoch, the same in every process.

    Args:
        dataset: with a length.
        seed: of the orders.

    Attributes:
        epoch: the next one. Lightning sets it; without Lightning, each iteration goes on to the next.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        super().__init__(dataset)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed + 0x9E3779B1 * self.epoch) % 2**63)
        self.epoch += 1
        yield from torch.randperm(len(self.data_source), generator=generator).tolist()


class GroupedBatchSampler(BatchSampler):
    """Batches of images of one group, so that they share a canvas with little padding.

    What is left of the groups at the end makes mixed batches: there are as many batches as without groups. A step has
    the same images for any number of processes, if they have as many together; each takes its share of them.

    Args:
        sampler: gives the positions of all processes.
        batch_size: images in a batch of a process.
        drop_last: leave out the last step if it is smaller; else what does not divide by the processes is left out of
            it, and fewer images than processes are repeated.
        seed: of the samples.
        groups: of each position; None for one group.
        rank: which process.
        processes: how many.

    Attributes:
        skip: batches that the next iteration leaves out.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool,
        seed: int,
        groups: Sequence[int] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.seed = seed
        self.groups = groups
        self.rank = rank
        self.processes = processes
        self.skip = 0

    def __len__(self) -> int:
        steps, rest = divmod(len(self.sampler), self.batch_size * self.processes)
        return steps + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[Draw]]:
        """The batches, without the first `skip` of this iteration; the next one has all again."""
        skip, self.skip = self.skip, 0
        for step in islice(self._steps(), skip, None):
            share = max(len(step) // self.processes, 1)
            yield [step[(self.rank + k * self.processes) % len(step)] for k in range(share)]

    def _steps(self) -> Iterator[list[Draw]]:
        """The images of each step, of all processes."""
        size = self.batch_size * self.processes
        epoch = getattr(self.sampler, "epoch", 0)  # a sampler without epochs repeats itself
        waiting: dict[int, list[Draw]] = {}
        for position in self.sampler:
            group = 0 if self.groups is None else int(self.groups[position])
            batch = waiting.setdefault(group, [])
            batch.append(Draw(position, self.seed, epoch))
            if len(batch) == size:
                yield waiting.pop(group)
        rest = [draw for group in sorted(waiting) for draw in waiting[group]]
        for start in range(0, len(rest), size):
            batch = rest[start : start + size]
            if len(batch) == size or not self.drop_last:
                yield batch


class LazyLoader(DataLoader):
    """Starts to load when the first batch is asked for.

    Lightning makes the iterator of a resumed epoch before it sets the epoch, and workers begin at once.
    """

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()


class ResumableLoader(LazyLoader):
    """A loader of a `GroupedBatchSampler` that begins an interrupted epoch behind the batches that are done.

    Lightning stores its state in checkpoints and restores it before the first iteration. The batches that are left out
    are not loaded.
    """

    _given = 0  # on the class: Lightning makes a loader anew for DDP
    _skip = 0

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were handed out."""
        return {"batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out as many batches in the next iteration."""
        self._skip = state["batches"]

    def __iter__(self) -> Iterator[Any]:
        # now, as Lightning may throw this iterator away without using it, or save before it does
        self._given, self._skip = self._skip, 0
        return self._rest(self._given)

    def _rest(self, skip: int) -> Iterator[Any]:
        self.batch_sampler.skip = skip
        for batch in super().__iter__():
            self._given += 1
            yield batch
