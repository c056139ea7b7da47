"""Which images are the part of this process, where several share the work without knowing of each other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from b2inst.config import ConfigError

# (index, number) of a process and its place on its machine, as torchrun and SLURM's srun name them.
_LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
# The same in all processes of a run, and another in the next one.
_RUN = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class Split:
    """One of several processes that share images, each taking one of every `count` in a row.

    The part of a process follows from these values alone, so that nothing has to be agreed upon; who starts late or
    ends early changes nothing.

    Attributes:
        index: of this process, from 0 on.
        count: how many there are.
        run: what this run is called. Where a run is continued, what a dead process left open would otherwise be the
            part of one process again.
        local: place of this process on its machine; None where that is not known.

    Example:
        >>> [[n for n in range(6) if Split(index, 2).owns(n)] for index in (0, 1)]
        [[0, 2, 4], [1, 3, 5]]
    """

    index: int = 0
    count: int = 1
    run: str = ""
    local: int | None = None

    def owns(self, position: int) -> bool:
        """Whether the image at a position, from 0 on, is for this process."""
        return (position + self._turn(position // self.count)) % self.count == self.index

    def _turn(self, row: int) -> int:
        """By how many processes a row is turned: by chance, but the same for all."""
        if not self.run:
            return 0
        return int.from_bytes(hashlib.blake2b(f"{self.run} {row}".encode(), digest_size=8).digest(), "little")

    def device(self, given: str | None) -> str | None:
        """The device that was asked for; else a CUDA device for each process of a machine, None where there is none."""
        devices = torch.cuda.device_count() if given is None and self.local is not None else 0
        return f"cuda:{self.local % devices}" if devices else given


def this_split(given: str | None, environment: Mapping[str, str] | None = None) -> Split:
    """Find out which part of the work is that of this process.

    Args:
        given: `I/N`, part I of N, from 0 on; None for what `torchrun` or `srun` say, else all of it.
        environment: where they say it; None for the variables of this process.

    Raises:
        ConfigError: it is no part of anything.
    """
    environment = os.environ if environment is None else environment
    if given is not None:
        index, _, count = str(given).partition("/")
        return _checked(index, count, f"shard={given}")
    for index, count, local in _LAUNCHERS:
        if index in environment and count in environment:
            said = f"{index}={environment[index]}, {count}={environment[count]}"
            split = _checked(environment[index], environment[count], said)
            run = " ".join(environment[name] for name in _RUN if name in environment)
            place = environment.get(local, "")
            return Split(split.index, split.count, run, int(place) if place.isdecimal() else None)
    return Split()


def _checked(index: str, count: str, said: str) -> Split:
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return Split(int(index), int(count))
    raise ConfigError(f"{said}: is no part of a whole; give shard=I/N with I from 0 to N - 1, as in shard=0/4")
