"""Predicting from Python with a toy checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from b2inst import B2Inst, Prediction
from b2inst.data.errors import DataError
from b2inst.lit import LitSegmenter
from b2inst.ops.masks import masks_to_rle
from b2inst.structures import Detections
from b2inst.train import train
from toy import toy_checkpoint, toy_config

RESIZE = "+augment.val.resize._target_=b2inst.data.augment.Resize"
THRESHOLD = 0.4


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_checkpoint(tmp_path_factory.mktemp("toy") / "toy.ckpt")


@pytest.fixture(scope="module")
def model(ckpt: Path) -> B2Inst:
    return B2Inst.from_checkpoint(ckpt, "cpu")


@pytest.fixture(scope="module")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> B2Inst:
    """Sees every image with a shorter side of 96 pixels."""
    path = tmp_path_factory.mktemp("resized") / "toy.ckpt"
    return B2Inst.from_checkpoint(toy_checkpoint(path, RESIZE, "+augment.val.resize.short=96"), "cpu")


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def same(one: Prediction, other: Prediction, tolerance: float = 0.0) -> None:
    assert len(one) == len(other) > 0 and one.size == other.size
    assert np.array_equal(one.labels, other.labels) and one.class_names == other.class_names
    assert np.abs(one.scores - other.scores).max() <= tolerance
    assert np.abs(one.boxes - other.boxes).max() <= 100 * tolerance
    assert (one.bool_masks() != other.bool_masks()).mean() <= tolerance


def test_every_kind_of_input_gives_the_same(model: B2Inst, tmp_path: Path) -> None:
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    wanted = model.predict(pixels, THRESHOLD)
    assert isinstance(wanted, Prediction) and wanted.size == (48, 64)
    kinds = {
        "path": tmp_path / "a.png",
        "string": str(tmp_path / "a.png"),
        "PIL": Image.fromarray(pixels),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "array in another order of memory": np.asfortranarray(pixels),
        "mirrored view": np.ascontiguousarray(pixels[:, ::-1])[:, ::-1],
    }
    for kind in kinds.values():
        same(model.predict(kind, THRESHOLD), wanted)
    several = model.predict(list(kinds.values()), THRESHOLD, batch_size=4)
    for found in several:
        same(found, wanted, 1e-4)


def test_channels_are_not_swapped(model: B2Inst) -> None:
    pixels = picture()
    one, other = model.predict([pixels, pixels[..., ::-1]], THRESHOLD)
    assert len(one) != len(other) or np.abs(one.scores - other.scores).max() > 1e-3


def test_a_list_gives_a_list(model: B2Inst) -> None:
    assert model.predict([]) == []
    (found,) = model.predict([picture()], THRESHOLD)
    same(found, model.predict(picture(), THRESHOLD))
    assert len(model.predict((picture(), picture()), THRESHOLD)) == 2


@pytest.mark.parametrize("which", ["model", "enlarging"])
def test_a_batch_of_different_sizes_equals_one_by_one(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    sizes = [(48, 64), (64, 40), (90, 130), (33, 64), (50, 61)]
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    together = model.predict(images, THRESHOLD, batch_size=5)
    for found, image, size in zip(together, images, sizes, strict=True):
        assert found.size == size
        same(found, model.predict(image, THRESHOLD), 1e-4)


def test_detections_come_back_into_the_image(enlarging: B2Inst, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network sees 48 x 64 pixels as 96 x 128: what it finds there is half as large in the image."""
    seen = []

    def find(outputs, images):
        seen.append((images.sizes.tolist(), tuple(images.pixels.shape)))
        boxes = torch.tensor([[16.0, 20.0, 48.0, 60.0]])
        found = Detections(boxes, torch.tensor([1]), torch.tensor([0.9]), torch.tensor([0.9]),
                           torch.full((1, 28, 28), 9.0), (96, 128))  # fmt: skip
        return SimpleNamespace(detections=lambda: [found])

    monkeypatch.setattr(enlarging.model, "find", find)
    found = enlarging.predict(picture())
    assert seen == [([[96, 128]], (1, 3, 96, 128))]
    assert found.boxes.tolist() == [[8, 10, 24, 30]] and found.category_ids.tolist() == [3]
    mask = np.zeros((48, 64), bool)
    mask[10:30, 8:24] = True
    assert np.array_equal(found.bool_masks()[0], mask)
    assert found.polygons()[0][0].tolist() == [[8, 10], [24, 10], [24, 30], [8, 30]]


