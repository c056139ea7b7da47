"""The index in arrays against the records of the file, one by one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from b2inst.data import index as index_module
from b2inst.data.errors import DataError
from b2inst.data.index import CocoIndex, load_sections
from b2inst.ops.rasterize import rasterize

SIZE = (20, 30)
TIE = 10.7  # float32 would make it less, and the rasterizer's sub-pixel another one


def _content() -> dict:
    polygon = [[1.5, 2, 9, 2.25, TIE, 8], [12, 12, 18, 12, 18, 18.0, 12, 18]]
    rle = {"size": list(SIZE), "counts": [45, 10, 545]}
    shapes = [(7, polygon, 0), (5, rle, 1), (7, polygon[:1], 0), (9, rle, 0), (5, polygon[1:], 0), (7, rle, 0)]
    return {
        "images": [{"id": i, "file_name": f"é{i}.jpg", "height": 20, "width": 30} for i in (9, 5, 8, 7)],
        "categories": [{"id": i, "name": f"class {i}"} for i in (4, 2)],
        "annotations": [
            {"id": 100 - n, "image_id": image, "category_id": 2 + 2 * (n % 2), "iscrowd": crowd, "bbox": [1, 2, 3, 4],
             "segmentation": shape} for n, (image, shape, crowd) in enumerate(shapes)
        ],
    }  # fmt: skip


def _write(tmp_path: Path, content: dict) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_objects_are_those_of_the_file_in_its_order(tmp_path):
    content = _content()
    index = CocoIndex.read(_write(tmp_path, content))
    assert [(image.id, image.file_name, image.size) for image in index.images] == [
        (i, f"é{i}.jpg", SIZE) for i in (9, 5, 8, 7)
    ]
    for image in index.images:
        records = [a for a in content["annotations"] if a["image_id"] == image.id]
        found = index.objects(image.id)
        assert [(o.id, o.label, o.crowd) for o in found] == [
            (a["id"], (2, 4).index(a["category_id"]), bool(a["iscrowd"])) for a in records
        ]
        for ours, record in zip(found, records, strict=True):
            given = record["segmentation"]
            np.testing.assert_array_equal(rasterize(ours.segmentation, *SIZE), rasterize(given, *SIZE))
            if isinstance(given, list):
                assert [p.tolist() for p in ours.segmentation] == given
    assert index.instance_counts.tolist() == [1, 1, 0, 3]
    assert [i.id for i in index.images[1:3]] == [5, 8] and index.images[-1].id == 7


@pytest.mark.parametrize(
    "value",
    [
        {"id": True}, {"id": 99.0}, {"id": 99}, {"image_id": "7"}, {"image_id": [7]}, {"category_id": 3},
        {"iscrowd": "0"}, {"iscrowd": []}, {"area": "x"}, {"area": None}, {"area": True}, {"area": -0.5}, {"area": [1]},
        {"area": float("nan")}, {"area": float("inf")}, {"area": 10**400}, {"bbox": None}, {"bbox": {}},
        {"bbox": [1, 2, 3, float("inf")]}, {"bbox": [1, 2, 3, 4, 5]},
        {"segmentation": None}, {"segmentation": [[]]}, {"segmentation": [{}]}, {"segmentation": [None]},
        {"segmentation": ["123456"]}, {"segmentation": [[1, 2, 3, 4, 5, [6]]]}, {"segmentation": {}},
        {"segmentation": {"size": list(SIZE), "counts": "zz"}}, {"segmentation": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]]},
    ],
)  # fmt: skip
def test_checking_at_once_finds_what_checking_one_by_one_names(tmp_path, value):
    content = _content()
    content["annotations"][2].update(value)
    with pytest.raises(DataError, match=rf"annotations\[2\].*{next(iter(value))}"):
        CocoIndex.read(_write(tmp_path, content))


def test_what_is_unusual_but_sound_is_read(tmp_path):
    content = _content()
    content["annotations"][2].update(image_id=7.0, iscrowd=True, area=0, segmentation=[[True, 2, 3, 4, 5, 6]])
    content["annotations"][3].update(area=1e300)
    assert CocoIndex.read(_write(tmp_path, content)).objects(7)[1].crowd


def test_what_only_the_standard_parser_reads_is_read_the_same(tmp_path):
    path = _write(tmp_path, {**_content(), "info": {"score": float("nan")}})
    assert "NaN" in path.read_text()
    sections = load_sections(path)
    assert {key: sections[key] for key in index_module.SECTIONS} == load_sections(_write(tmp_path, _content()))
    path.write_text("{")
    with pytest.raises(DataError, match="is no JSON file"):
        load_sections(path)


def test_no_annotations_are_an_index_without_objects(tmp_path):
    index = CocoIndex.read(_write(tmp_path, {**_content(), "annotations": []}))
    assert index.objects(7) == [] and index.instance_counts.tolist() == [0] * 4
    assert index.class_counts() == {"class 2": 0, "class 4": 0}
