"""The entry point that exports: files that find what the model finds, at any size, and the example that runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from scipy.optimize import linear_sum_assignment

import b2inst
from b2inst import B2Inst, export_check, export_files
from b2inst import export as entry
from b2inst.config import ConfigError, plain
from b2inst.export_model import OUTPUTS, ExportModel
from b2inst.models.fcos import FCOS
from b2inst.paths import config_dir
from b2inst.structures import ImageBatch
from toy import CLASSES, run, toy_checkpoint

EXAMPLE = Path(__file__).parents[1] / "examples/run_onnx.py"
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml") if "rcnn" not in path.stem)
RESIZE = ("augment=overfit", "augment.train.resize.short=160", "augment.train.resize.max_long=224")
# Whatever makes another graph; the other experiments differ in their training alone.
VARIANTS = {
    "none": ("ablation_a",),
    "unused": ("ablation_b",),
    "iou": ("ablation_e", "scoring@model.scoring=iou"),
    "boundary": ("ablation_e", "scoring@model.scoring=boundary"),
    "iou_boundary": ("b2inst",),
    "light": ("b2inst_light",),
    "fcn_iou": ("ablation_e", "scoring@model.scoring=fcn_iou"),
    "published": ("blendmask_550_r50_3x",),
    "dynamic": ("b2inst", "assembly@model.assembly=dynamic"),
    "yolact": ("yolact", "boundary@model.boundary=global", "loss@model.losses=[bce]", "scoring@model.scoring=light"),
}


def checkpoint(folder: Path, experiment: str, *overrides: str) -> Path:
    """A toy whose boxes overlap, and whose scoring head, if there is one, gives scores far from 0."""
    path = toy_checkpoint(folder / "toy.ckpt", *overrides, experiment=experiment, best_threshold=0.45)
    content = torch.load(path, weights_only=True)
    heads = {k: v for k, v in content["state_dict"].items() if "scoring.branches" in k and len(v) == len(CLASSES)}
    for value in heads.values():
        value.normal_(0.6 if value.ndim == 1 else 0.0, 0.02, generator=torch.Generator().manual_seed(0))
    content["state_dict"]["model.detector.box_pred.bias"].fill_(2.0)
    if content["hyper_parameters"]["config"]["model"]["backbone"]["preset"] == "msra":
        # Its pixels are not divided by their deviation; random weights would make mask logits of several hundreds.
        content["state_dict"]["model.basis.bases.weight"] /= 1000
    if "dynamic" in content["hyper_parameters"]["config"]["model"]["assembly"]["_target_"]:
        content["state_dict"]["model.detector.params.weight"] /= 10  # which mask logits have to the third power
    if "yolact" in content["hyper_parameters"]["config"]["model"]["detector"]["_target_"]:
        content["state_dict"]["model.detector.cls_logits.weight"] /= 20  # else a softmax makes most scores exactly 1
    torch.save(content, path)
    return path


def settings(ckpt: Path | None, output: Path | None, **changes: Any) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("export"))
    given = {"ckpt": ckpt and str(ckpt), "output": output and str(output)}
    assert not changes.keys() - config.keys()
    return {**config, **given, **changes}


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("toy"), "ablation_e", *RESIZE)


@pytest.fixture(scope="module")
def exported(ckpt: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An ONNX file that the command line made."""
    photos = ckpt.parent / "photos"
    photos.mkdir()
    Image.fromarray(photo(200, 150)).save(photos / "a.png")
    (photos / "b.png").write_text("no image")
    done = run("export", f"ckpt={ckpt}", "format=onnx", f"check={photos}", cwd=ckpt.parent)
    return ckpt.parent / "outputs/export/toy.onnx", done


@pytest.fixture(scope="module")
def model(ckpt: Path) -> B2Inst:
    return B2Inst.from_checkpoint(ckpt, "cpu")


def eager(model: B2Inst) -> export_files.Run:
    return torch.no_grad()(ExportModel(model.model))


