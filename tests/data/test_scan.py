"""Every kind of problem is found, counted and attributed, in the annotations and in the image files."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from b2inst.data.coco import CocoIndex
from b2inst.data.errors import DataError
from b2inst.data.problems import ERRORS, KINDS, Problem, Tally, severity
from b2inst.data.scan import extent, missing_files, scan_annotations, unrecorded_files
from b2inst.data.scan_images import parallel, scan_images
from data.make_coco import write_coco

Content = dict[str, Any]


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set")


@pytest.fixture()
def content(root: Path) -> Content:
    return json.loads((root / "annotations/instances_train.json").read_text())


def _scan(root: Path, content: Content) -> Tally:
    path = root / "annotations/instances_train.json"
    path.write_text(json.dumps(content))
    tally = Tally()
    scan = scan_annotations(path, tally.add)
    folder = root / "train"
    missing = missing_files(folder, [image.file_name for image in scan.images])
    for problems in scan_images(scan, folder, missing, threads=2):
        for problem in problems:
            tally.add(problem)
    return tally


def _put(section: str, index: int, **values: Any) -> Callable[[Content], None]:
    return lambda content: content[section][index].update(values)


def _repeat(content: Content) -> None:
    again = copy.deepcopy(content["annotations"][1])
    content["annotations"].append({**again, "id": 999, "bbox": [0, 0, 1, 1]})


def test_a_sound_set_has_no_problems_and_is_counted(root: Path, content: Content) -> None:
    assert not _scan(root, content).counts
    counts = scan_annotations(root / "annotations/instances_train.json", pytest.fail).counts()
    assert counts == {
        "images": 6, "images without annotations": 1, "annotations": 13, "crowds": 2, "categories": 3,
    }  # fmt: skip


# annotations 0-2 belong to image 1 (64 x 64): ellipse (RLE), ellipse, triangle; 5 is the dot (uncompressed RLE)
EDITS: list[tuple[str, Callable[[Content], None], int | None]] = [
    ("malformed record", _put("annotations", 1, bbox=[1, 2, 3]), 1),
    ("malformed record", _put("annotations", 1, iscrowd=2), 1),
    ("malformed record", _put("annotations", 1, area="x"), 1),
    ("malformed record", _put("annotations", 1, area=True), 1),
    ("malformed record", _put("annotations", 1, area=-1), 1),
    ("malformed record", _put("annotations", 1, area=float("nan")), 1),
    ("malformed record", lambda c: c["annotations"][1].pop("category_id"), 1),
    ("malformed record", _put("images", 3, file_name="../4.png"), 4),
    ("malformed record", lambda c: c["annotations"][1].pop("segmentation"), 1),
    ("malformed record", lambda c: c["annotations"].append(5), None),
    ("duplicate id", _put("annotations", 1, id=10), 1),
    ("unknown image", _put("annotations", 1, image_id=77), 77),
    ("unknown image", _put("annotations", 1, image_id=[1]), None),
    ("unknown category", _put("annotations", 1, category_id=4), 1),
    ("malformed segmentation", _put("annotations", 1, segmentation="abc"), 1),
    ("malformed segmentation", _put("annotations", 1, segmentation=[1, 2, 3, 4, 5, 6]), 1),
    ("polygon with < 3 points", _put("annotations", 1, segmentation=[[1, 2, 3, 4]]), 1),
    ("RLE of another size", _put("annotations", 1, segmentation={"size": [9, 9], "counts": [81]}), 1),
    ("RLE counts do not fit", _put("annotations", 1, segmentation={"size": [64, 64], "counts": [7]}), 1),
    ("RLE counts do not fit", _put("annotations", 1, segmentation={"size": [64, 64], "counts": "zzz"}), 1),
    ("outside of the image", _put("annotations", 1, bbox=[60, 60, 8, 2]), 1),
    ("outside of the image", _put("annotations", 1, segmentation=[[-9, 1, 9, 1, 9, 9]]), 1),
    ("outside of the image", _put("annotations", 1, segmentation=[[0, 0, 640, 0, 640, 640]]), 1),
    ("malformed segmentation", _put("annotations", 1, segmentation=[[0, 0, 641, 0, 641, 641]]), 1),
    ("malformed segmentation", _put("annotations", 1, segmentation=[[0, 0, 1e12, 0, 1e12, 1e12]]), 1),
    ("malformed segmentation", _put("annotations", 1, segmentation=[[0, 0, 64, 64] * 500 + [64, 0]]), 1),
    ("zero area", _put("annotations", 1, bbox=[6, 6, 0, 2]), 1),
    ("zero area", _put("annotations", 1, segmentation=[[5, 5, 5.01, 5, 5.01, 5.01]]), 1),
    ("zero area", _put("annotations", 1, segmentation={"size": [64, 64], "counts": [4096]}), 1),
    ("zero area", _put("annotations", 1, bbox=[6, 6, 0, 0], segmentation={"size": [64, 64], "counts": [4096]}), 1),
    ("duplicate annotation", _repeat, 1),
    ("duplicate image file", _put("images", 3, file_name="000001.png"), 4),
    ("unused category", lambda c: c["categories"].append({"id": 50, "name": "never"}), None),
]


@pytest.mark.parametrize(("kind", "edit", "image_id"), EDITS)
def test_one_mistake_is_one_problem(
    kind: str, edit: Callable[[Content], None], image_id: int | None, root: Path, content: Content
) -> None:
    edit(content)
    tally = _scan(root, content)
    assert tally.counts == {kind: 1}
    assert tally.by_image == ({} if image_id is None else {image_id: Counter({kind: 1})})
    assert "instances_train.json" in tally.examples[kind][0].where


@pytest.mark.parametrize(("kind", "edit", "image_id"), EDITS)
def test_training_reads_a_file_if_and_only_if_it_has_no_error(
    kind: str, edit: Callable[[Content], None], image_id: int | None, root: Path, content: Content
) -> None:
    edit(content)
    tally = _scan(root, content)
    path = root / "annotations/instances_train.json"
    if kind in ERRORS:
        with pytest.raises(DataError) as error:
            CocoIndex.read(path)
        assert str(error.value) == str(tally.examples[kind][0])
    else:
        CocoIndex.read(path)


def test_all_mistakes_are_found_in_one_pass(root: Path, content: Content) -> None:
    content["annotations"][1]["image_id"] = 77
    content["annotations"][2].update(category_id=4, bbox=[1], segmentation=[[1, 2], [1, 2, 3, "4"]])
    content["annotations"][3].update(segmentation=[])
    assert _scan(root, content).counts == {
        "unknown image": 1, "unknown category": 1, "malformed record": 1, "polygon with < 3 points": 1,
        "malformed segmentation": 2,
    }  # fmt: skip


def test_all_unused_categories_are_one_warning(root: Path, content: Content) -> None:
    content["categories"] += [{"id": 100 + n, "name": f"never {n}"} for n in range(142)]
    tally = _scan(root, content)
    assert tally.counts == {"unused category": 1}
    (problem,) = tally.examples["unused category"]
    assert problem.where.endswith("instances_train.json: categories")
    assert problem.what.startswith("142 of 145 have no annotation: 'never 0' (id 100), ") and len(problem.what) < 200


def test_objects_of_a_bad_image_record_are_not_reported_as_well(root: Path, content: Content) -> None:
    content["images"][0]["height"] = 0
    assert _scan(root, content).counts == {"malformed record": 1}


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    tally = Tally()
    scan = scan_annotations(tmp_path / "none.json", tally.add)
    assert tally.counts == {"annotation file": 1} and scan.images == []
    assert "cannot be read" in tally.examples["annotation file"][0].what


# ------------------------------------------------------------------ image files


def test_image_files_are_opened(root: Path, content: Content) -> None:
    files = sorted((root / "train").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:60])
    cv2.imwrite(str(files[1]), np.zeros((5, 7, 3), np.uint8))
    tally = _scan(root, content)
    assert tally.counts == {"damaged image file": 1, "image of another size": 1}
    assert tally.by_image.keys() == {1, 2}
    (problem,) = tally.examples["image of another size"]
    assert problem.where == str(files[1]) and problem.what.startswith("is 5 x 7")


def test_missing_files_are_found_by_listing_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.png", "a/2.png"):
        (tmp_path / name).touch()
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    names = ["1.png", "3.png", "a/2.png", "a/1.png", "b/1.png", "./1.png"]
    assert missing_files(tmp_path, names) == ["3.png", "a/1.png", "b/1.png"]
    assert len(listed) == 4


def test_image_files_without_a_record(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.png", "2.JPG", "notes.txt", "a/1.png"):
        (tmp_path / name).touch()
    assert list(unrecorded_files(tmp_path, {str(tmp_path / "1.png")})) == [tmp_path / "2.JPG", tmp_path / "a/1.png"]


# ------------------------------------------------------------------ counting


def test_a_tally_keeps_few_examples_and_all_counts() -> None:
    tally = Tally(examples=2)
    for number in range(5):
        tally.add(Problem("zero area", f"w{number}", "what", "remedy", image_id=number % 2))
    tally.add(Problem("unknown image", "w", "what", "remedy"))
    assert tally.counts["zero area"] == 5 and [p.where for p in tally.examples["zero area"]] == ["w0", "w1"]
    assert tally.kinds() == ["unknown image", "zero area"] and tally.kinds("warning") == ["zero area"]
    assert tally.total("error") == 1 and tally.total("warning") == 5
    assert tally.by_image == {0: {"zero area": 3}, 1: {"zero area": 2}}
    assert tally.error_lines() == ["unknown image (1), first w: what; remedy"]


def test_every_kind_of_the_annotations_is_tried_here() -> None:
    elsewhere = {"annotation file", "no annotation", "image folder", "categories differ", "image without a record"}
    files = {"missing image file", "damaged image file", "image of another size"}
    assert {kind for kind, *_ in EDITS} | elsewhere | files == set(KINDS)
    assert [severity(kind) for kind in KINDS] == ["error"] * len(ERRORS) + ["warning"] * (len(KINDS) - len(ERRORS))


def test_extent_of_several_polygons() -> None:
    assert extent([[1, 2, 3, 4, 5, 0], [-1, 9, 2, 2, 2, 2]]) == (-1, 0, 5, 9)


def test_parallel_keeps_the_order_and_does_not_run_ahead() -> None:
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = parallel(lambda number: number * number, items(), threads=2)
    assert next(results) == 0 and len(taken) <= 8
    assert list(results) == [number * number for number in range(1, 100)]
