from __future__ import annotations

import copy
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from b2inst.data.coco import CocoDataset, CocoIndex
from b2inst.data.errors import DataError
from b2inst.data.image import read_image
from b2inst.ops.rasterize import pack, rasterize, unpack
from data.make_coco import BACKGROUND, CATEGORIES, COLORS, counts, write_coco


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def train(root) -> Path:
    return root / "annotations" / "instances_train.json"


@pytest.fixture()
def content(train) -> dict:
    return copy.deepcopy(json.loads(train.read_text()))


def _write(tmp_path: Path, content) -> Path:
    path = tmp_path / "instances_bad.json"
    path.write_text(json.dumps(content))
    return path


# ------------------------------------------------------------------ reading


def test_labels_are_contiguous_in_the_order_of_the_ids(train):
    index = CocoIndex.read(train)
    assert index.category_ids == (3, 7, 20)
    assert index.class_names == ("ellipse", "polygon", "dot")
    labels = [found.label for found in index.objects(2)]
    assert labels == [0, 1, 2, 1]
    assert [image.id for image in index.images] == [1, 2, 3, 4, 5, 6]
    assert index.objects(4) == [] and index.instance_counts[index.images.ids == 4] == 0
    assert index.objects(5)[0].crowd and index.instance_counts[index.images.ids == 5] == 0
    assert index.class_counts() == {"ellipse": 6, "polygon": 4, "dot": 1}


def _set(section, key, value):
    def edit(content):
        content[section][1][key] = value

    return edit