def test_the_command_line(exported: tuple[Path, subprocess.CompletedProcess[str]], ckpt: Path) -> None:
    path, done = exported
    assert "as PyTorch within 0.001" in done.stdout and "ms an image, PyTorch" in done.stdout and done.stderr == ""
    report = json.loads(path.with_suffix(".json").read_text())
    assert report["fits"] and report["bytes"] == path.stat().st_size and report["opset"] >= 18
    inputs = [(case["batch"], case["height"], case["width"]) for case in report["cases"]]
    assert inputs == [(1, 224, 160), (3, 256, 192)]  # 200 x 150 becomes 213 x 160; with padding, and with more of it
    assert all(case["instances"] > 20 and 0 < case["boxes"] < 1e-3 for case in report["cases"])
    assert sorted(p.name for p in ckpt.parent.iterdir()) == ["outputs", "photos", "toy.ckpt"]
    again = run("export", f"ckpt={ckpt}", cwd=ckpt.parent, check=False)
    assert again.returncode == 1 and again.stderr.startswith(
        "error: output=outputs/export/toy.onnx: outputs/export/toy."
    )
    assert len(again.stderr.splitlines()) == 1 and "force=true" in again.stderr


def test_onnx_finds_the_same_at_other_sizes_and_nothing_where_nothing_is(
    exported: tuple[Path, subprocess.CompletedProcess[str]], model: B2Inst
) -> None:
    found = export_files.load_onnx(exported[0])
    for count, height, width in ((2, 32, 32), (1, 64, 320), (4, 160, 96)):
        images = [photo(height - 7, width, seed) for seed in range(count)]
        batch = export_check._batch([torch.from_numpy(i).permute(2, 0, 1) for i in images], 32, 32)
        assert batch.pixels.shape[2:] == (height, width)
        case = export_check.compare(model, found, batch)
        assert case.instances > 10 * count and case.fits(1e-3)
    nothing = found(batch.pixels, torch.zeros_like(batch.sizes))
    assert [tuple(part.shape) for part in nothing] == [(0, 4), (0,), (0,), (0, 28, 28), (0,)]


def test_what_an_onnx_file_says_about_itself(exported: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    import onnx

    proto = onnx.load(exported[0])
    onnx.checker.check_model(proto)
    about = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert about["class_names"] == list(CLASSES.values()) and about["category_ids"] == list(CLASSES)
    assert about["preprocessing"]["resize"] == [{"short": 160, "max_long": 224, "antialias": True}]
    assert (about["preprocessing"]["size_divisor"], about["preprocessing"]["channel_order"]) == (32, "RGB")
    assert about["score_threshold"] == 0.45 and about["b2inst_version"] == b2inst.__version__
    assert about["masks"] == {"frame": "box", "size": 28, "values": "logits"}
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*proto.graph.input, *proto.graph.output]
    }
    assert axes["images"] == ["batch", 3, "height", "width"] and axes["sizes"] == ["batch", 2]
    assert axes["masks"] == ["instances", 28, 28] and list(axes)[2:] == list(OUTPUTS)


