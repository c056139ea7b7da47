"""The examples of docs/extending.md, taken from the page: they train, detect, and pass their own tests."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import b2inst.losses
import b2inst.models.assembly
from b2inst.config import CHECKPOINT_TARGETS, ConfigError, build
from b2inst.config_check import check
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.models.assembly.base import Assembly
from b2inst.models.segmenter import Segmenter
from b2inst.paths import config_dir
from models import build as small
from toy import toy_config

PAGE = Path(__file__).parents[1] / "docs/extending.md"
PLACES = {
    "profiles.yaml": "conf/assembly",
    "tversky.yaml": "conf/loss",
    "profiles.py": "assembly",
    "tversky.py": "losses",
}
BOUNDARIES = sorted(path.stem for path in (config_dir() / "boundary").glob("*.yaml"))
SCORINGS = sorted(path.stem for path in (config_dir() / "scoring").glob("*.yaml"))
SMALL = ("model.num_classes=3", "model.fpn.channels=64", "model.semantic.channels=32")


def blocks() -> dict[str, str]:
    """The files that the page shows, by name."""
    found = re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page in a folder, and their classes where their `_target_` says."""
    folder = tmp_path_factory.mktemp("extending")
    for name, text in blocks().items():
        place = folder / PLACES.get(name, "tests")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b2inst.models.assembly, "__path__", [*b2inst.models.assembly.__path__, str(folder / "assembly")])
        patch.setattr(b2inst.losses, "__path__", [*b2inst.losses.__path__, str(folder / "losses")])
        yield folder
    for name in ("b2inst.models.assembly.profiles", "b2inst.losses.tversky"):
        sys.modules.pop(name, None)


def composed(folder: Path, *overrides: str) -> dict:
    """A small run with the configuration files of the page."""
    path = f"hydra.searchpath=[file://{folder / 'conf'}]"
    return toy_config(folder / "data", folder / "run", path, "assembly@model.assembly=profiles", *SMALL, *overrides)


def made(config: dict) -> Segmenter:
    torch.manual_seed(0)
    return build(config["model"], CHECKPOINT_TARGETS).train()


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"extending_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def learn_and_detect(model: Segmenter) -> dict[str, torch.Tensor]:
    """One step on two images, then what is found in them; returns the losses."""
    given = BoundaryTarget(stride=model.assembly.basis_stride)(small.batch(small.BATCHES["normal"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model.detector.params.weight.detach().clone()
    losses, _ = model.losses(model(given.images), given)
    model.total_loss(losses).backward()
    optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    assert not torch.equal(model.detector.params.weight, before)
    model.eval()
    nn.init.zeros_(model.detector.cls_logits.bias)
    nn.init.constant_(model.detector.box_pred.bias, 3.0)
    with torch.no_grad():
        found = model.detect(model(given.images), given.images)
    for detections in found:
        assert len(detections) > 3 and detections.mask_logits.shape == (len(detections), 28, 28)
        assert detections.mask_logits.std() > 0 and detections.scores.isfinite().all()
    return losses


def test_the_page_shows_what_is_tested() -> None:
    assert set(blocks()) == {*PLACES, "test_profiles.py", "test_tversky.py"}


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_assembly_learns_and_detects(folder: Path, boundary: str, scoring: str) -> None:
    chosen = [f"boundary@model.boundary={boundary}", f"scoring@model.scoring={scoring}"]
    if scoring in ("boundary", "iou", "iou_boundary", "paper"):
        chosen += ["model.scoring.fc_channels=16", "model.scoring.channels=16"]
    model = made(composed(folder, *chosen))
    assert type(model.assembly).__name__ == "Profiles"
    bases = 2 + (boundary != "none")
    assert model.detector.params.out_channels == 14 + bases and model.basis.bases.out_channels == bases
    losses = learn_and_detect(model)
    assert any(name.startswith("boundary_") for name in losses) == (boundary in ("global", "instance"))
    assert any(name.startswith("score_") for name in losses) == (scoring != "none")


def test_the_term_is_one_of_the_losses(folder: Path) -> None:
    model = made(composed(folder, "scoring@model.scoring=none", "loss@model.losses=[bce,tversky]"))
    assert type(model.terms["tversky"]).__name__ == "Tversky"
    losses = learn_and_detect(model)
    assert {name for name in losses if name.startswith("boundary_")} == {"boundary_bce", "boundary_tversky"}
    assert 0 < losses["boundary_tversky"] < 1


def test_the_checker_accepts_both(folder: Path) -> None:
    check(composed(folder, "loss@model.losses=[bce,tversky]"))


@pytest.mark.parametrize("name", ["test_profiles.py", "test_tversky.py"])
def test_their_own_tests_pass(folder: Path, name: str) -> None:
    tests = [value for key, value in vars(loaded(folder / "tests" / name)).items() if key.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_their_files_have_every_argument_with_its_default(folder: Path) -> None:
    config = composed(folder, "loss@model.losses=[tversky]", "model.assembly.mask_size=56")["model"]
    for node, count in ((config["assembly"], 4), (config["losses"]["tversky"], 5)):
        module, _, name = node["_target_"].rpartition(".")
        given = {key: value for key, value in node.items() if key != "_target_"}
        made_without = getattr(importlib.import_module(module), name)()
        assert len(given) == count and given == {key: getattr(made_without, key) for key in given}


def test_what_the_page_says_of_other_packages(folder: Path) -> None:
    """A class from elsewhere is refused by the checker, with the words of the page, and by the builder."""
    target = "my_package.Profiles"
    config = composed(folder)
    config["model"]["assembly"]["_target_"] = target
    with pytest.raises(ConfigError) as refused:
        check(config)
    wanted = f"model.assembly._target_: '{target}' is refused; allowed prefixes: b2inst.models., b2inst.losses., "
    assert wanted in str(refused.value) and f"{wanted}..." in PAGE.read_text()
    with pytest.raises(ConfigError, match="_target_ 'my_package.Profiles' is refused"):
        made(config)
    for prefix in CHECKPOINT_TARGETS:
        assert f"`{prefix}`" in PAGE.read_text()


def test_a_part_from_elsewhere_works_without_a_configuration(folder: Path) -> None:
    """The class of the page as one that no prefix knows, given to the segmenter."""
    mine: Assembly = loaded(folder / "assembly/profiles.py").Profiles(mask_size=28)
    assert type(mine).__module__ == "extending_profiles"
    learn_and_detect(small.segmenter(mode="iou", assembly=mine, num_bases=None))
