"""The command, from a weights file to numbers and back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from b2inst.data import shapes
from b2inst.interop.adelaidet import export_adelaidet, load_adelaidet
from b2inst.interop.coco_classes import COCO
from b2inst.interop.convert import convert, main
from b2inst.lit import LitSegmenter
from b2inst.models.assembly.dynamic import DynamicConvolutions
from b2inst.models.basis import BasisHead, no_semantic
from b2inst.models.boundary import GlobalBoundary
from interop.small import blendmask, detectron2_state, same, weights
from models import build
from toy import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "set"
    shapes.ensure(folder, train_images=1, val_images=3, size=64)
    return folder


@pytest.fixture(scope="module")
def annotations(root: Path) -> Path:
    return root / "annotations" / "instances_val.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BlendMask with as many classes as the shapes, as detectron2's trainer saves one."""
    path = tmp_path_factory.mktemp("weights") / "in.pth"
    torch.save(
        {"model": {k: v.numpy() for k, v in weights(num_classes=len(shapes.CATEGORIES)).items()}, "iteration": 3}, path
    )
    return path


def test_a_converted_file_is_evaluated_and_exported(
    source: Path, annotations: Path, root: Path, tmp_path: Path
) -> None:
    done = run("interop.convert", str(source), "out.ckpt", f"--annotations={annotations}",
               "model.assembly.mask_size=28", cwd=tmp_path)  # fmt: skip
    assert "tensors loaded, 0 left over" in done.stdout and "start afresh" not in done.stdout
    module = LitSegmenter.from_checkpoint(tmp_path / "out.ckpt")
    model = blendmask(num_classes=len(shapes.CATEGORIES)).eval()
    load_adelaidet(model, weights(num_classes=len(shapes.CATEGORIES)))
    images = build.images(1, 128, 160)
    with torch.no_grad():
        (found,), (wanted,) = (m.detect(m(images), images) for m in (module.model, model))
    assert len(wanted) > 1 and torch.equal(found.boxes, wanted.boxes) and torch.equal(found.labels, wanted.labels)
    assert LitSegmenter.load_from_checkpoint(tmp_path / "out.ckpt", map_location="cpu").class_names

    run("evaluate", "ckpt=out.ckpt", f"data.root={root}", "data.num_workers=0", "data.val_batch_size=1", "pictures=0",
        "accelerator=cpu", "output=m.json", "data.limit=1", cwd=tmp_path)  # fmt: skip
    assert "mask/AP" in json.loads((tmp_path / "m.json").read_text())

    run("interop.convert", "out.ckpt", "back.pth", cwd=tmp_path)
    assert same(torch.load(tmp_path / "back.pth", weights_only=True), weights(num_classes=len(shapes.CATEGORIES)))


def test_into_another_method(source: Path, annotations: Path, tmp_path: Path) -> None:
    said = convert(source, tmp_path / "b.ckpt", ["experiment=ablation_e"], annotations=annotations)
    assert "4 start afresh: rows of the boundary basis" in said
    module = LitSegmenter.from_checkpoint(tmp_path / "b.ckpt")
    assert isinstance(module.model.boundary, GlobalBoundary)
    assert module.model.clip_before_pool and module.config["model"]["backbone"]["preset"] == "msra"


def test_classes(source: Path, annotations: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=f"has {len(shapes.CATEGORIES)} classes, and there are 80.*--annotations FILE.*--reset-classifier",
    ):
        convert(source, tmp_path / "c.ckpt")
    said = convert(source, tmp_path / "c.ckpt", reset_classifier=True)
    assert "4 start afresh: another number of classes" in said
    module = LitSegmenter.from_checkpoint(tmp_path / "c.ckpt")
    assert module.config["category_ids"] == list(COCO) and module.class_names[79] == "toothbrush"
    convert(source, tmp_path / "c.ckpt", annotations=annotations)
    categories = json.loads(annotations.read_text())["categories"]
    assert LitSegmenter.from_checkpoint(tmp_path / "c.ckpt").config["category_ids"] == sorted(
        c["id"] for c in categories
    )
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="broken.json: cannot be read as COCO annotations"):
        convert(source, tmp_path / "c.ckpt", annotations=tmp_path / "broken.json")


