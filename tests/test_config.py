"""What a configuration may build: both gates by themselves, for each hides a gap of the other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException

from b2inst.config import CHECKPOINT_TARGETS, ConfigError, build
from b2inst.data.errors import DataError
from b2inst.losses.bce import BinaryCrossEntropy

FAR = {"_target_": "far_away_part.thing"}


def test_what_is_allowed_is_built() -> None:
    term = build({"_target_": "b2inst.losses.bce.BinaryCrossEntropy", "weight": 2.0}, CHECKPOINT_TARGETS)
    assert term.weight_at(0) == 2.0


@pytest.mark.parametrize(
    "node",
    [
        FAR,
        {"_target_": "b2inst.losses.bce.BinaryCrossEntropy", "weight": FAR},
        {"_target_": "b2inst.losses.bce.BinaryCrossEntropy", "weight": [FAR]},
    ],
    ids=["outermost", "argument", "in a list"],
)
def test_a_module_outside_of_the_prefixes_is_not_even_imported(
    node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing runs code; and what it then has may be one of the classes that are allowed."""
    (tmp_path / "far_away_part.py").write_text("from b2inst.losses.bce import BinaryCrossEntropy as thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"'far_away_part\.thing' is refused"):
        build(node, CHECKPOINT_TARGETS)
    assert "far_away_part" not in sys.modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of a user, with a loss of its own."""
    (tmp_path / "mine_for_tests").mkdir()
    (tmp_path / "mine_for_tests" / "__init__.py").touch()
    text = "from b2inst.losses.bce import BinaryCrossEntropy\nimport os\n\nclass Mine(BinaryCrossEntropy):\n    pass\n"
    (tmp_path / "mine_for_tests" / "part.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.startswith("mine_for_tests")]:
        del sys.modules[name]


def test_parts_of_a_package_that_the_user_names_are_built(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"_target_": "mine_for_tests.part.Mine", "weight": 3.0}
    with pytest.raises(ConfigError, match="if you trust its package, name it in the environment variable B2INST_PARTS"):
        build(node, CHECKPOINT_TARGETS)
    monkeypatch.setenv("B2INST_PARTS", "other, mine_for_tests")
    assert build(node, CHECKPOINT_TARGETS).weight_at(0) == 3.0
    for target in (
        "mine_for_tests.part.os.getcwd",
        "mine_for_tests.part.os",
        "mine_for_tests_too.part.Mine",
        "os.getcwd",
    ):
        with pytest.raises(ConfigError, match="is refused"):
            build({"_target_": target}, CHECKPOINT_TARGETS)


@pytest.mark.parametrize("value", ["mine/part", "*", "mine..part", "."])
def test_what_is_no_package_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B2INST_PARTS", value)
    with pytest.raises(ConfigError, match="B2INST_PARTS: .* is no name of a package"):
        build({"_target_": "b2inst.losses.bce.BinaryCrossEntropy"}, CHECKPOINT_TARGETS)


@pytest.mark.parametrize("target", ["torch.optim.lr_scheduler.partial", "torch.optim.swa_utils.deepcopy"])
def test_what_an_allowed_module_has_imported_is_refused(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name)), "the example is gone; take another one"
    with pytest.raises(ConfigError, match="is refused"):
        build({"_target_": target}, CHECKPOINT_TARGETS)


@pytest.mark.parametrize(
    "target",
    ["", "torch", "torch.optim.", "torch.optim..SGD", "torch.optimist.SGD", "b2inst.models.fcos.torch", 7, None],
)
def test_what_is_no_target_is_refused(target: Any) -> None:
    with pytest.raises(ConfigError, match="is refused"):
        build({"_target_": target}, CHECKPOINT_TARGETS)


def test_what_would_make_further_targets_is_refused() -> None:
    with pytest.raises(ConfigError, match="values have to be resolved"):
        build({"_target_": "b2inst.losses.bce.BinaryCrossEntropy", "weight": ["${oc.env:HOME}"]}, CHECKPOINT_TARGETS)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "b2inst.losses.edge_agreement.EdgeAgreement", "kernel": "nose"}, r"model\.losses\.edge: .*nose"),
        ({"_target_": "b2inst.losses.edge_agreement.EdgeAgreement", "power": "x"}, r"model\.losses\.edge: "),
    ],
)
def test_what_a_part_refuses_is_told_with_its_place(node: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(node, CHECKPOINT_TARGETS, at="model.losses.edge")


def test_what_is_wrong_with_data_stays_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match=r"mine\.txt"):
        build({"_target_": "b2inst.data.shapes.ensure", "root": str(tmp_path)}, at="data.prepare")


def test_a_mistake_of_the_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise KeyError("of the code")

    monkeypatch.setattr(BinaryCrossEntropy, "__init__", fail)
    with pytest.raises(InstantiationException, match="of the code"):
        build({"_target_": "b2inst.losses.bce.BinaryCrossEntropy"}, CHECKPOINT_TARGETS)
