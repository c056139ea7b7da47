"""What `b2inst.verify` found: counts, a table with one row for each kind of problem, and a JSON file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from b2inst.data.problems import KINDS, Problem, Severity, Tally, severity
from b2inst.metrics.scores import write_json

FILE_WIDTH = 160  # characters per line where the output is no terminal
STYLES = {"error": "bold red", "warning": "yellow"}


@dataclass
class SplitReport:
    """The findings in one split.

    Attributes:
        keep: examples kept of each kind of problem.
        tally: the problems.
        annotations: the file, None if it was not found.
        images: the folder, None if it was not found.
        counts: sizes of the set by name.
        categories: names by id.
        paths: normalized paths of the image files that the records name.
    """

    keep: int
    tally: Tally = field(init=False)
    annotations: Path | None = None
    images: Path | None = None
    counts: dict[str, int] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tally = Tally(self.keep)


@dataclass
class Report:
    """The findings in all splits.

    Attributes:
        splits: by name.
        files: that were written.
    """

    splits: dict[str, SplitReport] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def total(self, wanted: Severity) -> int:
        """The number of problems of a severity."""
        return sum(part.tally.total(wanted) for part in self.splits.values())

    def kinds(self) -> list[str]:
        """The kinds of problems that were found, errors first."""
        return [kind for kind in KINDS if any(part.tally.counts[kind] for part in self.splits.values())]

    def examples(self, kind: str) -> list[Problem]:
        """The first problems of a kind, of all splits."""
        return [problem for part in self.splits.values() for problem in part.tally.examples.get(kind, [])]

    def show(self, console: Console | None = None) -> None:
        """Print counts, table and result."""
        console = console or Console(width=None if sys.stdout.isatty() else FILE_WIDTH, highlight=False)
        for split, part in self.splits.items():
            counts = ", ".join(f"{count:,} {name}" for name, count in part.counts.items())
            places = (str(part.annotations or "no annotation file"), str(part.images or "no image folder"))
            console.print(f"[bold]{split}[/]: {escape(', '.join(places))}")
            console.print(f"  {counts or 'nothing could be read'}")
        if self.kinds():
            console.print(self._table())
        result = [f"{self.total(wanted):,} {wanted}{'' if self.total(wanted) == 1 else 's'}" for wanted in STYLES]
        console.print(f"[{STYLES['error'] if self.total('error') else 'bold green'}]{', '.join(result)}[/]")
        for path in self.files:
            console.print(f"  {escape(str(path))}", soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE, padding=(0, 1))
        for name in ("", "problem", *self.splits):
            table.add_column(name, justify="right" if name in self.splits else "left", no_wrap=True)
        table.add_column("first", ratio=3, overflow="fold")
        table.add_column("remedy", ratio=2)
        for kind in self.kinds():
            style = STYLES[severity(kind)]
            counts = [f"{part.tally.counts[kind]:,}" for part in self.splits.values()]
            examples = self.examples(kind)
            first = "\n".join(dict.fromkeys(self._short(problem) for problem in examples[:2]))
            table.add_row(f"[{style}]{severity(kind)}[/]", kind, *counts, escape(first), escape(examples[0].remedy))
        return table

    def _short(self, problem: Problem) -> str:
        """A problem without the folders, which the lines above the table name, and without its remedy."""
        where = problem.where
        for part in self.splits.values():
            for path in filter(None, (part.annotations, part.images)):
                where = where.replace(str(path), path.name)
        return f"{where}: {problem.what}"

    def to_json(self, path: Path) -> None:
        """Write everything; folders are made."""
        splits = {
            split: {
                "annotations": part.annotations and str(part.annotations),
                "images": part.images and str(part.images),
                "counts": part.counts,
            }
            for split, part in self.splits.items()
        }
        content = {"errors": self.total("error"), "warnings": self.total("warning"), "splits": splits}
        write_json({**content, "problems": [self._entry(kind) for kind in self.kinds()]}, path, indent=2)

    def _entry(self, kind: str) -> dict[str, Any]:
        counts = {split: part.tally.counts[kind] for split, part in self.splits.items()}
        examples = [str(problem) for problem in self.examples(kind)]
        return {"kind": kind, "severity": severity(kind), "counts": counts, "examples": examples}
