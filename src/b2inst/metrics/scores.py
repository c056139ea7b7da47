"""The numbers of an evaluation, as a table and as JSON."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from b2inst.writing import whole_file

F_COLUMNS = ("ODS", "OIS", "threshold", "precision", "recall", "class_ODS", "class_OIS")


@dataclass(frozen=True)
class Scores:
    """Average precision and recall as fractions in [0, 1]; NaN (null in JSON) where there is no such ground truth.

    Attributes:
        metrics: `kind/name`, the kinds `box`, `mask`, `boundary` and COCO's 12 names AP, AP50, AP75, APs, APm,
            APl, AR1, AR10, AR100, ARs, ARm, ARl; with masks also `mask/best_threshold`, the score threshold with the
            largest F1 of masks at IoU 0.5, and `mask/best_f1`. Where the boundary basis is scored also `boundary_f/ODS`
            and the others of `BoundaryF.compute`.
        per_class: class name -> `box/AP`, `mask/AP`, `mask/AP50`, `mask/AP75`, `boundary/AP` (those of the kinds
            evaluated) and `instances`, the number of objects that are not crowds.
        errors: `mask`, `boundary` -> `all`, `small`, `medium`, `large` -> what is found, missed and wrong with the best
            threshold, see `operating_point.errors_by_size`.
        curves: kind -> `AP`, `AP50`, `AP75` -> precision at the 101 recalls 0, 0.01, ..., 1.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def joined(self, metrics: dict[str, float], per_class: dict[str, dict[str, float]]) -> Scores:
        """Return these scores with others of the same classes beside them."""
        rows = {name: {**row, **per_class.get(name, {})} for name, row in self.per_class.items()}
        return replace(self, metrics={**self.metrics, **metrics}, per_class=rows)

    def table(self) -> str:
        """Return the summary as text, one row for each kind, in percent, and the boundary F-measure if there is one."""
        recalls = [name for name in self._names() if re.fullmatch(r"AR\d+", name)]
        columns = ["AP", "AP50", "AP75", "APs", "APm", "APl", *recalls[-1:]]
        kinds = [key.removesuffix("/AP") for key in self.metrics if key.endswith("/AP")]
        rows = [[kind, *(_percent(self.metrics.get(f"{kind}/{name}")) for name in columns)] for kind in kinds]
        text = _render(["percent", *columns], rows)
        names = [name for name in F_COLUMNS if f"boundary_f/{name}" in self.metrics]
        if not names:
            return text
        row = ["boundary_f", *(_percent(self.metrics[f"boundary_f/{name}"]) for name in names)]
        return "\n\n".join([text, _render(["percent", *names], [row])])

    def class_table(self) -> str:
        """Return the scores of each class as text, in percent, in the order of the category ids."""
        columns = list(dict.fromkeys(name for row in self.per_class.values() for name in row if name != "instances"))
        rows = [
            [name, str(int(row.get("instances", 0))), *(_percent(row.get(column)) for column in columns)]
            for name, row in self.per_class.items()
        ]
        return _render(["class", "instances", *(column.replace("/", " ") for column in columns)], rows)

    def error_table(self) -> str:
        """Return the errors by size as text, one row for each kind and size; ratios in percent."""
        counts, ratios = ("objects", "found", "missed", "false"), ("precision", "recall", "overlap")
        rows = [
            [f"{kind} {size}", *(str(int(row[name])) for name in counts), *(_percent(row[name]) for name in ratios)]
            for kind, sizes in self.errors.items()
            for size, row in sizes.items()
        ]
        return _render(["at IoU 0.5", *counts, *ratios], rows)

    def to_json(self, path: str | Path) -> None:
        """Write the metrics as one flat JSON object with `per_class` and `errors` beside them; folders are made."""
        content = _json_numbers(self.metrics)
        write_json({**content, **_json_numbers({"per_class": self.per_class, "errors": self.errors})}, path, indent=2)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(key.split("/")[1] for key in self.metrics))


def write_json(content: Any, path: str | Path, indent: int | None = None) -> None:
    """Write JSON so that a reader never sees half a file: beside the target first, then renamed."""
    with whole_file(path) as file:
        json.dump(content, file, indent=indent, allow_nan=False)


def _json_numbers(value: Any) -> Any:
    """JSON has no NaN: null takes its place."""
    if isinstance(value, dict):
        return {key: _json_numbers(entry) for key, entry in value.items()}
    return None if math.isnan(value) else value


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _render(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=box.MARKDOWN)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    # wide enough for any row: rich would cut cells off at the width of a terminal
    width = sum(max(len(cell) for cell in cells) + 3 for cells in zip(columns, *rows, strict=True)) + 1
    # in a notebook rich would show the table at once instead of writing it into the text
    console = Console(file=text, width=width, markup=False, highlight=False, color_system=None, force_jupyter=False)
    console.print(table)
    # this kind of table has empty first and last lines
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
