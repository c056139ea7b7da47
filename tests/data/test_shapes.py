"""The built-in data set: valid COCO, the same bytes each time, masks on the objects, and safe with folders."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from b2inst.data import shapes, shapes_outlines
from b2inst.data.errors import DataError

SMALL = {"seed": 3, "train_images": 24, "val_images": 9, "size": 128}
TINY = {"seed": 1, "train_images": 2, "val_images": 1, "size": 64}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    shapes.generate(folder, **SMALL)
    return folder


def load(root: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(root / "annotations" / f"instances_{split}.json"))


def scenes(root: Path) -> Iterator[tuple[COCO, dict[str, Any], list[dict[str, Any]], np.ndarray]]:
    """Each image of both splits with its annotations and (I, H, W) masks as pycocotools reads them."""
    for split in shapes.SPLITS:
        coco = load(root, split)
        for image in coco.loadImgs(sorted(coco.imgs)):
            annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
            masks = [coco.annToMask(annotation) for annotation in annotations]
            stacked = np.array(masks, np.uint8).reshape(-1, image["height"], image["width"])
            yield coco, {**image, "split": split}, annotations, stacked


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_sizes_and_categories(root: Path) -> None:
    for split, count in (("train", 24), ("val", 9)):
        coco = load(root, split)
        assert len(coco.imgs) == count == len(list((root / split).iterdir()))
        for image in coco.imgs.values():
            picture = cv2.imread(str(root / split / image["file_name"]))
            assert picture.shape == (image["height"], image["width"], 3)
            assert 106 <= min(picture.shape[:2]) <= max(picture.shape[:2]) <= 128
        assert sorted(coco.cats) == [2, 3, 5]  # with gaps, as COCO's own
        assert {category["supercategory"] for category in coco.cats.values()} == {"round", "angular"}
    assert not set(load(root, "train").imgs) & set(load(root, "val").imgs)
    assert {a["category_id"] for _, _, things, _ in scenes(root) for a in things} == {2, 3, 5}


def test_boxes_are_tight_areas_exact_and_masks_disjoint(root: Path) -> None:
    seen: list[int] = []
    for _, _, things, masks in scenes(root):
        assert masks.sum(axis=0).max(initial=0) <= 1  # what is hidden belongs to the one in front
        for annotation, mask in zip(things, masks, strict=True):
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            assert annotation["bbox"] == box
            assert annotation["area"] == mask.sum() >= 24
            seen.append(annotation["id"])
    assert len(seen) == len(set(seen)) > 80
    assert min(seen) > 0  # COCOeval takes an id of 0 for "not matched"


def test_three_kinds_of_segmentation(root: Path) -> None:
    polygons = compressed = crowds = 0
    for _, _, things, masks in scenes(root):
        for annotation, mask in zip(things, masks, strict=True):
            segmentation = annotation["segmentation"]
            contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            if annotation["iscrowd"]:
                crowds += 1
                assert isinstance(segmentation["counts"], list) and sum(segmentation["counts"]) == mask.size
            elif isinstance(segmentation, list):
                polygons += 1
                assert len(segmentation) == len(contours) == 1
            else:
                compressed += 1
                assert isinstance(segmentation["counts"], str) and len(contours) > 1
    assert crowds == 4  # images 3 and 13, 23 of train and 3 of val
    assert polygons > 50 and compressed > 10


def test_empty_images_and_numbers_of_objects(root: Path) -> None:
    counts = {(image["split"], image["file_name"]): len(a) for _, image, a, _ in scenes(root)}
    empty = [name for name, count in counts.items() if count == 0]
    assert empty == [("train", "000008.jpg"), ("val", "000008.jpg")]
    assert all(2 <= count <= 5 for name, count in counts.items() if name not in empty)


def test_same_material_neighbors_touch_in_most_images(root: Path) -> None:
    found = images = 0
    for _, _, things, masks in scenes(root):
        grown = [cv2.dilate(mask, np.ones((3, 3), np.uint8)) for mask in masks]
        images += 1
        found += any(
            (grown[i] & masks[j]).sum() >= 5 and things[i]["material"] == things[j]["material"]
            for i in range(len(masks))
            for j in range(i)
            if not things[i]["iscrowd"] and not things[j]["iscrowd"]
        )
    assert found >= 0.7 * images  # two of the images are empty


def test_masks_lie_on_the_objects(root: Path) -> None:
    """Steps of brightness are largest exactly where the owner of the pixels changes, in both directions."""
    steps = {(axis, shift): [] for axis in (0, 1) for shift in (-1, 0, 1)}
    for _, image, _, masks in scenes(root):
        picture = cv2.imread(str(root / image["split"] / image["file_name"])).astype(float)
        owner = np.tensordot(np.arange(1, len(masks) + 1), masks, axes=(0, 0)) if len(masks) else masks.sum(axis=0)
        for axis in (0, 1):
            step = np.abs(np.diff(picture, axis=axis)).sum(axis=2)
            edge = np.diff(owner, axis=axis) != 0
            for shift in (-1, 0, 1):
                steps[axis, shift].append(step[np.roll(edge, shift, axis=axis)])
    mean = {key: np.concatenate(values).mean() for key, values in steps.items()}
    for axis in (0, 1):
        assert mean[axis, 0] > 1.3 * max(mean[axis, -1], mean[axis, 1])
        assert mean[axis, -1] == pytest.approx(mean[axis, 1], rel=0.1)


def test_coverage_has_no_shift() -> None:
    square = np.array([[10.0, 5.0], [20.0, 5.0], [20.0, 9.0], [10.0, 9.0]])
    assert shapes_outlines.coverage([[square + 100]], 40, 50) is None
    window, alpha, _ = shapes_outlines.coverage([[square]], 40, 50)
    solid, expected = np.zeros((40, 50), bool), np.zeros((40, 50), bool)
    solid[window] = alpha >= 0.5
    expected[5:9, 10:20] = True
    assert np.array_equal(solid, expected)
    errors = []
    for center in np.random.default_rng(0).uniform(15, 25, (50, 2)):
        (ys, xs), alpha, _ = shapes_outlines.coverage([[shapes_outlines.circle(9, 7) + center]], 40, 50)
        y, x = (np.average(grid + 0.5, weights=alpha) for grid in np.mgrid[ys, xs])
        errors.append([x, y] - center)
    assert np.abs(np.mean(errors, axis=0)).max() < 0.02  # pixels; half of a fine pixel would be 0.125


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["##", "##"], [[4, 7, 4, 9, 6, 9, 6, 7]]),
        (["#"], [[4, 7, 4, 8, 5, 8, 5, 7]]),
        (["#.", "##"], [[4, 7, 4, 9, 6, 9, 6, 8, 5, 8, 5, 7]]),
        (["###", "#.#", "###"], None),
        (["#.#"], None),
    ],
    ids=["square", "pixel", "concave", "hole", "two pieces"],
)
def test_polygon_follows_the_edges_of_pixels(rows: list[str], expected: list[list[int]] | None) -> None:
    mask = np.array([[c == "#" for c in row] for row in rows], np.uint8)
    polygon = shapes._polygon(mask, 4, 7)
    assert (polygon and [polygon]) == expected


def test_same_seed_same_bytes(root: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "again", **SMALL)
    assert digests(tmp_path / "again") == digests(root)
    shapes.generate(tmp_path / "other", **{**SMALL, "seed": 4})
    theirs, ours = digests(tmp_path / "other"), digests(root)
    assert all(theirs[name] != ours[name] for name in ours)


def test_an_image_does_not_depend_on_the_number_of_images(root: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "few", **{**SMALL, "train_images": 5, "val_images": 1})
    few, many = digests(tmp_path / "few"), digests(root)
    assert all(many[name] == digest for name, digest in few.items() if name.endswith(".jpg"))
    some, all_of = (load(folder, "train").dataset["annotations"] for folder in (tmp_path / "few", root))
    assert some == all_of[: len(some)]


def test_ensure_keeps_what_matches_and_replaces_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "shapes"
    shapes.ensure(folder, **TINY)
    marked = folder / "train" / "000001.jpg"
    marked.write_bytes(b"kept")
    shapes.ensure(folder, **TINY)
    assert marked.read_bytes() == b"kept"  # nothing was made anew
    shapes.ensure(folder, **{**TINY, "train_images": 1})
    assert marked.read_bytes() != b"kept"
    assert not (folder / "train" / "000002.jpg").exists()
    assert json.loads((folder / "shapes.json").read_text())["params"] == {**TINY, "train_images": 1}
    assert [path.name for path in folder.parent.iterdir()] == ["shapes"]  # no temporary folders are left


def test_ensure_replaces_an_older_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes.ensure(tmp_path / "shapes", **TINY)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    shapes.ensure(tmp_path / "shapes", **TINY)
    assert json.loads((tmp_path / "shapes" / "shapes.json").read_text())["version"] == shapes.VERSION


def test_generate_repairs_its_own_set(tmp_path: Path) -> None:
    shapes.generate(tmp_path / "shapes", **TINY)
    before = digests(tmp_path / "shapes")
    (tmp_path / "shapes" / "val" / "000001.jpg").unlink()
    shapes.generate(tmp_path / "shapes", **TINY)
    assert digests(tmp_path / "shapes") == before


def test_foreign_files_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"no shapes\.json \(holiday\.jpg\).*another root"):
        shapes.ensure(tmp_path / "photos", **TINY)
    shapes.ensure(tmp_path / "shapes", **TINY)
    (tmp_path / "shapes" / "train" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"besides a shapes data set \(train/notes\.txt\)"):
        shapes.ensure(tmp_path / "shapes", **{**TINY, "seed": 2})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        shapes.generate(tmp_path / "file", **TINY)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"mine"
    assert (tmp_path / "shapes" / "train" / "notes.txt").exists() and (tmp_path / "shapes" / "shapes.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos", "shapes"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    shapes.ensure(str(tmp_path), **TINY)
    assert (tmp_path / "shapes.json").exists()


def test_the_slower_of_two_processes_drops_its_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write, raced = tmp_path / "shapes", shapes._write_split, []

    def write_and_be_overtaken(built: Path, params: shapes.Params, split: str) -> None:
        write(built, params, split)
        if not raced:
            raced.append(split)
            shapes.ensure(folder, **TINY)  # the other process starts later and finishes first
            (folder / "val" / "000001.jpg").write_bytes(b"of the faster one")

    monkeypatch.setattr(shapes, "_write_split", write_and_be_overtaken)
    shapes.ensure(folder, **TINY)
    assert (folder / "val" / "000001.jpg").read_bytes() == b"of the faster one"
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_another_process_exchanges_the_folder_during_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, walk, raced = tmp_path / "shapes", os.walk, []
    shapes.ensure(folder, **{**TINY, "train_images": 3})

    def walk_and_be_overtaken(root: Path) -> list[tuple[str, list[str], list[str]]]:
        listed = list(walk(root))
        if not raced:
            raced.append(root)
            shapes.ensure(folder, **TINY)  # of whose images the third of the list is none
        return listed

    monkeypatch.setattr(os, "walk", walk_and_be_overtaken)
    shapes.ensure(folder, **TINY)
    assert raced and not (folder / "train" / "000003.jpg").exists()


def test_processes_at_the_same_time(tmp_path: Path) -> None:
    shapes.ensure(tmp_path / "shapes", **{**TINY, "seed": 9})  # to be replaced by all of them
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=shapes.ensure, args=(tmp_path / "shapes",), kwargs=TINY) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    shapes.generate(tmp_path / "alone", **TINY)
    assert digests(tmp_path / "shapes") == digests(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "shapes"]


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("train_images", 0), ("val_images", 0), ("size", 63)])
def test_parameters_out_of_range(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} .*at least"):
        shapes.ensure(tmp_path / "shapes", **{**TINY, name: value})


def test_command_line(tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    command = [sys.executable, "-m", "b2inst.data.shapes", "--root", str(tmp_path / "shapes"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 train and 1 val images, seed 1" in done.stdout and done.stderr == ""
    shapes.generate(tmp_path / "called", **TINY)
    assert digests(tmp_path / "shapes") == digests(tmp_path / "called")


def test_command_line_explains_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(SystemExit) as stopped:
        shapes.main(["--root", str(tmp_path)])
    assert stopped.value.code == 2
    assert "holiday.jpg" in capsys.readouterr().err