def test_an_fcos(annotations: Path, tmp_path: Path) -> None:
    model = blendmask(num_classes=len(shapes.CATEGORIES), detector={"use_scale": True})
    torch.save(export_adelaidet(model, detector_only=True), tmp_path / "fcos.pth")
    convert(tmp_path / "fcos.pth", tmp_path / "fcos.ckpt", annotations=annotations)
    detector = LitSegmenter.from_checkpoint(tmp_path / "fcos.ckpt").model.detector
    assert not detector.threshold_with_quality and torch.equal(detector.scales, model.detector.scales)


@pytest.mark.parametrize("settings", [[], ["experiment=b2inst"]], ids=str)
def test_a_condinst(settings: list[str], annotations: Path, tmp_path: Path) -> None:
    model = blendmask(
        num_classes=len(shapes.CATEGORIES), assembly=DynamicConvolutions(), num_bases=8, semantic=no_semantic,
        basis=partial(BasisHead, channels=16, num_convs=3, aligned=True), detector={"use_scale": True},
    )  # fmt: skip
    of_training = {
        "mask_branch.logits.weight": torch.zeros(80, 16, 1, 1),
        "mask_branch.seg_head.0.0.weight": torch.zeros(16, 256, 3, 3),
    }
    torch.save(export_adelaidet(model) | of_training, tmp_path / "c.pth")
    said = convert(tmp_path / "c.pth", tmp_path / "c.ckpt", settings, annotations=annotations)
    assert f"{len(of_training)} left over" in said
    loaded = LitSegmenter.from_checkpoint(tmp_path / "c.ckpt").model
    assert isinstance(loaded.assembly, DynamicConvolutions) and loaded.num_bases == 8 and loaded.basis.aligned
    assert loaded.basis.num_bases == (9 if settings else 8) and len(loaded.basis.tower) == 3
    assert torch.equal(loaded.basis.bases.weight[:8], model.basis.bases.weight)
    assert torch.equal(loaded.detector.params.bias[:2], model.detector.params.bias[:2])


def test_a_backbone(tmp_path: Path) -> None:
    torch.save(detectron2_state(), tmp_path / "R.pkl")
    assert "model.backbone.preset=msra" in convert(tmp_path / "R.pkl", tmp_path / "R.pth")
    assert "layer1.0.conv1.weight" in torch.load(tmp_path / "R.pth", weights_only=True)


REFUSED = {
    "conv2_offset": ({"backbone.bottom_up.res3.0.conv2_offset.weight": torch.zeros(1)}, "deformable convolutions"),
    "panoptic": ({"sem_seg_head.predictor.weight": torch.zeros(1)}, "a panoptic model"),
    "mask_branch": (
        {"mask_branch.tower.4.weight": torch.zeros(1)},
        "but not in this model: mask_branch.tower.4.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_fit(
    name: str, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added, message = REFUSED[name]
    torch.save(weights(num_classes=len(shapes.CATEGORIES)) | added, tmp_path / "x.pth")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "x.pth"), str(tmp_path / "x.ckpt"), f"--annotations={annotations}"])
    assert stopped.value.code == 1 and message in capsys.readouterr().err
    assert not (tmp_path / "x.ckpt").exists()


def test_something_else(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="none of FCOS, BlendMask and CondInst.*lacks"):
        convert(tmp_path / "x.pth", tmp_path / "x.ckpt")


def test_settings_that_there_are_not(
    source: Path, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(source), str(tmp_path / "x.ckpt"), "model.num_basis=5", f"--annotations={annotations}"])
    assert "num_basis" in capsys.readouterr().err