def _drop(section, key):
    return lambda content: content[section][1].pop(key)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_drop("annotations", "segmentation"), ["annotations[1]", "'segmentation' is missing"]),
        (_drop("images", "height"), ["images[1] (id 2)", "'height' is missing"]),
        (_drop("images", "id"), ["images[1]: key 'id' is missing"]),
        (_drop("categories", "name"), ["categories[1] (id 7)", "'name' is missing"]),
        (_set("images", "id", 1), ["images[1] (id 1)", "not unique", "images[0]"]),
        (_set("images", "id", "2"), ["images[1]", "'2'", "integers"]),
        (_set("images", "width", 0), ["'width' is 0"]),
        (_set("images", "file_name", "../2.png"), ["file_name", "../2.png", "without '..'"]),
        (_set("images", "file_name", "a\\..\\..\\2.png"), ["file_name", "without '..'"]),
        (_set("images", "file_name", "/etc/2.png"), ["file_name", "/etc/2.png", "relative"]),
        (_set("images", "file_name", "C:/2.png"), ["file_name", "relative"]),
        (_set("categories", "id", 20), ["categories[1] (id 20)", "not unique"]),
        (_set("annotations", "id", 10), ["annotations[1] (id 10)", "not unique"]),
        (_set("annotations", "image_id", 77), ["image_id", "77", "add the image"]),
        (_set("annotations", "category_id", 4), ["category_id", "is 4", "[3, 7, 20]"]),
        (_set("annotations", "iscrowd", 2), ["iscrowd", "0 or 1"]),
        (_set("annotations", "bbox", [1, 2, 3]), ["bbox", "[x, y, width, height]"]),
        (_set("annotations", "bbox", [1, 2, 3, "4"]), ["bbox", "[x, y, width, height]"]),
        (_set("annotations", "segmentation", "abc"), ["segmentation", "is a str"]),
        (_set("annotations", "segmentation", []), ["segmentation", "empty list"]),
        (_set("annotations", "segmentation", [1, 2, 3, 4, 5, 6]), ["segmentation", "list of polygons"]),
        (_set("annotations", "segmentation", [[1, 2, 3, 4]]), ["polygon 0 with 2 point(s)", "at least 3"]),
        (_set("annotations", "segmentation", [[1, 2, 3, 4, 5, 6, 7]]), ["polygon 0", "x, y"]),
        (_set("annotations", "segmentation", [[1, 2, 3, 4, 5, float("nan")]]), ["polygon 0", "finite"]),
        (_set("annotations", "segmentation", {"size": [9, 9], "counts": [81]}), ["size [9, 9]", "[64, 64]"]),
        (_set("annotations", "segmentation", {"size": [64, 64], "counts": [7]}), ["counts [7]", "4096"]),
        (_set("annotations", "segmentation", {"size": [64, 64]}), ["counts", "string"]),
        (lambda c: c["annotations"].insert(1, 5), ["annotations[1]: is a int"]),
        (lambda c: c.pop("categories"), ["'categories' is missing"]),
        (lambda c: c["images"].clear(), ["'images' is empty"]),
    ],
)
def test_bad_records_are_named(tmp_path, content, edit, words):
    edit(content)
    path = _write(tmp_path, content)
    with pytest.raises(DataError) as error:
        CocoIndex.read(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_files_that_are_no_annotations(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        CocoIndex.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        CocoIndex.read(tmp_path / "text.json")
    with pytest.raises(DataError, match="result file"):
        CocoIndex.read(_write(tmp_path, []))


def test_absent_iscrowd_means_no_crowd(tmp_path, content):
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    assert not any(found.crowd for found in CocoIndex.read(_write(tmp_path, content)).objects(5))


# ------------------------------------------------------------------ masks


def test_masks_equal_those_of_pycocotools(train):
    index, reference = CocoIndex.read(train), COCO(str(train))
    kinds = set()
    for image in index.images:
        for found in index.objects(image.id):
            theirs = reference.annToMask(reference.anns[found.id]).astype(bool)
            segmentation = found.segmentation
            kinds.add("RLE" if isinstance(segmentation, dict) else "polygon")
            np.testing.assert_array_equal(rasterize(segmentation, *image.size), theirs)
    assert kinds == {"RLE", "polygon"}


def test_rle_of_both_kinds_is_exact():
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    mask[0, 0] = True  # the first run, of zeros, is empty
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    compressed = {"size": [7, 9], "counts": compressed["counts"].decode()}
    for rle in (compressed, {"size": [7, 9], "counts": counts(mask)}):
        np.testing.assert_array_equal(rasterize(rle, 7, 9), mask)


def test_pack_separates_overlaps_and_unpack_restores_them():
    squares = [[[x, 2, x + 6, 2, x + 6, 8, x, 8]] for x in (0, 4, 8, 30)]  # the last one is outside
    maps = pack(squares, 10, 16)
    assert maps.shape == (2, 10, 16) and maps.dtype == np.uint16
    masks, boxes, kept = unpack(maps)
    assert kept.tolist() == [0, 1, 2]
    assert boxes.tolist() == [[x, 2, x + 6, 8] for x in (0, 4, 8)]
    for mask, square in zip(masks, squares, strict=False):
        np.testing.assert_array_equal(mask, rasterize(square, 10, 16))


def test_no_objects_give_no_maps_and_no_masks():
    assert pack([], 4, 5).shape == (0, 4, 5)
    masks, boxes, kept = unpack(np.zeros((0, 4, 5), np.uint16))
    assert masks.shape == (0, 4, 5) and boxes.shape == (0, 4) and kept.shape == (0,)


# ------------------------------------------------------------------ images


def _save(path: Path, array: np.ndarray, **kwargs) -> Path:
    Image.fromarray(array).save(path, **kwargs)
    return path


def test_every_kind_of_file_becomes_rgb_with_8_bits(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :3] = COLORS[3]
    np.testing.assert_array_equal(read_image(_save(tmp_path / "a.png", rgb), (4, 6)), rgb)
    rgba = np.dstack([rgb, np.full((4, 6), 128, np.uint8)])
    np.testing.assert_array_equal(read_image(_save(tmp_path / "b.png", rgba), (4, 6)), rgb)
    Image.fromarray(rgb).quantize(4).save(tmp_path / "c.png")
    np.testing.assert_allclose(read_image(tmp_path / "c.png", (4, 6)), rgb, atol=2)
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "d.png", gray), (4, 6)), np.dstack([gray] * 3))
    wide = gray.astype(np.uint16) * 256 + 7
    cv2.imwrite(str(tmp_path / "e.png"), wide)
    np.testing.assert_array_equal(read_image(tmp_path / "e.png", (4, 6)), np.dstack([gray] * 3))