def test_predictions_are_what_the_evaluation_scored(tmp_path: Path) -> None:
    root, output = tmp_path / "set", tmp_path / "run"
    train(toy_config(root, output, "experiment=b2inst_light", RESIZE, "+augment.val.resize.short=80",
                     "data.val_batch_size=1", "model.fpn.channels=64",
                     "model.detector.score_threshold=0.0"))  # fmt: skip
    wanted = json.loads((output / "results.json").read_text())
    images = json.loads((root / "annotations/instances_val.json").read_text())["images"]
    model = B2Inst.from_checkpoint(output / "checkpoints/best.ckpt", "cpu")
    found = []
    for image in images:
        found += model.predict(root / "val" / image["file_name"], score_threshold=0.0).to_coco(image["id"])
    assert len(found) == len(wanted) > 100
    assert [record["category_id"] for record in found] == [record["category_id"] for record in wanted]
    assert np.allclose([r["bbox"] for r in found], [r["bbox"] for r in wanted], atol=1e-3)
    assert np.allclose([r["score"] for r in found], [r["score"] for r in wanted], atol=1e-6)
    same_mask = [f["segmentation"] == w["segmentation"] for f, w in zip(found, wanted, strict=True)]
    assert np.mean(same_mask) > 0.98


def test_the_threshold_of_the_checkpoint_is_the_default(model: B2Inst, tmp_path: Path) -> None:
    assert model.score_threshold == 0.3
    same(model.predict(picture()), model.predict(picture(), 0.3))
    scores = model.predict(picture(), 0.0).scores
    best = float(scores[9] + scores[10]) / 2
    other = B2Inst.from_checkpoint(toy_checkpoint(tmp_path / "t.ckpt", best_threshold=best), "cpu")
    assert other.score_threshold == best and len(other.predict(picture())) == 10
    assert len(other.predict(picture(), float(scores[4]))) == 5, "a score equal to the threshold counts"


def test_a_threshold_below_that_of_the_training_finds_more(model: B2Inst) -> None:
    detector = model.model.detector
    usual, detector.score_threshold = detector.score_threshold, 0.5
    try:
        found = model.predict(picture(), score_threshold=0.2)
        assert detector.score_threshold == 0.5
    finally:
        detector.score_threshold = usual
    assert found.scores.min() < 0.5


def test_looking_inside(model: B2Inst) -> None:
    ((found, inside), (nothing, empty)) = (
        model.run([picture(40, 50)], threshold, blend_of=0)[0] for threshold in (THRESHOLD, 1.0)
    )
    assert inside.canvas == (64, 64) and inside.size == (40, 50)
    assert inside.bases.shape == (4, 16, 16) and inside.boundary.shape == (16, 16)
    assert inside.blend.attention.shape == inside.blend.bases.shape == (5, 28, 28)
    assert torch.allclose(inside.blend.attention.sum(0), torch.ones(28, 28))
    assert len(found) > 0 and len(nothing) == 0 and empty.blend is None
    assert model.run([picture()])[0][1] is None


def test_attention_is_computed_only_if_it_is_asked_for(model: B2Inst, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.model, "blends", None)
    inside = model.run([picture()], THRESHOLD, look_inside=True)[0][1]
    assert inside.bases.shape == (4, 16, 16) and inside.blend is None
    with pytest.raises(TypeError):
        model.run([picture()], THRESHOLD, blend_of=0)


