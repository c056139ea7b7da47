from __future__ import annotations

import copy
import json
import math
import os

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from b2inst.metrics.records import rle_runs
from b2inst.metrics.results import Scores, evaluate_files, load_results, save_results
from metrics import generated


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    truth, records = generated.make_case(4, images=6)
    (folder / "instances.json").write_text(json.dumps(truth))
    save_results(folder / "results.json", records)
    return folder, truth, records


def test_file_mode_equals_pycocotools_and_scores_every_image(files):
    folder, truth, records = files
    scores = evaluate_files(folder / "results.json", folder / "instances.json", folder / "new" / "metrics.json")
    for kind, plain, cls in [
        ("box", "bbox", generated.COCOeval),
        ("mask", "segm", generated.COCOeval),
        ("boundary", "segm", generated.PlainBoundaryEval),
    ]:
        expected = generated.plain_scores(truth, records, plain, evaluation_class=cls)
        for name in generated.NAMES:
            value = scores.metrics[f"{kind}/{name}"]
            assert (-1 if math.isnan(value) else value) == pytest.approx(expected[name], abs=1e-9), (kind, name)
    written = json.loads((folder / "new" / "metrics.json").read_text())
    assert written["mask/AP"] == scores.metrics["mask/AP"]
    assert set(written) == {*scores.metrics, "per_class", "errors"}
    assert written["per_class"]["ghost"]["mask/AP"] is None and written["per_class"]["ghost"]["instances"] == 0


def test_kinds_follow_from_the_records(files, tmp_path):
    folder, truth, records = files
    path = tmp_path / "results.json"
    boxes = [{key: value for key, value in record.items() if key != "segmentation"} for record in records]
    save_results(path, boxes)
    assert {name.split("/")[0] for name in evaluate_files(path, truth).metrics} == {"box"}
    with pytest.raises(ValueError, match="results.json: record 0 has no 'segmentation'"):
        evaluate_files(path, truth, kinds=("mask",))
    masks = [{key: value for key, value in record.items() if key != "bbox"} for record in records]
    save_results(path, masks)
    expected = generated.plain_scores(truth, masks, "bbox")
    assert evaluate_files(path, truth).metrics["box/AP"] == pytest.approx(expected["AP"], abs=1e-9)
    save_results(path, [records[0], boxes[1]])
    with pytest.raises(ValueError, match="record 1 has no segmentation, but record 0 has one"):
        evaluate_files(path, truth)


def test_no_results_at_all_score_zero(files, tmp_path):
    save_results(tmp_path / "results.json", [])
    scores = evaluate_files(tmp_path / "results.json", files[1])
    assert [scores.metrics[f"{kind}/AP"] for kind in ("box", "mask", "boundary")] == [0.0, 0.0, 0.0]


def test_save_and_load_round_trip(files, tmp_path):
    _, truth, records = files
    given = [
        {
            "image_id": np.int64(record["image_id"]),
            "category_id": record["category_id"],
            "score": np.float64(record["score"]),
            "box_score": 0.25,
            "bbox": np.array(record["bbox"]),
            "segmentation": {"size": (120, 160), "counts": record["segmentation"]["counts"].encode()},
        }
        for record in records
    ]
    path = tmp_path / "deep" / "results.json"
    save_results(path, given)
    assert load_results(path, truth) == [dict(record, box_score=0.25) for record in records]
    assert isinstance(given[0]["segmentation"]["counts"], bytes)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    save_results(path, [])
    with pytest.raises(ValueError, match="cannot write .*results.json.*NaN"):
        save_results(path, [{"score": float("nan")}])
    with pytest.raises(TypeError):
        save_results(path, [{"score": object()}])
    assert path.read_text() == "[]" and os.listdir(tmp_path) == ["results.json"]
    assert os.stat(path).st_mode & 0o400


def _with(**changes):
    return lambda record: record.update(changes)


def _without(*keys):
    return lambda record: [record.pop(key) for key in keys]