def test_exif_orientation_follows_the_annotations(tmp_path):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8] = 255  # white on top as stored; EXIF 6 turns it by 90 degrees: white on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "a.jpg", stored, exif=exif, quality=95)
    turned = read_image(path, (32, 16))
    assert turned[:, 12].min() > 200 and turned[:, 3].max() < 50
    as_stored = read_image(path, (16, 32))
    assert as_stored[3].min() > 200 and as_stored[12].max() < 50


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: does not exist"):
        read_image(tmp_path / "none.jpg", (4, 6))
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg: cannot be decoded"):
        read_image(tmp_path / "empty.jpg", (4, 6))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    (tmp_path / "half.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(DataError, match=r"half\.jpg: cannot be decoded"):
        read_image(tmp_path / "half.jpg", (64, 64))
    path = _save(tmp_path / "size.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"size\.png: is 4 x 6 \(height x width\), its annotations say 6 x 5"):
        read_image(path, (6, 5))


# ------------------------------------------------------------------ the data set


def test_samples_without_augmentation(root, train):
    dataset = CocoDataset(CocoIndex.read(train), root / "train")
    sample = dataset[1]  # objects at the border, a one-pixel object, an object in two parts
    assert sample.image.shape == (3, 64, 80) and sample.image.dtype == torch.uint8
    assert sample.masks.shape == (4, 64, 80) and sample.masks.dtype == torch.bool
    assert sample.labels.tolist() == [0, 1, 2, 1] and sample.labels.dtype == torch.int64
    assert sample.boxes.dtype == torch.float32
    assert sample.boxes[1].tolist() == [68, 44, 80, 64]
    x, y = (int(v) for v in sample.boxes[2, :2])
    assert sample.boxes[2].tolist() == [x, y, x + 1, y + 1] and int(sample.masks[2].sum()) == 1
    assert sample.image_id == 2 and sample.original_size == (64, 80) and sample.file_name.endswith("000002.png")
    for category, mask in zip([3, 7, 20, 7], sample.masks, strict=True):  # RGB, and each mask on its object
        assert (sample.image[:, mask] == torch.tensor(COLORS[category])[:, None]).all()
    outside = ~sample.masks.any(dim=0)
    assert (sample.image[:, outside] == torch.tensor(BACKGROUND)[:, None]).all()


def test_crowds_are_no_instances(root, train):
    dataset = CocoDataset(CocoIndex.read(train), root / "train")
    sample = dataset[2]
    assert len(sample.masks) == 1 and not (sample.masks[0] & sample.crowd).any()
    side = 64 // 3
    assert int(sample.crowd.sum()) == side * side and sample.crowd[16 : 16 + side, 48 : 48 + side].all()
    only = dataset[4]
    assert only.masks.shape == (0, 64, 80) and only.boxes.shape == (0, 4) and only.labels.shape == (0,)
    assert only.crowd.any()
    assert not dataset[3].crowd.any() and len(dataset[3].labels) == 0


def test_skip_empty_and_limit(root, train):
    index = CocoIndex.read(train)
    ids = [image.id for image in CocoDataset(index, root / "train", skip_empty=True).images]
    assert ids == [1, 2, 3, 6]
    assert [i.id for i in CocoDataset(index, root / "train", skip_empty=True, limit=2).images] == [1, 2]
    with pytest.raises(DataError, match="no image is left of 6, limit=0; .*data.train.annotations=FILE"):
        CocoDataset(index, root / "train", limit=0)
    with pytest.raises(DataError, match="is no folder"):
        CocoDataset(index, root / "trian")


def test_objects_that_vanish_are_dropped_with_their_labels(root, train):
    def right_half(image, maps, seed):
        return image[:, 40:], maps[:, :, 40:]

    sample = CocoDataset(CocoIndex.read(train), root / "train", right_half)[1]
    assert sample.image.shape == (3, 64, 40) and sample.original_size == (64, 80)
    assert (sample.labels == 0).sum() == 0  # the ellipse at the left border
    assert sample.masks.flatten(1).any(dim=1).all()
    assert sample.boxes[0].tolist() == [28, 44, 40, 64]


def test_every_sample_gets_its_own_seed_and_a_run_can_be_repeated(root, train):
    seeds = []

    def spy(image, maps, seed):
        seeds.append(seed)
        return image, maps

    dataset = CocoDataset(CocoIndex.read(train), root / "train", spy)
    for _ in range(2):
        torch.manual_seed(3)
        for position in (0, 1, 0):
            dataset[position]
    assert seeds[:3] == seeds[3:] and len(set(seeds[:3])) == 3
    torch.manual_seed(3)
    dataset[1]
    assert seeds[-1] != seeds[0]  # processes with equal generators, as under DDP, still differ


def test_category_names_are_those_of_the_file(train):
    assert set(CocoIndex.read(train).class_names) == set(CATEGORIES.values())


@pytest.mark.skipif("B2INST_TEST_DATA" not in os.environ, reason="B2INST_TEST_DATA names no folder with real sets")
@pytest.mark.parametrize(
    ("annotations", "folder"),
    [
        ("coco/annotations/instances_val2017.json", "coco/val2017"),
        ("dsb2018/annotations/instances_val.json", "dsb2018/val"),
    ],
)
def test_real_sets_equal_pycocotools(annotations, folder):
    base = Path(os.environ["B2INST_TEST_DATA"])
    if not (base / annotations).is_file():
        pytest.skip(f"{annotations} is not in B2INST_TEST_DATA")
    index, reference = CocoIndex.read(base / annotations), COCO(str(base / annotations))
    dataset = CocoDataset(index, base / folder, limit=12)
    for position, image in enumerate(dataset.images):
        sample = dataset[position]
        found = [a for a in reference.imgToAnns[image.id] if not a["iscrowd"]]
        masks = [reference.annToMask(a).astype(bool) for a in found]
        masks = [mask for mask in masks if mask.any()]
        assert len(masks) == len(sample.masks)
        for ours, theirs in zip(sample.masks, masks, strict=True):
            np.testing.assert_array_equal(ours.numpy(), theirs)
