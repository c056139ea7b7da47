"""What `make gpu-check` does, on a CPU and with commands that take no time."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_check
import pytest
import torch

STAGES = {"boundary target": 0.01, "backbone": 0.5, "losses": 0.03, "rest": 0.06, "finish": 0.4}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"# Title\n\n{gpu_check.BEGIN}\nold\n{gpu_check.END}\nrest\n")
    return path


def test_without_a_device_nothing_is_run(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "run", None)
    assert gpu_check.main([], page) == 1
    assert "no CUDA device" in capsys.readouterr().err and "old" in page.read_text()


def test_parts_are_written_and_one_that_fails_leaves_the_others(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], limit: int, env: dict[str, str] | None = None) -> str | None:
        commands.append(command)
        if "batch_size=16" in command:
            return "exit code 1"
        output = [Path(text.removeprefix("output=")) for text in command if text.startswith("output=")]
        for folder in output:
            folder.mkdir(parents=True)
            rows = [{"name": "b2inst", "stages": STAGES}, {"name": "peer", "stages": {"rest": 1.0}}]
            (folder / "benchmark.json").write_text(json.dumps({"rows": rows}))
            (folder / "benchmark.md").write_text("| a table |\n")
        return None

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check, "OUTPUT", tmp_path / "gpu")
    assert gpu_check.main(["device=cpu", "rounds=1"], page) == 1
    text = page.read_text()
    assert "old" not in text and text.startswith("# Title") and text.endswith(f"{gpu_check.END}\nrest\n")
    assert text.count("| a table |") == 3 and "Passes of 16 images\n\nNot measured: exit code 1." in text
    assert text.count("`b2inst`: boundary ground truth and losses take 4.0% of the step (goal 3%: missed).") == 3
    assert "`peer`" not in text and "The tests passed" in text
    assert "-m" in commands[0] and "gpu" in commands[0] and all(c[-2] == "rounds=1" for c in commands[1:])


def test_a_command_that_hangs_is_ended() -> None:
    assert gpu_check.run(["sleep", "30"], 1) == "took more than 1 seconds"
    assert gpu_check.run(["false"], 10) == "exit code 1" and gpu_check.run(["true"], 10) is None


def test_the_page_has_the_block() -> None:
    text = gpu_check.PAGE.read_text()
    assert gpu_check.replace_block(text, gpu_check.BEGIN, gpu_check.END, "x") != text
