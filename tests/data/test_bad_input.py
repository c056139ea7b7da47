"""Each thing that the fuzz tests, or a look at the readers, found to crash, to fill the memory or to end in another
error than a DataError."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from b2inst.data.errors import DataError
from b2inst.data.image import _is_cut_off, read_image
from b2inst.data.index import CocoIndex
from b2inst.data.limits import MAX_OBJECTS
from b2inst.data.pixels import to_rgb
from b2inst.data.rle import covers
from b2inst.data.scan import missing_files, scan_annotations
from b2inst.ops.rasterize import outline
from data import fuzzing
from data.fuzzing import BEGIN, END, Sandbox, Tally, write_row
from data.make_pictures import bombs, pictures
from data.test_fuzz_annotations import code, nested, wrapping

TRIANGLE = [[1, 1, 4, 1, 4, 4]]


def _content(**values: Any) -> dict[str, Any]:
    """A sound file but for `section_key=value`."""
    records = {
        "images": {"id": 1, "file_name": "1.png", "height": 6, "width": 8},
        "categories": {"id": 1, "name": "cell"},
        "annotations": {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": TRIANGLE},
    }
    for place, value in values.items():
        section, key = place.split("_", 1)
        records[section][key] = value
    return {section: [record] for section, record in records.items()}


def _rle(counts: Any, size: list[Any] | None = None) -> dict[str, Any]:
    return {"size": size or [6, 8], "counts": counts}


BAD = [
    ("a polygon that crashes pycocotools", {"annotations_segmentation": [[0, 0, 4e8, 0, 4e8, 4e8]]}, "reaches to 4e"),
    ("a polygon that takes gigabytes", {"annotations_segmentation": [[0, 0, 1e7, 0, 1e7, 1e7]]}, "reaches to 1e"),
    ("a polygon far below 0", {"annotations_segmentation": [[0, 0, -81, 0, 4, 4]]}, "reaches to 81"),
    ("an endless outline", {"annotations_segmentation": [[0, 0, 8, 6] * 2000]}, "outlines of 32,000 pixels"),
    ("endless outlines together", {"annotations_segmentation": [[0, 0, 8, 6] * 300] * 4}, "outlines of 19,200 pixels"),
    ("a number that no float holds", {"annotations_segmentation": [[10**400, 1, 4, 1, 4, 4]]}, "polygon 0"),
    ("two of them that cancel out", {"annotations_bbox": [10**400, -(10**400), 3, 3]}, "bbox"),
    ("runs that wrap around", {"annotations_segmentation": _rle(wrapping(48))}, "counts"),
    ("runs beyond 32 bits", {"annotations_segmentation": _rle(code([48, 0, 0, 2**32]))}, "counts"),
    ("counts with half a surrogate pair", {"annotations_segmentation": _rle("\ud800")}, "counts"),
    ("a size of floats", {"annotations_segmentation": _rle([48], [6.0, 8])}, r"size \[6.0, 8\]"),
    ("an id of more than 64 bits", {"annotations_id": 2**63}, "64 bits"),
    ("an image id of more than 64 bits", {"images_id": 2**63}, "64 bits"),
    ("a category id of more than 64 bits", {"categories_id": -(2**64)}, "64 bits"),
    ("a height of more than 64 bits", {"images_height": 10**30}, "height"),
    ("more pixels than are decoded", {"images_height": 2**20, "images_width": 2**20}, "tiles of at most 178,956,970"),
    ("a file name with half a surrogate pair", {"images_file_name": "\ud800.png"}, "file_name"),
    ("a file name with NUL", {"images_file_name": "1.png\0"}, "file_name"),
    ("a file name that makes all others long", {"images_file_name": "a/" * 600}, "at most 1,024 bytes"),
    ("a category whose name is none", {"categories_name": {"a": 1}}, "has to be text"),
    ("a value too deep to be shown", {"annotations_id": nested(800)}, r"id.*is \[\["),
    ("a text too long to be shown", {"images_file_name": ["x" * 10**6]}, "file_name"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_values_are_refused_and_collected(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(_content(**values)))
    with pytest.raises(DataError, match=words) as error:
        CocoIndex.read(path)
    assert str(error.value).startswith(f"{path}: {next(iter(values)).split('_')[0]}[0]") and len(str(error.value)) < 900
    problems: list[Any] = []
    scan_annotations(path, problems.append)
    assert str(error.value) in map(str, problems)


def test_what_is_large_but_fits_is_used(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for segmentation in ([[-80, 0, 80, 0, 4, 80]], [[0, 0, 8, 6] * 499 + [8, 0]], _rle([48])):
        path.write_text(json.dumps(_content(annotations_segmentation=segmentation, annotations_id=-(2**63) + 1)))
        assert len(CocoIndex.read(path).objects(1)) == 1


def test_polygons_are_held_against_their_own_image(tmp_path: Path) -> None:
    content = _content(images_height=600)
    content["images"].append({"id": 2, "file_name": "2.png", "height": 1, "width": 1})
    content["annotations"][0]["segmentation"] = [[0, 0, 600, 0, 600, 600]]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert len(CocoIndex.read(path).objects(1)) == 1
    content["annotations"][0]["image_id"] = 2
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="reaches to 600, its image to 1;"):
        CocoIndex.read(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images":' * 100_000, '{"a": NaN, "b": ' + "[" * 100_000])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json: is (nested too deeply|no JSON)"):
        CocoIndex.read(tmp_path / "a.json")


def test_more_objects_than_an_index_map_counts_are_refused(tmp_path: Path) -> None:
    content = _content()
    content["annotations"] = [{**content["annotations"][0], "id": id} for id in range(MAX_OBJECTS + 1)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"images \(id 1\): has 65,536 annotations"):
        CocoIndex.read(path)
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    assert CocoIndex.read(path).instance_counts.tolist() == [MAX_OBJECTS]


def test_a_box_beyond_all_floats_is_a_warning(tmp_path: Path) -> None:
    path, problems = tmp_path / "a.json", []
    content = _content(annotations_bbox=[10**308, -(10**308), 10**308, -(10**308)])
    path.write_text(json.dumps({**content, "info": float("nan")}))  # for json, which keeps them integers
    scan_annotations(path, problems.append)
    assert [problem.kind for problem in problems] == ["zero area", "outside of the image"]


def test_a_name_that_is_too_long_for_a_file_is_missing(tmp_path: Path) -> None:
    assert missing_files(tmp_path, ["a" * 300]) == ["a" * 300]
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / ("a" * 300))


def test_sums_that_wrap_around_do_not_cover_the_image() -> None:
    assert not covers(wrapping(48), 48) and not covers("\ud800", 48) and covers(code([40, 8]), 48)


def test_the_outline_is_closed() -> None:
    assert outline([0, 0, 10, 0, 10, 5]) == 10 + 5 + 10


# ------------------------------------------------------------------ image files


@pytest.mark.parametrize("kind", ["jpg thumbnail", "jpg EXIF 6 thumbnail", "jpg comment", "jpg progressive", "png"])
def test_a_part_of_a_file_is_cut_off_whatever_its_metadata_hold(kind: str) -> None:
    content = np.frombuffer(pictures()[kind], np.uint8)
    assert not _is_cut_off(content)
    assert all(_is_cut_off(content[:length]) for length in range(4, len(content) - 1))


def test_a_thumbnail_does_not_hide_that_its_picture_is_cut_off(tmp_path: Path) -> None:
    content = pictures()["jpg thumbnail"]
    assert content.count(b"\xff\xd9") == 2
    (tmp_path / "a.jpg").write_bytes(content[:-40])
    with pytest.raises(DataError, match=r"a\.jpg: cannot be decoded .*cut off"):
        read_image(tmp_path / "a.jpg")


def test_a_chunk_that_claims_gigabytes_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(pictures()["png"])
    content[33] = 0x51  # of the length of its data
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("is decoded"))
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        read_image(tmp_path / "a.png")


def test_a_bomb_that_is_whole_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(bombs()["png 30,000 x 30,000 that is whole"])
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("is decoded"))
    with pytest.raises(DataError, match="claims more than 178,956,970 pixels"):
        read_image(tmp_path / "a.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is no file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a\0.png")


def test_a_pillow_image_of_a_broken_file_is_named() -> None:
    broken = Image.open(io.BytesIO(pictures()["jpg"][:-200]))
    with pytest.raises(DataError, match=r"image 7: Pillow cannot decode it"):
        to_rgb(broken, "image 7")


def test_links_out_of_the_image_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(pictures()["png"])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert read_image(tmp_path / "images" / "a.png").size


# ------------------------------------------------------------------ the fuzz tests themselves


def test_the_sandbox_sees_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzing, "MAX_MEGABYTES", 100.0)
    words = {"dies": "exit code 7", "hangs": "more than 3.0 seconds", "grows": r"MB", "raises": "so deep"}
    with Sandbox("data.fuzz_faults", "commit", tmp_path, seconds=3.0) as sandbox:
        for what, detail in words.items():
            outcome = sandbox.run(what)
            assert outcome.verdict == "fault" and detail in outcome.detail, outcome
        assert sandbox.run("nothing").verdict == sandbox.run("nothing").verdict == "used"
    assert (len(sandbox.tally.seen), sandbox.tally.used, sandbox.tally.faults) == (5, 1, 4)


def test_a_row_replaces_that_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    write_row(path, "images", Tally({1, 2}, 1, 1))
    write_row(path, "annotations", Tally({1}, 1))
    write_row(path, "images", Tally({1, 2, 3}, 1, 2, 0, 41.6, 0.31))
    lines = path.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and len(lines) == 8
    assert [line for line in lines if line.startswith("| ima")] == ["| images | 3 | 1 | 2 | 0 | 42 | 0.3 |"]