def _mask(**changes):
    return lambda record: record["segmentation"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("score"), "has no 'score'"),
        (_without("image_id"), "has no 'image_id'"),
        (_without("bbox", "segmentation"), "neither 'bbox' nor 'segmentation'"),
        (_with(image_id=1000), r"image_id 1000, which .*instances.json does not list; predict on.*\(3, 7"),
        (_with(image_id="3"), r"image_id '3' \(str\); it must be an integer"),
        (_with(category_id=0), r"category_id 0, which .* map the network's labels back .*\(1, 4, 9\)"),
        (_with(category_id=True), "category_id True"),
        (_with(score="high"), "score 'high'; it must be a finite number"),
        (_with(score=float("nan")), "score nan"),
        (_with(box_score=float("inf")), "box_score inf"),
        (_with(bbox=[1, 2, 3]), "4 finite numbers: x, y, width, height"),
        (_with(bbox=[1, 2, 3, None]), "4 finite numbers"),
        (_with(bbox=5), "4 finite numbers"),
        (_with(bbox=[50, 50, -10, 4]), "negative size; COCO boxes are x, y, width, height, not two corners"),
        (_with(segmentation=[[1, 2, 3, 4, 5, 6]]), "is polygons; .*pycocotools.mask.encode"),
        (_with(segmentation={"size": [120, 160], "counts": [5, 3]}), "no compressed RLE"),
        (_mask(size=[160, 120]), r"size \[160, 120\], but its image is \[120, 160\] .*original size"),
        (_mask(counts=""), "runs add up to 0 pixels in place of 120 x 160 = 19200"),
        (_mask(counts="5"), "runs add up to 5 pixels"),
        (_mask(counts="~~"), "no compressed RLE"),
        (_mask(counts="o"), "no compressed RLE"),
        (_mask(counts="o" * 30 + "1"), "absurd length"),
    ],
)
def test_malformed_records_are_named(files, tmp_path, change, message):
    folder, _, records = files
    damaged = copy.deepcopy(records[:3])
    change(damaged[2])
    path = tmp_path / "results.json"
    path.write_text(json.dumps(damaged))  # Python's json writes and reads NaN
    with pytest.raises(ValueError, match=message) as error:
        load_results(path, folder / "instances.json")
    assert str(error.value).startswith(f"results file {path}: record 2 ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image_id": 3', "is not JSON"),
        ('{"annotations": []}', "if its 'annotations' are results, write that list alone"),
        ('{"images": [], "annotations": []}', "looks like an annotation file"),
        ('{"a": 1}', "JSON list of results"),
        ("7", "it is a int"),
        ("[[1, 2]]", "record 0 is a list"),
    ],
)
def test_malformed_files_are_named(files, tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_results(path, files[1])
    assert f"results file {path}" in str(error.value)


def test_missing_file(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="results file .*gone.json does not exist"):
        load_results(tmp_path / "gone.json", files[1])


def test_runs_equal_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((int(rng.integers(1, 300)), int(rng.integers(1, 90)))) < rng.choice([0.0, 0.01, 0.5, 1.0])
        flat = mask.flatten("F").astype(int)
        changes = np.flatnonzero(np.diff(np.concatenate(([0], flat))))
        expected = np.diff(np.concatenate(([0], changes, [flat.size])))
        assert rle_runs(generated.encode(mask)["counts"]).tolist() == expected.tolist()
    big = np.zeros((3000, 4000), np.uint8)
    big[-1, -1] = 1
    assert rle_runs(rle_tools.encode(np.asfortranarray(big))["counts"]).tolist() == [3000 * 4000 - 1, 1]


def test_tables():
    nan = float("nan")
    metrics = {f"mask/{name}": 0.123456 for name in generated.NAMES} | {"mask/APl": nan}
    scores = Scores(metrics, {"a very long class name " * 6: {"mask/AP": 0.5, "instances": 7}, "[b]": {"mask/AP": nan}})
    lines = scores.table().splitlines()
    assert lines[0].split() == "| percent | AP | AP50 | AP75 | APs | APm | APl | AR100 |".split()
    assert lines[-1].split("|")[1:-1] == [" mask    ", *[" 12.3 "] * 5, "   - ", "  12.3 "]
    rows = scores.class_table().splitlines()
    assert "a very long class name " * 5 in rows[2] and "50.0" in rows[2] and " 7 " in rows[2]
    assert "[b]" in rows[3] and " - " in rows[3]


def test_scores_are_json_without_nan(tmp_path):
    Scores({"mask/AP": 0.5, "mask/APl": float("nan")}, {"x": {"mask/AP": float("nan"), "instances": 0}}).to_json(
        tmp_path / "a" / "metrics.json"
    )
    text = (tmp_path / "a" / "metrics.json").read_text()
    assert "NaN" not in text
    rows = {"x": {"mask/AP": None, "instances": 0}}
    assert json.loads(text) == {"mask/AP": 0.5, "mask/APl": None, "per_class": rows, "errors": {}}
