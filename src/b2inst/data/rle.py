"""Reads compressed run-length codes far enough to check them.

pycocotools refuses codes with too many pixels in the middle of a training, and decodes those with too few to
whatever the memory held before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_GROUPS = 6  # of five bits in a number


def runs(counts: str) -> NDArray[np.int64] | None:
    """Decode the `counts` of a compressed RLE.

    Each number is written in groups of five bits, lowest first, one character each; the sixth bit says that another
    group follows, and the highest bit of the last group is the sign. From the fourth number on, it is the difference
    to the number two before.

    Args:
        counts: as in a COCO file.

    Returns:
        Lengths of the runs of 0 and 1 in turn, or None if the text is no such code, or has numbers of more than 30
        bits, which no image needs: pycocotools loses bits of larger ones, and their sum may wrap around.

    Example:
        >>> runs("32c0").tolist()
        [3, 2, 19]
    """
    if not counts.isascii():
        return None
    groups = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0  # the last group of its number
    if not groups.size or groups.min() < 0 or groups.max() > 63 or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > MAX_GROUPS:
        return None
    shifts = 5 * (np.arange(groups.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((groups & 31) << shifts, starts)
    numbers -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers


def covers(counts: str, pixels: int) -> bool:
    """Whether a compressed RLE is one, of exactly this many pixels."""
    lengths = runs(counts)
    # no run is longer than the image: the sum might wrap around otherwise
    return lengths is not None and 0 <= lengths.min() and lengths.max() <= pixels and int(lengths.sum()) == pixels
