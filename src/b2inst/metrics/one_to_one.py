"""Pairs of pixels one to one, as many as there can be, for every number of the pixels that are taken first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 2_000_000  # pairs that are looked at, which take 50 MB


def neighbors_within(places: NDArray[np.int64], mask: NDArray[np.bool_], distance: float) -> list[list[int]]:
    """Find the pixels of a mask around places.

    Args:
        places: (P, 2) (y, x), inside of the mask.
        mask: (H, W).
        distance: pixels, largest one that counts.

    Returns:
        Of each place the pixels of the mask, numbered row by row, nearest first.
    """
    reach = math.floor(distance)
    numbers = np.full((mask.shape[0] + 2 * reach, mask.shape[1] + 2 * reach), -1, np.int64)
    numbers[reach : reach + mask.shape[0], reach : reach + mask.shape[1]][mask] = np.arange(mask.sum())
    offsets = np.array([(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)])
    away = np.hypot(*(offsets - reach).T)
    offsets = offsets[np.argsort(away, kind="stable")][: (away <= distance).sum()]
    neighbors: list[list[int]] = []
    for part in np.array_split(places, len(places) * len(offsets) // AT_ONCE + 1):
        found = numbers[part[:, :1] + offsets[:, 0], part[:, 1:] + offsets[:, 1]]  # [part of P, offsets]
        there = found >= 0
        listed, ends = found[there].tolist(), np.cumsum(there.sum(axis=1)).tolist()
        neighbors += [listed[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return neighbors


def matched_in_order(choices: Sequence[Sequence[int]], count: int) -> NDArray[np.bool_]:
    """Which entries get a partner of their own, where earlier ones come first.

    For every n, the first n entries of the result hold as many as the largest matching of the first n entries has:
    one that cannot be given a partner when it comes, by moving others, cannot later either.

    Args:
        choices: of P entries, the partners that each may have, as numbers below `count`; preferred ones first.
        count: of all partners.

    Returns:
        (P,).

    Source: augmenting paths (Berge, Kuhn). What a search has reached that found none is left out afterwards, so that a
    choice is looked at once for all searches without success together.
    """
    partner_of, owner = [-1] * len(choices), [-1] * count
    closed = [False] * count
    for entry in range(len(choices)):
        reached: dict[int, int] = {}  # partner -> the entry that asks for it
        free, queue = -1, [entry]
        for asking in queue:  # grows
            for partner in choices[asking]:
                if closed[partner] or partner in reached:
                    continue
                reached[partner] = asking
                if owner[partner] < 0:
                    free = partner
                    break
                queue.append(owner[partner])
            if free >= 0:
                break
        if free < 0:
            for partner in reached:
                closed[partner] = True
            continue
        while free >= 0:  # each one that is asked for goes to who asks, who leaves its own
            asking = reached[free]
            owner[free], free, partner_of[asking] = asking, partner_of[asking], free
    return np.array(partner_of, np.int64) >= 0