@pytest.mark.parametrize(
    ("experiment", "overrides", "count"),
    [
        ("ablation_a", (), 4),
        ("ablation_d", (), 4),  # its boundary basis takes no part
        ("ablation_e", (), 5),
        ("ablation_e", ("model.boundary.input=sigmoid",), 5),
        ("ablation_e", ("model.clip_before_pool=false",), 5),
        ("b2inst_light", (), 5),  # where the order of the results is not that of the detector
    ],
)
def test_the_blend_of_an_instance_gives_its_mask(
    experiment: str, overrides: tuple[str, ...], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = B2Inst.from_checkpoint(toy_checkpoint(tmp_path / "toy.ckpt", *overrides, experiment=experiment), "cpu")
    images = [picture(seed=1), picture()]
    detections = []
    find = model.model.find

    def keep(*arguments):
        found = find(*arguments)
        detections[:] = found.detections()
        return found

    monkeypatch.setattr(model.model, "find", keep)
    for instance in (0, 2):
        results = model.run(images, 0.01, blend_of=instance)
        for (prediction, inside), raw in zip(results, detections, strict=True):
            blend = inside.blend
            assert blend.attention.shape == (count, 28, 28)
            logits = (blend.attention * blend.bases).sum(0)
            assert torch.allclose(logits, raw.mask_logits[instance], atol=1e-4) and logits.std() > 0.01
            box = torch.from_numpy(prediction.boxes[instance : instance + 1])
            assert list(masks_to_rle(logits[None].sigmoid(), box, 48, 64)) == [prediction.masks[instance]]


def test_images_with_fewer_instances_have_no_blend(model: B2Inst) -> None:
    images = [picture(seed=seed) for seed in range(4)]
    counts = [len(found) for found in model.predict(images, 0.6)]
    last = max(counts) - 1
    results = model.run(images, 0.6, blend_of=last)
    assert [inside.blend is not None for _, inside in results] == [count > last for count in counts]
    assert 0 < sum(count > last for count in counts) < 4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture().astype(float), r"image: a array|image: a.*float64"),
        (picture()[..., 0], r"\(48, 64\).*\(H, W, 3\)"),
        (picture()[None], "several images as a list"),
        (torch.from_numpy(picture()), r"\(48, 64, 3\).*\(3, H, W\)"),
        (Image.fromarray(picture()[..., 0].astype(np.int32)), "mode 'I'"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (7, "int; give a path"),
    ],
)
def test_what_is_no_image_is_refused(model: B2Inst, image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(image)
    with pytest.raises(ValueError, match=r"images\[1\]"):
        model.predict([picture(), image])


def test_files_that_are_none(model: B2Inst, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(DataError, match="a.jpg: cannot be decoded"):
        model.predict(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="b.jpg: does not exist; check the path"):
        model.predict(tmp_path / "b.jpg")


def test_values_out_of_range(model: B2Inst) -> None:
    for arguments in ({"score_threshold": 1.5}, {"score_threshold": -0.1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            model.predict(picture(), **arguments)
    with pytest.raises(ValueError, match="blend_of=-1: give 0 for the best"):
        model.run([picture()], blend_of=-1)


def test_devices_that_are_not_there(ckpt: Path) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device={device}: cannot be used"):
            B2Inst.from_checkpoint(ckpt, device)


def test_a_checkpoint_that_cuts_images_in_validation_is_refused(tmp_path: Path) -> None:
    crop = ("+augment.val.crop._target_=b2inst.data.augment.Crop", "+augment.val.crop.size=32")
    model = B2Inst.from_checkpoint(toy_checkpoint(tmp_path / "c.ckpt", *crop), "cpu")
    with pytest.raises(ValueError, match="cuts or turns"):
        model.predict(picture())


def test_files_that_hold_more_are_refused(ckpt: Path, tmp_path: Path) -> None:
    content = torch.load(ckpt, weights_only=True)
    torch.save({**content, "extra": Path("x")}, tmp_path / "more.ckpt")
    with pytest.raises(ValueError, match="more than tensors and plain values, which is refused"):
        B2Inst.from_checkpoint(tmp_path / "more.ckpt")
    with pytest.raises(FileNotFoundError, match="none.ckpt"):
        B2Inst.from_checkpoint(tmp_path / "none.ckpt")
    assert LitSegmenter.from_checkpoint(ckpt).best_threshold is None


TOUCH = "b2inst.data.shapes.generate"
HOSTILE = {
    "a program": {"_target_": "os.system", "command": "touch touched"},
    "a module through one of torch": {"_target_": "torch.optim.sgd.torch.load", "f": "a.pth", "weights_only": False},
    "a module through one of ours": {"_target_": "b2inst.models.backbone.torch.load", "f": "a.pth"},
    "a download": {"_target_": "b2inst.predictor.torch.hub.download_url_to_file", "url": "file:///a", "dst": "touched"},
    "a writer of ours": {"_target_": TOUCH, "root": "touched"},
    "an object that is only imported": {"_target_": "b2inst.models.backbone.Path", "_args_": ["touched"]},
    "an interpolation that makes a target": f"${{oc.create:{{_target_: {TOUCH}, root: touched}}}}",
    "a target that is interpolated": {"_target_": f"${{oc.decode:{TOUCH}}}", "root": "touched"},
    "a target deep inside": {"_target_": "b2inst.data.augment.flip", "p": {"_target_": TOUCH, "root": "touched"}},
}


@pytest.mark.parametrize("place", ["transforms", "model", "loss"])
@pytest.mark.parametrize("node", HOSTILE.values(), ids=HOSTILE)
def test_a_checkpoint_builds_parts_of_the_model_and_nothing_else(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, node: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(ckpt, weights_only=True)
    config = content["hyper_parameters"]["config"]
    if place == "transforms":
        config["data"]["val_augment"] = {"x": node}
    elif place == "model":
        config["model"]["assembly"] = node
    else:
        config["model"]["losses"]["x"] = node
    torch.save(content, "hostile.ckpt")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is refused"):
        B2Inst.from_checkpoint("hostile.ckpt")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["state_dict"].popitem(), "Missing key"),
        (lambda c: c.update(best_threshold=float("nan")), "best_threshold is nan, not a score"),
        (lambda c: c.update(best_threshold="0.3"), "best_threshold is '0.3', not a score"),
        (lambda c: c["hyper_parameters"]["config"]["classes"].pop(), "do not name 3 classes"),
        (lambda c: c["hyper_parameters"]["config"]["data"].update(size_divisor=10**6), "size_divisor is 1000000"),
        (lambda c: c["hyper_parameters"]["config"]["model"].update(num_bases="x"), "not a checkpoint of b2inst"),
        (lambda c: c["hyper_parameters"].clear(), "not a checkpoint of b2inst"),
    ],
    ids=["a tensor less", "NaN", "text", "a class less", "divisor", "wrong type", "no configuration"],
)
def test_damaged_checkpoints_are_refused_in_one_line(
    ckpt: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    content = torch.load(ckpt, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of b2inst, or damaged") as caught:
        B2Inst.from_checkpoint(tmp_path / "damaged.ckpt")
    assert told in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04 cut off"])
def test_files_that_are_none_of_pytorch_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match="it is no file of PyTorch, or cut off"):
        B2Inst.from_checkpoint(tmp_path / "a.ckpt")


def test_a_threshold_leaves_out_what_is_below_and_nothing_else(ckpt: Path) -> None:
    """The detector's own threshold is one of probabilities; scores are their root."""
    model = B2Inst.from_checkpoint(ckpt, "cpu")
    with torch.no_grad():
        model.model.detector.quality.bias -= 4.5  # scores of the toy are high
    scores = model.predict(picture(90, 130), 0.02).scores
    assert (scores < 0.2).any() and len(scores) < 100
    for threshold in (0.03, 0.1, 0.15, 0.2, 0.3):
        found = model.predict(picture(90, 130), threshold).scores
        assert found == pytest.approx(scores[scores >= threshold], abs=1e-6)
    assert min(scores) == model.predict(picture(90, 130), float(min(scores))).scores.min()
    with pytest.raises(ValueError, match="score_threshold=0.5: give"):
        model.predict(picture(), "0.5")


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import sys, b2inst\n"
        "assert {'B2Inst', 'Prediction'} <= set(dir(b2inst))\n"
        "assert not {'torch', 'numpy', 'hydra', 'pytorch_lightning'} & set(sys.modules)\n"
        "from b2inst import B2Inst, Prediction\n"
        "assert 'pytorch_lightning' in sys.modules and B2Inst.__module__ == 'b2inst.predictor'\n"
        "b2inst.nothing"
    )
    src = str(Path(__file__).parents[1] / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": src}, capture_output=True, text=True)
    assert "has no attribute 'nothing'" in done.stderr and "AssertionError" not in done.stderr
