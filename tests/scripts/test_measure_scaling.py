"""The figures that docs/scaling.md reckons with: those that take no time are looked at here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import measure_scaling  # noqa: E402


def test_what_an_input_takes() -> None:
    (name, held, _), (_, spent, _) = measure_scaling.inputs(1000)
    assert name == "inputs held by a process" and held.endswith("66 bytes")  # 57 letters, 8 for the place, 1 for done
    assert spent.endswith("s a million")


def test_what_results_take(tmp_path: Path) -> None:
    (_, size, _), (_, speed, _) = measure_scaling.results(tmp_path, 4)
    lines = (next((tmp_path / "7").glob("shards/*.jsonl"))).read_bytes().splitlines(keepends=True)
    assert f"{sum(map(len, lines)) / 4e3:.1f} KB with 7" in size and speed.count("MB/s") == 2
    assert (tmp_path / "100" / "results.json").is_file()


def test_the_weights_of_the_model() -> None:
    ((_, size, _),) = measure_scaling.checkpoint()
    assert size == "267 MB"  # 66.8 M numbers of four bytes


def test_without_photos_the_rows_say_so(tmp_path: Path) -> None:
    assert [row[1] for row in measure_scaling.photos(tmp_path)] == ["missing"] * 3


def test_the_page_has_a_place_for_the_table() -> None:
    page = measure_scaling.PAGE.read_text()
    assert page.count(measure_scaling.BEGIN) == page.count(measure_scaling.END) == 1
    assert measure_scaling.table([("a", "b", "c")]).splitlines()[2] == "| a | b | c |"


@pytest.mark.parametrize("name", ["annotations, while read", "annotations, index"])
def test_annotations_are_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_scaling, "IMAGES", 200)
    monkeypatch.setattr(measure_scaling, "INSTANCES", 1450)
    rows = {row[0]: row[1] for row in measure_scaling.annotations(tmp_path)}
    assert float(rows[name].split()[0]) > 0
