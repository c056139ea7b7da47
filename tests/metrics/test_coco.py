from __future__ import annotations

import copy
import json
import math
import tracemalloc

import numpy as np
import pytest

from b2inst.metrics.coco import CocoEvaluator
from b2inst.metrics.ground_truth import GroundTruth
from metrics import generated


def score(truth, records, image_ids=None, **options):
    evaluator = CocoEvaluator(truth, **options)
    evaluator.update([image["id"] for image in truth["images"]] if image_ids is None else image_ids, records)
    return evaluator.compute()


def assert_equal(scores, kind, expected):
    for name in generated.NAMES:
        value = scores.metrics[f"{kind}/{name}"]
        if expected[name] == -1:
            assert math.isnan(value), name
        else:
            assert value == pytest.approx(expected[name], abs=1e-9), name


def without(records, *keys):
    return [{key: value for key, value in record.items() if key not in keys} for record in records]


@pytest.fixture(scope="module")
def case():
    return generated.make_case(0)


def test_case_is_hard(case):
    truth, records = case
    assert any(annotation["iscrowd"] for annotation in truth["annotations"])
    areas = np.array([annotation["area"] for annotation in truth["annotations"]])
    assert (areas < 32**2).any() and (areas == 1).any() and ((areas > 32**2) & (areas < 96**2)).any()
    assert not any(annotation["category_id"] == 9 for annotation in truth["annotations"])
    assert any(record["category_id"] == 9 for record in records)
    keys = [(record["image_id"], record["category_id"]) for record in records]
    assert max(map(keys.count, set(keys))) > 100
    images = {image["id"] for image in truth["images"]}
    assert images - {annotation["image_id"] for annotation in truth["annotations"]}
    assert images - {record["image_id"] for record in records}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_box_and_mask_equal_pycocotools(seed):
    truth, records = generated.make_case(seed)
    scores = score(truth, records, kinds=("box", "mask"))
    expected = generated.plain_scores(truth, records, "bbox")
    assert 0.02 < expected["AP"] < 0.98
    assert_equal(scores, "box", expected)
    assert_equal(scores, "mask", generated.plain_scores(truth, records, "segm"))


def test_area_of_a_detection_is_that_of_its_mask_on_request(case):
    truth, records = case
    expected = generated.plain_scores(truth, without(records, "bbox"), "segm")
    assert_equal(score(truth, records, kinds=("mask",), detection_area="mask"), "mask", expected)
    assert_equal(score(truth, without(records, "bbox"), kinds=("mask",)), "mask", expected)
    assert expected["APs"] != generated.plain_scores(truth, records, "segm")["APs"]


def test_box_from_the_mask_and_boxes_alone(case):
    truth, records = case
    no_box, no_mask = without(records, "bbox"), without(records, "segmentation")
    assert_equal(score(truth, no_box, kinds=("box",)), "box", generated.plain_scores(truth, no_box, "bbox"))
    assert_equal(score(truth, no_mask, kinds=("box",)), "box", generated.plain_scores(truth, no_mask, "bbox"))


@pytest.mark.parametrize("seed", [0, 1])
def test_boundary_equals_the_plain_definition(seed):
    truth, records = generated.make_case(seed)
    expected = generated.plain_scores(truth, records, "segm", evaluation_class=generated.PlainBoundaryEval)
    assert_equal(score(truth, records, kinds=("boundary",)), "boundary", expected)
    assert 0.01 < expected["AP"] < generated.plain_scores(truth, records, "segm")["AP"]


def test_boundary_equals_faster_coco_eval(case):
    faster = pytest.importorskip("faster_coco_eval")
    truth, records = case
    coco = faster.COCO({"info": {}, **copy.deepcopy(truth)})
    evaluation = faster.COCOeval_faster(coco, coco.loadRes(copy.deepcopy(records)), "boundary", print_function=len)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = dict(zip(generated.NAMES, [float(value) for value in evaluation.stats[:12]], strict=True))
    assert_equal(score(truth, records, kinds=("boundary",)), "boundary", expected)


