from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from b2inst.data.rle import covers, runs
from data.make_coco import counts


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (300, 401)])
def test_runs_are_those_that_pycocotools_wrote(size: tuple[int, int], density: float) -> None:
    mask = (np.random.default_rng(0).random(size) < density).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    found = runs(text)
    assert found is not None and found.tolist() == counts(mask)
    assert covers(text, mask.size) and not covers(text, mask.size + 1)


@pytest.mark.parametrize("text", ["", "é", "P" * 20, "o", "z z", "0" * 3 + "O", "\n"])
def test_what_is_no_code(text: str) -> None:
    assert not covers(text, 64)


def test_half_a_code_does_not_cover_the_image() -> None:
    mask = (np.random.default_rng(0).random((40, 50)) < 0.5).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert not any(covers(text[:length], mask.size) for length in range(len(text)))
