"""The notebooks: they run from top to bottom, hold no outputs, and show public functions only."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from toy import TOY, toy_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = [setting for setting in TOY if setting.startswith(("model.", "data.num", "data.pers", "trainer.acc"))]
# 64: with 32 channels an image of 64 pixels leaves GroupNorm one value at stride 128, which it refuses
SMALL += ["model.fpn.channels=64"]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_parameters(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    """Put other values behind the cell of parameters, as papermill does."""
    (place,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assigned = {node.id for node in ast.walk(ast.parse(notebook.cells[place].source)) if isinstance(node, ast.Name)}
    assert values.keys() <= assigned
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source))


def execute(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, *runs: dict[str, Any]) -> list[tuple[str, int]]:
    """Run a notebook with each of some parameters, all at the same time, in an empty folder.

    Returns:
        of each run what it printed, and how many pictures it showed.
    """
    for name, value in (("PYTHONPATH", ROOT / "src"), ("IPYTHONDIR", folder / "ipython"), ("OMP_NUM_THREADS", 1)):
        monkeypatch.setenv(name, str(value))
    notebooks = [nbformat.read(NOTEBOOKS[number - 1], as_version=4) for _ in runs]
    for notebook, values in zip(notebooks, runs, strict=True):
        with_parameters(notebook, {"OUTPUT": str(folder / "out"), **values})

    async def execute_all() -> None:
        place = {"metadata": {"path": str(folder)}}
        await asyncio.gather(*(NotebookClient(n, timeout=300, resources=place).async_execute() for n in notebooks))

    asyncio.run(execute_all())
    results = []
    for notebook in notebooks:
        outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
        printed = "".join(output.text for output in outputs if output.output_type == "stream")
        results.append((printed, sum("image/png" in output.get("data", ()) for output in outputs)))
    return results


def test_boundary_ground_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((printed, pictures),) = execute(1, tmp_path, monkeypatch, {"IMAGES": 6, "IMAGE_SIZE": 64})
    assert "boundary pixels of the image are lost with the union" in printed and pictures == 9


def test_train_on_your_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = {"TRAIN_IMAGES": 8, "VAL_IMAGES": 4, "IMAGE_SIZE": 64, "STEPS": 2, "BATCH_SIZE": 4}
    ((printed, pictures),) = execute(2, tmp_path, monkeypatch, {**toy, "PROGRESS": False, "SETTINGS": SMALL})
    assert "instances_train.json - 8 images" in printed
    assert "| boundary |" in printed and "| star " in printed  # the tables of the evaluation
    assert (tmp_path / "out/run/checkpoints/best.ckpt").is_file()
    assert pictures == 1 + 2 + 2 + 3  # contact sheet, curves, evaluation, predictions


def test_what_bases_and_boundary_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = {"ablation_e": "times as much near a boundary", "ablation_a": "No boundary basis takes part"}
    runs = [
        {"CHECKPOINT": str(toy_checkpoint(tmp_path / f"{name}.ckpt", experiment=name)), "INSTANCE": 1,
         "IMAGE_SIZE": 64, "IMAGES": 2}
        for name in last
    ]  # fmt: skip
    for (printed, pictures), words in zip(execute(3, tmp_path, monkeypatch, *runs), last.values(), strict=True):
        assert words in printed and "instance 1: " in printed and pictures == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert len(cells) > 5
    left = [i for i, cell in enumerate(cells) if cell.outputs or cell.execution_count is not None]
    assert not left, f"{path.name}: cells {left} have outputs; clear them: jupyter nbconvert --clear-output --inplace"


def private_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.startswith("_"))


def test_notebooks_use_public_names_only() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3"]
    for path in NOTEBOOKS:
        source = "\n".join(cell.source for cell in code_cells(nbformat.read(path, as_version=4)))
        assert not list(private_names(source)), path.name
    assert list(private_names("from a._b import _c\nd._e")) == ["_b", "_c", "_e"]
