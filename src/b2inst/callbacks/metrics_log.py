"""metrics.csv: one table for a run, however often it was interrupted."""

from __future__ import annotations

import csv
import itertools
import os
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from b2inst.writing import may_fail, whole_file

Row = dict[str, Any]


class MetricsLog(Logger):
    """Appends to `metrics.csv`, and rewrites it where a new metric needs a column.

    Unlike Lightning's CSVLogger it goes on with the file that is there, and a kill or a full disk costs no line that
    was written. Lines wait for a flush, which comes with each checkpoint.

    Args:
        folder: where the table goes.
        flush_every: lines that wait at most.
    """

    def __init__(self, folder: str, flush_every: int = 100) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.flush_every = flush_every
        self._rows: list[Row] = []
        self._columns: list[str] | None = None  # of the file, once it has been looked at

    @property
    def name(self) -> str:
        """None needed, the folder tells the run."""
        return ""

    @property
    def version(self) -> str:
        """None needed, the folder tells the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing; they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a line."""
        self._rows.append({**{name: float(value) for name, value in metrics.items()}, "step": step})
        if len(self._rows) >= self.flush_every:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the lines that wait; where that fails, they wait for the next time."""
        if not self._rows:
            return
        with may_fail("metrics.csv", "its lines are kept in memory and written when there is room"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._columns is None:
                self._columns = _columns(self.path)
            columns = sorted({*self._columns, *itertools.chain(*self._rows)})
            if columns != self._columns:
                write(self.path, columns, itertools.chain(read(self.path), self._rows))
            else:
                _append(self.path, columns, self._rows)
            self._columns, self._rows = columns, []


def read(path: Path) -> list[Row]:
    """The lines of a table; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: list[str], rows: Iterable[Row]) -> None:
    """Write a table; a reader never sees half of it."""
    with whole_file(path) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _append(path: Path, columns: list[str], rows: list[Row]) -> None:
    """Add lines, all or none of them."""
    size = path.stat().st_size
    try:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerows(rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.truncate(path, size)
        raise


def _columns(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def go_on(path: Path, step: int, keep: bool, validation: bool = False) -> None:
    """Cut a table off where a checkpoint goes on.

    Args:
        path: of the table, which need not be there.
        step: lines from this one on are left out; they come again.
        keep: whether the whole table stays, as metrics.1.csv, ...
        validation: whether that of the step before comes first; it may have ended and been logged, and not been saved.
    """
    if not path.is_file():
        return
    columns, rows = _columns(path), read(path)
    if not path.read_bytes().endswith(b"\n"):  # a kill has cut the last line off, and half of its step is a step too
        del rows[-1:]
    if keep:
        put_aside(path)
    write(path, columns, (row for row in rows if _is_kept(row, step, validation)))


def _is_kept(row: Row, step: int, validation: bool) -> bool:
    """Whether a line does not come again; see `go_on`."""
    if not (row.get("step") or "").isdigit():
        return False
    number = int(row["step"])
    validated = any(value for name, value in row.items() if name.startswith("val/"))
    return number < step and not (validation and validated and number == step - 1)


def put_aside(path: Path) -> None:
    """Rename the log of another run in the same folder to metrics.1.csv, ..."""
    if path.is_file():
        number = next(i for i in itertools.count(1) if not path.with_suffix(f".{i}.csv").exists())
        path.rename(path.with_suffix(f".{number}.csv"))
