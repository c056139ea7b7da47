"""Pairs of pixels one to one, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from b2inst.metrics import one_to_one
from b2inst.metrics.one_to_one import matched_in_order, neighbors_within


@pytest.mark.parametrize("seed", range(20))
def test_every_beginning_holds_as_many_as_its_largest_matching(seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries, partners = int(rng.integers(1, 40)), int(rng.integers(1, 25))
    choices = [rng.permutation(partners)[: rng.integers(0, 5)].tolist() for _ in range(entries)]
    matched = matched_in_order(choices, partners)
    allowed = np.zeros((entries, partners))
    for entry, chosen in enumerate(choices):
        allowed[entry, chosen] = 1
    for n in range(1, entries + 1):
        largest = (maximum_bipartite_matching(csr_array(allowed[:n]), perm_type="column") >= 0).sum()
        assert matched[:n].sum() == largest, f"of the first {n}"


def test_others_move_and_who_came_first_stays() -> None:
    assert matched_in_order([[0, 1], [0], [0], [1, 2]], 3).tolist() == [True, True, False, True]
    assert matched_in_order([[], [0]], 1).tolist() == [False, True] and matched_in_order([], 3).tolist() == []


@pytest.mark.parametrize("distance", [0.0, 1.0, 1.5, 3.2])
def test_neighbors_are_those_within_the_distance_nearest_first(distance: float) -> None:
    mask = np.random.default_rng(0).random((7, 9)) > 0.6
    places, pixels = np.argwhere(np.ones_like(mask)), np.argwhere(mask).tolist()
    for place, found in zip(places.tolist(), neighbors_within(places, mask, distance), strict=True):
        away = [math.dist(place, pixels[number]) for number in found]
        assert away == sorted(away)
        assert sorted(found) == [n for n, pixel in enumerate(pixels) if math.dist(place, pixel) <= distance]
    assert neighbors_within(places[:0], mask, distance) == []


def test_neighbors_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).random((7, 9)) > 0.6
    places = np.argwhere(np.ones_like(mask))
    whole = neighbors_within(places, mask, 2.0)
    monkeypatch.setattr(one_to_one, "AT_ONCE", 100)
    assert neighbors_within(places, mask, 2.0) == whole
