"""What a configuration may build: both gates by themselves, for each hides a gap of the other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from b2inst.config import CHECKPOINT_TARGETS, ConfigError, build

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