def test_only_images_that_were_shown_count(case):
    truth, records = case
    some = [image["id"] for image in truth["images"]][2:5]
    shown = [record for record in records if record["image_id"] in some]
    scores = score(truth, shown, some, kinds=("box", "mask"))
    assert_equal(scores, "box", generated.plain_scores(truth, records, "bbox", some))
    assert_equal(scores, "mask", generated.plain_scores(truth, records, "segm", some))
    assert scores.metrics["mask/AR100"] > score(truth, shown, kinds=("mask",)).metrics["mask/AR100"]


def test_stream_in_pieces_states_and_padding_give_the_same(case):
    truth, records = case
    ids = [image["id"] for image in truth["images"]]
    whole = score(truth, records)
    processes = [CocoEvaluator(truth), CocoEvaluator(truth)]
    for position, image_id in enumerate(reversed(ids)):
        mine = [record for record in records if record["image_id"] == image_id]
        processes[position % 2].update([image_id], mine)
    # a padded sampler shows the second process an image that the first has seen; its copy must not count
    padded = [dict(record, score=0.99) for record in records if record["image_id"] == ids[-1]]
    assert padded
    processes[1].update(np.array([ids[-1]]), iter(padded))
    joined = CocoEvaluator(truth)
    for process in processes:
        joined.merge(process.state)
    assert _same(joined.compute(), whole)


def _same(one, two):
    pairs = [(one.metrics, two.metrics), *((one.per_class[name], two.per_class[name]) for name in two.per_class)]
    return all(first.keys() == second.keys() and np.array_equal([*first.values()], [*second.values()], equal_nan=True)
               for first, second in pairs)  # fmt: skip


def test_compute_twice_then_reset(case):
    truth, records = case
    evaluator = CocoEvaluator(truth, kinds=("mask",))
    ids = [image["id"] for image in truth["images"]]
    evaluator.update(ids, records)
    assert _same(evaluator.compute(), evaluator.compute())
    evaluator.reset()
    with pytest.raises(RuntimeError, match="call update"):
        evaluator.compute()
    evaluator.update(ids, [])
    assert evaluator.compute().metrics["mask/AP"] == 0.0


def test_inputs_are_not_changed_and_nothing_is_printed(case, capsys):
    truth, records = case
    before = copy.deepcopy((truth, records))
    score(truth, records)
    assert (truth, records) == before
    assert capsys.readouterr() == ("", "")


def test_perfect_results_score_one_in_every_kind(case):
    truth, _ = case
    records = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.5, "bbox": a["bbox"],
         "segmentation": {"size": a["segmentation"]["size"], "counts": a["segmentation"]["counts"].encode()}}
        for a in truth["annotations"] if not a["iscrowd"]
    ]  # fmt: skip
    scores = score(truth, records)
    for kind in ("box", "mask", "boundary"):
        assert scores.metrics[f"{kind}/AP"] == pytest.approx(1.0)
        assert scores.metrics[f"{kind}/AR100"] == 1.0


def test_box_score_ranks_the_boxes_and_score_the_masks(case):
    truth, records = case
    rng = np.random.default_rng(5)
    both = [dict(record, box_score=float(rng.random())) for record in records]
    by_box = [dict(record, score=record["box_score"]) for record in both]
    scores = score(truth, both, kinds=("box", "mask"))
    assert_equal(scores, "box", generated.plain_scores(truth, by_box, "bbox"))
    assert_equal(scores, "mask", generated.plain_scores(truth, records, "segm"))


def test_per_class_scores_and_instances(case):
    truth, records = case
    scores = score(truth, records)
    assert list(scores.per_class) == ["disc", "leaf", "ghost"]
    for category, name in [(1, "disc"), (4, "leaf")]:
        only = copy.deepcopy(truth)
        only["annotations"] = [entry for entry in only["annotations"] if entry["category_id"] == category]
        expected = generated.plain_scores(only, records, "segm")
        row = scores.per_class[name]
        assert row["mask/AP"] == pytest.approx(expected["AP"], abs=1e-9)
        assert row["mask/AP50"] == pytest.approx(expected["AP50"], abs=1e-9)
        assert row["mask/AP75"] == pytest.approx(expected["AP75"], abs=1e-9)
        assert row["instances"] == sum(not entry["iscrowd"] for entry in only["annotations"])
        assert row["boundary/AP"] <= row["mask/AP"]
    ghost = scores.per_class["ghost"]
    assert ghost["instances"] == 0 and math.isnan(ghost["mask/AP"]) and math.isnan(ghost["box/AP"])


