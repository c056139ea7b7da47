"""Our BlendMask against reference outputs of the published implementation."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import check_parity
import numpy as np
import pytest
import torch
from parity.fixture import SAMPLES, Fixture
from parity.rule import digest, rule_tensor
from parity.stages import Row, all_rows

HERE = Path(__file__).parent
PREFIX = HERE / "blendmask_r18_256x320"
FOLDER = os.environ.get("B2INST_PARITY")
WHOLE = sorted(path.with_suffix("") for path in Path(FOLDER).glob("*.npz")) if FOLDER else []


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture.read(PREFIX)


@pytest.fixture(scope="module")
def rows(fixture: Fixture) -> dict[str, Row]:
    return {row.stage: row for row in all_rows(fixture)}


STAGES = [
    "weights", *(f"FPN P{level}" for level in range(3, 8)), *(f"class logits P{level}" for level in range(3, 8)),
    *(f"box distances P{level}" for level in range(3, 8)), *(f"centerness logits P{level}" for level in range(3, 8)),
    *(f"attention features P{level}" for level in range(3, 8)), "bases", "detections", "detected boxes",
    "detection scores", "attention of detections", "bases in the boxes", "blended logits", "final detections",
    "final classes", "final boxes", "final scores", "final masks", "semantic target", "loss_basis_sem", "loss_mask",
    "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "gradient norms",
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage: str, rows: dict[str, Row]) -> None:
    assert rows[stage].passed, rows[stage]
    assert rows[stage].tolerance <= 1e-3


def test_no_stage_is_forgotten(rows: dict[str, Row]) -> None:
    assert list(rows) == STAGES


# Each deviation of our defaults, and the first stage that shows it.
DEVIATIONS = {
    "model.backbone.preset=torchvision": "FPN P3",
    "model.detector.sizes_of_interest=[32,64,128,256]": "loss_mask",
    "model.assembly.sampling_ratio=2": "bases in the boxes",
    "model.clip_before_pool=true": "final masks",
    "model.semantic.offset=4": "semantic target",
}


@pytest.mark.parametrize("override", DEVIATIONS)
def test_a_deviation_is_seen(override: str, fixture: Fixture) -> None:
    missed = [row.stage for row in all_rows(fixture, None, override) if not row.passed]
    assert missed and missed[0] == DEVIATIONS[override]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It exits with 0, writes its table where it is told to, and exits with 1 when one number is off."""
    page = tmp_path / "page.md"
    page.write_text(f"a\n<!-- parity:{PREFIX.name} -->\nold\n<!-- /parity -->\nz\n")
    assert check_parity.main([str(PREFIX), "--write", str(page)]) == 0
    assert "| final masks |" in page.read_text() and "old" not in page.read_text()
    assert page.read_text().startswith("a\n<!-- parity") and page.read_text().endswith("<!-- /parity -->\nz\n")
    shutil.copyfile(f"{PREFIX}.npz", tmp_path / "changed.npz")
    record = json.loads(Path(f"{PREFIX}.json").read_text())
    record["losses"]["loss_mask"] *= 1.0002
    (tmp_path / "changed.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert check_parity.main([str(tmp_path / "changed")]) == 1
    assert "missed: loss_mask\n" in capsys.readouterr().out
    assert check_parity.main([str(tmp_path / "absent")]) == 2
    assert "absent.npz: no such file" in capsys.readouterr().err
    (tmp_path / "changed.npz").write_bytes(b"PK\x03\x04 torn")
    assert check_parity.main([str(tmp_path / "changed")]) == 2
    assert "holds no reference outputs" in capsys.readouterr().err


def test_errors_of_arrays(fixture: Fixture) -> None:
    boxes = fixture["det_boxes"]
    assert fixture.error("det_boxes", boxes) == 0
    rms = float(boxes.square().mean().sqrt())
    moved = boxes.clone()
    moved[3, 1] += rms / 1000
    assert fixture.error("det_boxes", moved) == pytest.approx(1e-3, rel=1e-2)
    assert fixture.error("det_boxes", boxes[:-1]) == float("inf")
    assert fixture.error("det_boxes", boxes * float("nan")) == float("inf")
    assert fixture.shape("bases") == (1, 4, 64, 80) and fixture["bases"].shape == (SAMPLES,)


def test_a_prefix_without_files() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz: no such file"):
        Fixture.read(HERE / "nothing")


def test_the_rule_gives_values_of_half_precision_by_key_and_shape() -> None:
    tensor = rule_tensor("top_layer.weight", (8, 4, 3, 3), "conv3.norm")
    assert torch.equal(tensor, tensor.half().float()) and tensor.dtype == torch.float32
    assert digest(tensor) == digest(rule_tensor("top_layer.weight", (8, 4, 3, 3), "conv2.norm"))
    assert digest(tensor) != digest(rule_tensor("top_layer.weights", (8, 4, 3, 3), "conv3.norm"))


def test_the_fixture_is_small() -> None:
    assert sum(path.stat().st_size for path in HERE.glob("blendmask_r18_256x320.*")) < 2_000_000


@pytest.mark.skipif(not WHOLE, reason="B2INST_PARITY names no folder with whole reference outputs (*.npz and *.json)")
@pytest.mark.parametrize("prefix", WHOLE, ids=lambda prefix: prefix.name)
def test_whole_reference_outputs(prefix: Path) -> None:
    whole = Fixture.read(prefix)
    assert not any(name.endswith("@shape") for name in whole.arrays)
    assert [row for row in all_rows(whole) if not row.passed] == []


def test_the_small_fixture_is_a_part_of_the_whole_one() -> None:
    if PREFIX.name not in [prefix.name for prefix in WHOLE]:
        pytest.skip(f"B2INST_PARITY names no folder with {PREFIX.name}.npz")
    small, whole = Fixture.read(PREFIX), Fixture.read(Path(FOLDER or "") / PREFIX.name)
    for name, array in whole.arrays.items():
        assert small.shape(name) == array.shape
        if np.issubdtype(array.dtype, np.floating):
            assert small.error(name, torch.from_numpy(array)) == 0
