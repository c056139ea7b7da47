"""The settings of the entry point that evaluates; its numbers are tested in test_train.py and metrics/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from pycocotools import mask as coco_mask

import b2inst.evaluate
from b2inst.config import ConfigError, plain
from b2inst.evaluate import data_config, evaluate
from b2inst.metrics.results import save_results
from b2inst.paths import config_dir, unwritable

BOX = [1.0, 1.0, 4.0, 4.0]


def settings(**changes: Any) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("evaluate"))
    assert not changes.keys() - config.keys()
    return {**config, **{key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    truth, results = tmp_path / "instances.json", tmp_path / "results.json"
    square = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 16, "iscrowd": 0}
    truth.write_text(
        json.dumps({
            "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [{**annotation, "segmentation": [square]}],
        })
    )  # fmt: skip
    (rle,) = coco_mask.frPyObjects([square], 8, 8)
    save_results(results, [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": BOX, "segmentation": rle}])
    return {"predictions": results, "annotations": truth, "output": tmp_path / "out" / "metrics.json"}


def kinds_of(output: Path) -> set[str]:
    return {key.split("/")[0] for key in json.loads(output.read_text()) if "/" in key}


def without_masks(files: dict[str, Path]) -> None:
    save_results(files["predictions"], [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": BOX}])


def test_kinds_count_for_a_results_file_too(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(settings(**files, kinds=["box"]))
    assert kinds_of(files["output"]) == {"box"} and "mask" not in capsys.readouterr().out
    evaluate(settings(**files))
    assert kinds_of(files["output"]) == {"box", "mask", "boundary"}


def test_masks_that_are_missing_are_told(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    without_masks(files)
    evaluate(settings(**files))
    assert kinds_of(files["output"]) == {"box"} and "boxes without masks" in caplog.text
    with pytest.raises(ConfigError, match=r"record 0 has no 'segmentation'.*kinds=\[box\]"):
        evaluate(settings(**files, kinds=["box", "mask"]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kinds": ["box", "bdry"]}, r"kinds=\['box', 'bdry'\]: give a list"),
        ({"kinds": "box"}, "kinds=box: give a list"),
        ({"dilation_ratio": 2}, "dilation_ratio=2: give a share"),
        ({"ckpt": "a.ckpt"}, "give either ckpt=FILE, or predictions=FILE"),
        ({"annotations": None}, "predictions=FILE needs annotations=FILE"),
        ({"data": {"limit": -1}}, "data.limit=-1: give how many images"),
        ({"score_threshold": "high"}, "score_threshold=high: give a class score"),
        ({"pictures": -1}, "pictures=-1: give how many"),
    ],
)
def test_settings_are_checked(files: dict[str, Path], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        evaluate(settings(**{**files, **changes}))


@pytest.mark.parametrize("given", [{"ckpt": "a.ckpt"}, {}], ids=["checkpoint", "results"])
def test_an_output_that_cannot_be_written_is_told_before_anything_is_scored(
    files: dict[str, Path], given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(b2inst.evaluate, "evaluate_files", None)
    what = {"predictions": None, "annotations": None} if given else {}
    with pytest.raises(ConfigError, match=f"output={tmp_path}: is a folder.*output=metrics.json"):
        evaluate(settings(**{**files, **given, **what, "output": tmp_path}))


def test_a_folder_of_results_is_told_to_be_one(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"results file {tmp_path} is no file; check the path"):
        evaluate(settings(**{**files, "predictions": tmp_path}))


def test_what_can_be_written(tmp_path: Path) -> None:
    assert unwritable(tmp_path / "new" / "folder" / "a.json") is None
    assert unwritable(tmp_path) == "is a folder, where a file is to be written"
    (tmp_path / "file").write_text("")
    assert unwritable(tmp_path / "file") is None  # it is replaced
    assert unwritable(tmp_path / "file" / "a.json") == f"{tmp_path / 'file'} is no folder"
    assert "nothing can be written in /proc" in (unwritable(Path("/proc/none/a.json")) or "")


def test_another_root_has_all_of_the_set(files: dict[str, Path]) -> None:
    """Files that the training found elsewhere are of the old set; where they lie within a set stays."""
    val = {"annotations": "/old/annotations.json", "images": "images/val", "limit": None}
    config = settings(**files)

    def changed(**values: Any) -> dict[str, Any]:
        return data_config({"root": "/old", "prepare": None, "val": val}, {**config, "annotations": None, **values})

    moved = {**config["data"], "root": "/new"}
    assert changed()["val"] == val
    assert changed(data=moved)["val"] == {**val, "annotations": None}
    assert changed(data=moved, annotations="/a.json")["val"] == {**val, "annotations": "/a.json"}


def test_errors_by_size_are_printed_if_asked_for(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(settings(**files))
    assert "missed" not in capsys.readouterr().out
    evaluate(settings(**files, errors=True))
    assert "missed" in capsys.readouterr().out