def test_the_example_finds_what_predict_finds_without_b2inst(
    exported: tuple[Path, subprocess.CompletedProcess[str]], model: B2Inst, tmp_path: Path
) -> None:
    image = photo(300, 450)
    Image.fromarray(image).save(tmp_path / "photo.png")
    code = (
        "import sys, runpy, numpy as np; from PIL import Image; sys.modules['b2inst'] = None; "
        f"find = runpy.run_path({str(EXAMPLE)!r})['find']; "
        f"np.savez('found.npz', **find({str(exported[0])!r}, np.array(Image.open('photo.png'))))"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True, timeout=300)
    found, expected = np.load(tmp_path / "found.npz"), model.predict(image)
    assert 10 < len(expected) == len(found["boxes"]) and np.abs(found["scores"] - expected.scores).max() < 1e-3
    masks, wanted = (m.reshape(len(m), -1).astype(np.float32) for m in (found["masks"], expected.bool_masks()))
    both = masks @ wanted.T
    either = masks.sum(axis=1)[:, None] + wanted.sum(axis=1) - both
    overlap = np.where(either > 0, both / np.maximum(either, 1), 1)
    apart = np.abs(found["boxes"][:, None] - expected.boxes).max(axis=2)
    other = found["class_names"][:, None] != np.array(expected.class_names)
    ours, theirs = linear_sum_assignment(apart + 1e3 * other + 1 - overlap)  # near scores may change places by rounding
    assert not other[ours, theirs].any() and apart[ours, theirs].max() < 0.01
    assert np.abs(found["scores"][ours] - expected.scores[theirs]).max() < 1e-3
    assert overlap[ours, theirs].min() >= 0.99  # half a pixel would cost more of the small ones
    assert (either[ours, theirs] > 0).sum() > 10
    command = [sys.executable, str(EXAMPLE), str(exported[0]), "photo.png", "drawn.png"]
    done = subprocess.run(command, cwd=tmp_path, check=True, timeout=300, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == len(expected) and (tmp_path / "drawn.png").is_file()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_graph_finds_what_the_model_finds(experiment: str, tmp_path: Path) -> None:
    model = B2Inst.from_checkpoint(checkpoint(tmp_path, experiment), "cpu")
    for batch in export_check.batches(model, [photo(90, 120, seed) for seed in range(4)]):
        case = export_check.compare(model, eager(model), batch)
        assert case.instances > 20 and case.unpaired == 0 and case.fits(1e-3)


def test_the_graph_keeps_to_the_limits_of_the_detector(model: B2Inst, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = export_check.batches(model, [photo(200, 150, seed) for seed in range(4)])[1]
    usual = export_check.compare(model, eager(model), batch).instances
    middle = float(eager(model)(batch.pixels, batch.sizes)[1].square().median())
    for changes in ({"pre_nms_topk": 7}, {"detections_per_image": 5}, {"nms_threshold": 0.1},
                    {"score_threshold": middle}):  # fmt: skip
        assert 0 < _limited(model, batch, monkeypatch, changes) < usual
    # Class scores of the toy are 0 or 1, and with the quality none reaches 0.9.
    assert _limited(model, batch, monkeypatch, {"score_threshold": 0.9}) == 0
    assert _limited(model, batch, monkeypatch, {"score_threshold": 0.9, "threshold_with_quality": False}) > 0


def _limited(model: B2Inst, batch: ImageBatch, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> int:
    """How many instances both find with other settings of the detector."""
    with monkeypatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(model.model.detector, name, value)
        case = export_check.compare(model, eager(model), batch)
    assert case.fits(1e-4) and case.unpaired == 0
    return case.instances


def test_the_graph_lists_image_by_image_best_first(model: B2Inst) -> None:
    batch = export_check.batches(model, [photo(200, 150, seed) for seed in range(4)])[1]
    _, scores, _, _, image = eager(model)(batch.pixels, batch.sizes)
    assert image.tolist() == sorted(image.tolist()) and set(image.tolist()) == {0, 1, 2}
    for n in range(3):
        assert (scores[image == n].diff() <= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_becomes_an_onnx_file(variant: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, *VARIANTS[variant])
    report = entry.export(settings(path, tmp_path / "toy.onnx"))
    assert report.fits and all(case.instances > 20 for case in report.cases)


@pytest.mark.slow
def test_a_file_of_torch_export(tmp_path: Path) -> None:
    output = tmp_path / "toy.pt2"
    report = entry.export(settings(checkpoint(tmp_path, "b2inst"), output, format="torch_export"))
    assert report.fits and all(case.instances > 20 for case in report.cases) and report.opset is None
    files = {export_files.EXTRA_FILE: ""}
    module = torch.export.load(output, extra_files=files).module()
    assert json.loads(files[export_files.EXTRA_FILE])["class_names"] == list(CLASSES.values())
    sizes = torch.tensor([[160, 200]])
    with torch.no_grad():
        nothing = module(torch.zeros(1, 3, 160, 224, dtype=torch.uint8), 0 * sizes)
    assert len(nothing[0]) == 0


@pytest.mark.parametrize(
    ("fault", "unpaired"),
    [
        (lambda boxes, scores, labels, masks, image: (boxes + 0.01, scores, labels, masks, image), 0),
        (lambda boxes, scores, labels, masks, image: (boxes, scores * 0.99, labels, masks, image), 0),
        (lambda boxes, scores, labels, masks, image: (boxes, scores, labels, masks.mT, image), 0),
        (lambda *parts: tuple(part[:-8] for part in parts), 8),
        (lambda boxes, scores, labels, masks, image: (boxes, scores, (labels + 1) % 3, masks, image), None),
        (lambda boxes, scores, labels, masks, image: (boxes, scores, labels, masks, 2 - image), None),
    ],
)
def test_the_check_notices(model: B2Inst, fault: Callable[..., Any], unpaired: int | None) -> None:
    batch = export_check.batches(model, [photo(200, 150, seed) for seed in range(4)])[1]
    case = export_check.compare(model, lambda *inputs: fault(*eager(model)(*inputs)), batch)
    assert not case.fits(1e-3) and (case.unpaired == unpaired or (unpaired is None and case.unpaired > 100))


def test_the_exit_code_says_whether_the_file_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["export"])
    case = export_check.Case(1, 64, 64, 20, 0, 1e-5, 1e-5, 1e-5)
    report = export_check.Report("a.onnx", "onnx", 20, 1000, 1e-3, [case], 1.0, 1.0, 1)
    monkeypatch.setattr(entry, "export", lambda config: report)
    entry.main()
    for worse in ({"boxes": 0.002}, {"scores": 0.002}, {"masks": 0.002}, {"unpaired": 1}):
        monkeypatch.setattr(entry, "export", lambda config, w=worse: replace(report, cases=[replace(case, **w)]))
        with pytest.raises(SystemExit, match="1"):
            entry.main()
        assert "differs by more than 0.001" in capsys.readouterr().out
    monkeypatch.setattr(entry, "export", lambda config: replace(report, cases=[replace(case, instances=0)]))
    with pytest.raises(SystemExit, match="1"):
        entry.main()
    assert "nothing was compared; give others with check=PATH" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ckpt": None}, "ckpt: missing; give ckpt=FILE"),
        ({"ckpt": "none.ckpt"}, "ckpt=none.ckpt: no such file; give"),
        ({"format": "tflite"}, "format=tflite: give one of onnx, torch_export"),
        ({"format": "torch_export"}, "ends in .pt2"),
        ({"opset": 11}, "opset=11: give a whole number of at least 18"),
        ({"tolerance": 0}, "tolerance=0: give a number above 0"),
        ({"check": "none.jpg"}, "check=none.jpg: no such file"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    ckpt: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        entry.export({**settings(ckpt, tmp_path / "out/toy.onnx"), **changes})
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_detector_without_a_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, "ablation_a")
    monkeypatch.delattr(FCOS, "select_in_graph")
    with pytest.raises(ConfigError, match="detector FCOS cannot be exported.*fcos or yolact"):
        entry.export(settings(path, tmp_path / "toy.onnx"))
    assert not (tmp_path / "toy.onnx").exists()


def test_a_missing_package_is_named(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = export_files.importlib.util.find_spec
    monkeypatch.setattr(export_files.importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n))
    with pytest.raises(ConfigError, match=r"onnxscript missing; run pip install 'b2inst\[export\]'"):
        entry.export(settings(ckpt, tmp_path / "toy.onnx"))


def test_a_preparation_that_cannot_be_described(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "ablation_e", "+augment.val.flip={_target_: b2inst.data.augment.flip, p: 0.5}")
    with pytest.raises(ConfigError, match="augment.val.flip: HorizontalFlip cannot be described"):
        entry.export(settings(path, tmp_path / "toy.onnx"))