def test_no_ground_truth_of_a_size_is_nan(case):
    truth, records = copy.deepcopy(case)
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["area"] < 96**2]
    scores = score(truth, records, kinds=("mask",))
    assert math.isnan(scores.metrics["mask/APl"]) and math.isnan(scores.metrics["mask/ARl"])
    assert scores.metrics["mask/APs"] >= 0


def test_polygons_and_uncompressed_rle_and_missing_fields():
    mask = np.zeros((50, 60), np.uint8)
    mask[10:30, 5:25] = 1
    polygon = [[5, 10, 25, 10, 25, 30, 5, 30]]
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], mask.flatten("F"), [2])))))
    uncompressed = {"size": [50, 60], "counts": runs.tolist()}
    assert uncompressed["counts"][0] == 5 * 50 + 10
    truth = {
        "images": [{"id": 0, "height": 50, "width": 60}, {"id": 1, "height": 50, "width": 60}],
        "categories": [{"id": 0}],
        "annotations": [
            {"image_id": 0, "category_id": 0, "segmentation": polygon},
            {"image_id": 1, "category_id": 0, "segmentation": uncompressed},
        ],
    }
    loaded = GroundTruth(truth)
    for annotation in loaded.dataset["annotations"]:
        assert annotation["area"] == 400 and annotation["bbox"] == [5, 10, 20, 20] and annotation["iscrowd"] == 0
    records = [
        {"image_id": index, "category_id": 0, "score": 0.9, "segmentation": generated.encode(mask)} for index in (0, 1)
    ]
    scores = score(truth, records)
    assert [scores.metrics[f"{kind}/AP"] for kind in ("box", "mask", "boundary")] == [1.0, 1.0, 1.0]
    assert list(scores.per_class) == ["0"]
    assert "area" not in truth["annotations"][0]


def test_annotation_id_zero_is_a_hit(case):
    # pycocotools takes a match with annotation 0 for none: half of the recall is lost there, not here
    truth, _ = generated.make_case(0)
    truth["annotations"] = [entry for entry in truth["annotations"] if not entry["iscrowd"]][:2]
    records = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5}
        for entry in truth["annotations"]
    ]
    for number, entry in enumerate(truth["annotations"]):
        entry["id"] = number
    assert generated.plain_scores(truth, records, "segm")["AR100"] < 1
    assert score(truth, records).metrics["mask/AR100"] == 1.0


def test_annotations_of_unlisted_images_and_categories_do_not_count(case):
    truth, records = copy.deepcopy(case)
    expected = score(truth, records, kinds=("mask",))
    stray = truth["annotations"][0]
    truth["annotations"] += [dict(stray, id=900, image_id=999), dict(stray, id=901, category_id=77)]
    assert _same(score(truth, records, kinds=("mask",)), expected)


def test_names_that_occur_twice_get_their_id(case):
    truth, _ = copy.deepcopy(case)
    for category in truth["categories"][:2]:
        category["name"] = "thing"
    assert GroundTruth(truth).class_names() == {1: "thing (1)", 4: "thing (4)", 9: "ghost"}


def test_other_numbers_of_detections(case):
    truth, records = case
    scores = score(truth, records, kinds=("mask",), max_detections=(5, 300))
    assert list(scores.metrics)[6:8] == ["mask/AR5", "mask/AR300"]
    assert scores.metrics["mask/AR300"] >= score(truth, records, kinds=("mask",)).metrics["mask/AR100"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("box", "keypoints")}, "keypoints.*one or more of box, mask, boundary"),
        ({"kinds": "mask"}, "give a list"),
        ({"kinds": ()}, "one or more"),
        ({"max_detections": (100, 1)}, "ascending"),
        ({"dilation_ratio": 2}, "fraction of the image diagonal"),
        ({"detection_area": "hull"}, "'box' or 'mask'"),
    ],
)
def test_bad_arguments(case, options, message):
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(case[0], **options)


