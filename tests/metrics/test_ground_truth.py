"""The annotations of an evaluation pass the checks of training, and lack no more than boxes or masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from b2inst.data import index as index_module
from b2inst.data.errors import DataError
from b2inst.data.index import CocoIndex
from b2inst.data.limits import MAX_OBJECTS
from b2inst.data.problems import ERRORS
from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.ground_truth import load_ground_truth
from b2inst.metrics.results import evaluate_files, save_results
from data.make_coco import write_coco
from data.test_scan import EDITS
from metrics import generated
from toy import run

Content = dict[str, Any]


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set") / "annotations/instances_train.json"


def _edit(path: Path, edit: Callable[[Content], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def _without(key: str) -> Callable[[Content], None]:
    return lambda content: [annotation.pop(key) for annotation in content["annotations"]]


def _as(key: str, value: Any) -> Callable[[Content], None]:
    return lambda content: [annotation.update({key: value}) for annotation in content["annotations"]]


@pytest.mark.parametrize(("kind", "edit", "image_id"), EDITS)
def test_what_training_refuses_is_refused_in_the_same_words(
    kind: str, edit: Callable[[Content], None], image_id: int | None, path: Path
) -> None:
    _edit(path, edit)
    if kind not in ERRORS:
        CocoEvaluator(path)
        return
    with pytest.raises(DataError) as training:
        CocoIndex.read(path)
    with pytest.raises(ValueError) as evaluation:
        CocoEvaluator(path)
    if "key 'segmentation' is missing" in str(training.value):  # boxes do not need it, so it is found later
        assert "annotation 20 has no segmentation" in str(evaluation.value)
    else:
        assert str(evaluation.value) == str(training.value)


def test_images_with_too_many_annotations_are_refused(path: Path) -> None:
    def many(content: Content) -> None:
        first = content["annotations"][0]
        content["annotations"] = [{**first, "id": id, "segmentation": []} for id in range(MAX_OBJECTS + 1)]

    _edit(path, many)
    with pytest.raises(DataError, match=r"images \(id 1\): has 65,536 annotations"):
        load_ground_truth(path)


@pytest.mark.parametrize("edit", [_without("segmentation"), _as("segmentation", None), _as("segmentation", [])])
def test_boxes_need_no_masks(path: Path, edit: Callable[[Content], None]) -> None:
    _edit(path, edit)
    assert len(CocoEvaluator(path, ("box",)).truth.anns) == 13
    with pytest.raises(ValueError, match=r"annotation 10 has no segmentation.*boxes only"):
        CocoEvaluator(path)
    _edit(path, lambda content: content["annotations"][3].update(bbox=[1, 2, 3]))
    with pytest.raises(DataError, match=r"annotations\[3\] .*key 'bbox' is \[1, 2, 3\]"):
        CocoEvaluator(path, ("box",))


@pytest.mark.parametrize("edit", [_without("bbox"), _as("bbox", None)])
def test_boxes_follow_from_masks(path: Path, edit: Callable[[Content], None]) -> None:
    given = {id: entry["bbox"] for id, entry in load_ground_truth(path).anns.items()}
    _edit(path, edit)
    assert {id: entry["bbox"] for id, entry in load_ground_truth(path).anns.items()} == given


def test_a_sound_file_is_not_checked_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = index_module.check_annotation
    monkeypatch.setattr(index_module, "check_annotation", lambda *args: calls.append(1) or real(*args))
    content = json.loads(path.read_text())
    load_ground_truth(path)
    assert len(calls) == sum(isinstance(annotation["segmentation"], dict) for annotation in content["annotations"])


def test_ids_that_repeat_end_an_evaluation_of_files(tmp_path: Path) -> None:
    truth, records = generated.make_case(4)
    truth["annotations"][5]["id"] = truth["annotations"][2]["id"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    save_results(tmp_path / "results.json", records)
    message = r"truth\.json: annotations\[5\] \(id 3\): key 'id' is not unique; annotations\[2\] has it too"
    with pytest.raises(DataError, match=message):
        evaluate_files(tmp_path / "results.json", tmp_path / "truth.json")
    done = run("evaluate", "predictions=results.json", "annotations=truth.json", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "AP" not in done.stdout
    assert done.stderr.startswith("error: truth.json: annotations[5] (id 3): key 'id' is not unique;")
