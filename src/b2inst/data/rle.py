"""Reads compressed run-length codes far enough to check them.

pycocotools refuses codes with too many pixels in the middle of a training, and decodes those with too few to
whatever the memory held before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def runs(counts: str) -> NDArray[np.int64] | None:
    """Decode the `counts` of a compressed RLE.

    Each number is written in groups of five bits, lowest first, one character each; the sixth bit says that another
    group follows, and the highest bit of the last group is the sign. From the fourth number on, it is the difference
    to the number two before.

    Args:
        counts: as in a COCO file.

    Returns:
        Lengths of the runs of 0 and 1 in turn, or None if the text is no such code.

    Example:
        >>> runs("32c0").tolist()
        [3, 2, 19]
    """
    groups = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0  # the last group of its number
    if not groups.size or groups.min() < 0 or groups.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:  # more than 60 bits
        return None
    shifts = 5 * (np.arange(groups.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((groups & 31) << shifts, starts)
    numbers -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers


def covers(counts: str, pixels: int) -> bool:
    """Whether a compressed RLE is one, of exactly this many pixels."""
    lengths = runs(counts)
    return lengths is not None and int(lengths.min()) >= 0 and int(lengths.sum()) == pixels
