"""The results in README.md are those of the files, and nothing else of it changes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "update_readme.py"
SPEC = importlib.util.spec_from_file_location("update_readme", PATH)
readme = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readme)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "02_a.png").write_bytes(b"picture")
    scores = {"box/AP": 0.5, "mask/AP": 0.4567, "mask/AP50": 1.0, "mask/AP75": None, "boundary/AP": 0.0}
    (folder / "metrics.json").write_text(json.dumps(scores))
    (folder / "config.yaml").write_text(
        "name: e-demo\ndata: {root: /data/shapes, batch_size: 8, val: {limit: null}}\ntrainer: {max_epochs: 1}\n"
        "schedule: {steps: 1200}\n"
    )
    return folder


def test_the_block_is_replaced_and_nothing_else(run: Path, tmp_path: Path) -> None:
    old = f"# head\n\n{readme.BEGIN}\nold\n{readme.END}\n\ntail\n"
    (tmp_path / "README.md").write_text(old)
    for _ in range(2):
        readme.main([str(run)], root=tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert text.startswith(f"# head\n\n{readme.BEGIN}\n![") and text.endswith(f"|\n{readme.END}\n\ntail\n")
        assert "| `e-demo` | shapes | 1,200 of 8 | 50.0 | 45.7 | 100.0 | - | 0.0 |\n" in text and "old" not in text
    assert (tmp_path / readme.IMAGE).read_bytes() == b"picture"


def test_a_limited_validation_is_stated(run: Path) -> None:
    text = (run / "config.yaml").read_text().replace("limit: null", "limit: 24")
    (run / "config.yaml").write_text(text)
    assert "| shapes, 24 images |" in readme.row(run)
    seen = text.replace("val: {", "val: {annotations: annotations/instances_train2017.json, ")
    (run / "config.yaml").write_text(seen)
    assert "| shapes, 24 training images |" in readme.row(run)


def test_what_is_missing_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="results: begin"):
        readme.main([str(run)], root=tmp_path)
    (tmp_path / "README.md").write_text(f"{readme.BEGIN}\n{readme.END}")
    with pytest.raises(SystemExit):
        readme.main([str(run), "--picture=9*.png"], root=tmp_path)
    assert "holds no 9*.png" in capsys.readouterr().err
    (run / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match="metrics.json"):
        readme.row(run)


def test_the_readme_has_the_markers() -> None:
    assert readme.replace_block((PATH.parents[1] / "README.md").read_text(), readme.BEGIN, readme.END, "")
