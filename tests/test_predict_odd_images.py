"""A model takes images of any shape and kind, or says in words what is wrong with the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from b2inst.data.errors import DataError
from b2inst.predictor import B2Inst
from data.make_pictures import bombs, expected, pictures
from toy import toy_checkpoint

ODD = [
    "jpg 1 x 1", "png 1 x 1", "jpg 20,000 x 5", "png 20,000 x 5", "png 5 x 20,000", "jpg CMYK", "jpg gray",
    "png 16 bit",
    "png alpha", "png palette", "gif animated", "webp animated", "tif pages", "jpg EXIF 5", "jpg EXIF 6 thumbnail",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> B2Inst:
    return B2Inst.from_checkpoint(toy_checkpoint(tmp_path_factory.mktemp("model") / "toy.ckpt"), "cpu")


@pytest.mark.parametrize("kind", ODD)
def test_an_image_of_any_kind_is_predicted_in_its_own_pixels(tmp_path: Path, model: B2Inst, kind: str) -> None:
    path = tmp_path / "a.txt"  # no reader looks at the ending
    path.write_bytes(pictures()[kind])
    found = model.predict(path)
    size = expected(kind).shape[:2]
    assert found.size == size and all(tuple(mask["size"]) == size for mask in found.masks)
    boxes = np.asarray(found.boxes).reshape(-1, 4)
    assert (
        np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= np.tile(size[::-1], 2) + np.float32(1e-3)).all()
    )


@pytest.mark.parametrize("kind", ["png 60,000 x 60,000", "png 20,000 x 20,000", "jpg empty", "jpg zeros"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, model: B2Inst, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(bombs()[kind])
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded as an image"):
        model.predict(tmp_path / "a.png")