def test_bad_updates_add_nothing(case):
    truth, records = case
    evaluator = CocoEvaluator(truth)
    image_id = records[0]["image_id"]
    for ids, given, message in [
        ([12345], [], "image_id 12345 is not in annotations"),
        ([image_id], [records[0], {**records[0], "score": float("nan")}], "record 1 has score nan"),
        ([image_id], without(records[:1], "segmentation"), "record 0 has no 'segmentation'.*boxes only"),
        ([truth["images"][0]["id"]], [dict(records[0], image_id=truth["images"][1]["id"])], "not in image_ids"),
        ([image_id, image_id], records[:1], "occurs 2 times in one call"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluator.update(ids, given)
    assert evaluator.state == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda truth: truth.pop("annotations"), "the list 'annotations' is missing"),
        (lambda truth: truth["images"][0].pop("id"), r"images\[0\] has no 'id'"),
        (lambda truth: truth["annotations"][2].pop("category_id"), r"annotations\[2\] has no 'category_id'"),
        (
            lambda truth: truth["annotations"][1].update(id=1),
            r"annotations\[1\] \(id 1\).* annotations\[0\] has it too",
        ),
        (lambda truth: truth["annotations"][1].pop("segmentation"), "annotation 2 has no segmentation.*boxes only"),
        (lambda truth: truth["annotations"][1].update(segmentation=[[1, 2, 3, 4]]), "annotation 2 .*at least 3 points"),
        (lambda truth: truth["annotations"][1].update(segmentation=[[]]), "annotation 2 .*cannot be read"),
        (lambda truth: truth["annotations"][0]["segmentation"].update(size=[5, 5]), r"size \[5, 5\].*\[120, 160\]"),
        (lambda truth: [image.pop("height") for image in truth["images"]], "has no 'height' and 'width'"),
        (lambda truth: [truth["annotations"][0].pop(key) for key in ("bbox", "segmentation")], "neither 'bbox' nor"),
    ],
)
def test_damaged_annotations_are_named(case, change, message):
    truth = copy.deepcopy(case[0])
    change(truth)
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(truth)


def test_annotation_files(case, tmp_path):
    truth, records = case
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(truth))
    evaluator = CocoEvaluator(path, kinds=("mask",))
    evaluator.update([image["id"] for image in truth["images"]], records)
    assert _same(evaluator.compute(), score(truth, records, kinds=("mask",)))
    with pytest.raises(FileNotFoundError, match="annotation file .*none.json does not exist"):
        CocoEvaluator(tmp_path / "none.json")
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"instances.json: holds a list \(a result file\?\)"):
        CocoEvaluator(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="instances.json: is no JSON file"):
        CocoEvaluator(path)


def test_boxes_need_no_masks_in_the_annotations(case):
    truth, records = copy.deepcopy(case)
    for annotation in truth["annotations"]:
        del annotation["segmentation"], annotation["area"]
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = generated.plain_scores(truth, records, "bbox")
    for annotation in truth["annotations"]:
        del annotation["area"]
    assert_equal(score(truth, records, kinds=("box",)), "box", expected)


def test_memory_is_that_of_the_codes():
    count, length = 100, 300
    truth = {"images": [{"id": 1 + i, "height": 8, "width": 8} for i in range(50)], "annotations": []}
    evaluator = CocoEvaluator({**truth, "categories": [{"id": 1}]})
    tracemalloc.start()
    try:
        for image in truth["images"]:
            evaluator.update(
                [image["id"]],
                [
                    {"image_id": image["id"], "category_id": 1, "score": 0.5 + i / 1000, "bbox": [0.1, 0.2, 3.3, 4.4],
                     "segmentation": {"size": [8, 8], "counts": f"{i:0{length}d}"}}
                    for i in range(count)
                ],
            )  # fmt: skip
        grown = tracemalloc.get_traced_memory()[0] / (count * len(truth["images"]))
    finally:
        tracemalloc.stop()
    assert length < grown < length + 150
    assert len(evaluator.records()) == count * 50


def test_records_come_back(case):
    truth, records = case
    evaluator = CocoEvaluator(truth)
    given = [dict(record, box_score=0.25) if index % 3 else record for index, record in enumerate(records)]
    given += without(given[:9], "bbox")
    ids = [image["id"] for image in truth["images"]]
    evaluator.update(ids, given)
    decoded = [
        dict(r, segmentation={**r["segmentation"], "counts": r["segmentation"]["counts"].decode()})
        for r in evaluator.records()
    ]
    assert decoded == sorted(given, key=lambda record: ids.index(record["image_id"]))
