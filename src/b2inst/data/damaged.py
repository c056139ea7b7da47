"""Image files that training cannot use are left out, named and counted; too many of them end the run.

A worker marks such an image as `Damaged`, `collate` leaves it out of the batch and hands the message on in
`Batch.damaged`, and `DamageLimit` counts in the main process, where the run can be ended.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from b2inst.data.errors import DataError

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Damaged:
    """Stands for an image that cannot be used.

    Attributes:
        message: names the file and says why.
        instead: a sample of another image, for a batch that would have none.
    """

    message: str
    instead: Any = None


def split_damaged(samples: Sequence[T | Damaged]) -> tuple[list[T], tuple[str, ...]]:
    """Separate samples from the messages of damaged ones; without any, the first has another image in its place.

    Raises:
        DataError: there is none either, so that the batch would be empty.
    """
    good = [sample for sample in samples if not isinstance(sample, Damaged)]
    messages = tuple(sample.message for sample in samples if isinstance(sample, Damaged))
    if not good:
        good = [sample.instead for sample in samples if sample.instead is not None][:1]
    if not good:
        raise DataError("\n".join([f"none of the {len(samples)} images of a batch can be used:", *messages]))
    return good, messages


class DamageLimit:
    """Counts files, each once however many epochs it is met in, and allows a share of the data set.

    Args:
        share: of the data set that may be damaged, from 0 to 1; 0 allows none.
        total: number of images of the data set.
    """

    def __init__(self, share: float, total: int) -> None:
        self.share = share
        self.total = total
        self._seen: dict[str, None] = {}  # in the order of their discovery

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, messages: Iterable[str]) -> None:
        """Count what was left out of a batch, with a warning for each file that is new.

        Raises:
            DataError: there are more than the limit allows.
        """
        for message in messages:
            if message not in self._seen:
                self._seen[message] = None
                log.warning("image %d that is left out of training: %s", len(self._seen), message)
        if len(self._seen) > self.share * self.total:
            last, allowed = next(reversed(self._seen)), int(self.share * self.total)
            raise DataError(
                f"{len(self._seen)} of {self.total:,} training images cannot be used, data.max_damaged={self.share} "
                f"allows {allowed}; the last one: {last}; `python -m b2inst.verify` lists them all: repair them, or "
                "raise data.max_damaged"
            )
