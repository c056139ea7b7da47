"""What a benchmark found, as text."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

HEAD = ("model", "seconds", "quartiles", "images/s", "ratio", "of rounds", "parameters", "GFLOP", "MiB", "found")


@dataclass(frozen=True)
class Row:
    """What was measured of one model.

    Attributes:
        name: of the model.
        seconds: of each round.
        stages: median seconds of each stage.
        parameters: how many it has.
        flops: floating point operations of a pass; None in a training.
        memory: MiB at most, see `timing.peak_memory`.
        detections: in all images of a pass; 0 in a training.
    """

    name: str
    seconds: list[float]
    stages: dict[str, float]
    parameters: int
    flops: int | None
    memory: float
    detections: int


@dataclass(frozen=True)
class Report:
    """A benchmark.

    Attributes:
        mode: `inference` or `train`.
        images: of a pass or step.
        reference: name of the row that ratios refer to.
        rows: of all models.
        about: the settings and the machine.
    """

    mode: str
    images: int
    reference: str
    rows: list[Row]
    about: dict[str, Any]

    def ratios(self, row: Row) -> list[float]:
        """Of each round the seconds of a row in those of the reference."""
        reference = next(other for other in self.rows if other.name == self.reference)
        return [ours / its for ours, its in zip(row.seconds, reference.seconds, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Plain values; ratios are medians over the rounds."""
        rows = [{**asdict(row), "ratio": statistics.median(self.ratios(row))} for row in self.rows]
        return {
            "mode": self.mode,
            "images": self.images,
            "reference": self.reference,
            "about": self.about,
            "rows": rows,
        }

    def table(self) -> list[list[str]]:
        """Head and one row a model."""
        return [list(HEAD), *(self._cells(row) for row in self.rows)]

    def stage_table(self) -> list[list[str]]:
        """Head and one row a model, in milliseconds; a dash where it has no such stage."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.stages if name not in ("rest", "finish")))
        names += ["rest", "finish"]
        cells = [[row.name, *(f"{1000 * row.stages[n]:.0f}" if n in row.stages else "-" for n in names)]
                 for row in self.rows]  # fmt: skip
        return [["model", *names], *cells]

    def markdown(self) -> str:
        """Both tables, and what they were measured with."""
        about = ", ".join(f"{key} {value}" for key, value in self.about.items())
        stages = "Milliseconds of each stage:"
        return "\n".join([_markdown(self.table()), "", stages, "", _markdown(self.stage_table()), "", about + "."])

    def _cells(self, row: Row) -> list[str]:
        low, middle, high = _quartiles(row.seconds)
        ratios = sorted(self.ratios(row))
        return [
            row.name, f"{middle:.3g}", f"{low:.3g} to {high:.3g}", f"{self.images / middle:.3g}",
            f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            f"{row.parameters / 1e6:.1f} M", "-" if row.flops is None else f"{row.flops / 1e9:.0f}",
            f"{row.memory:.0f}", str(row.detections),
        ]  # fmt: skip


def aligned(table: list[list[str]]) -> str:
    """A table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)


def _markdown(table: list[list[str]]) -> str:
    head, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([head, f"|{'---|' * len(table[0])}", *rows])


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
