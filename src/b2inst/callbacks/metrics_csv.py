"""Lightning's CSV log, on a disk that may be full for a while."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from b2inst.writing import may_fail, whole_file


class MetricsCSV(CSVLogger):
    """Lightning's `CSVLogger`, which goes on where it cannot write.

    Rows that cannot be written stay in memory until there is room; what was written before is not touched.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer; made at the first use."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Write hparams.yaml, if that can be done."""
        with may_fail("hparams.yaml", "config.yaml has the same"):
            super().log_hyperparams(params)

    @rank_zero_only
    def save(self) -> None:
        """Write what was logged since the last time."""
        with may_fail("metrics.csv", "its rows are kept in memory and written when there is room"):
            super().save()


class _Writer(ExperimentWriter):
    def save(self) -> None:
        """Append the new rows, or write the whole file where there are new columns; all of it or nothing.

        Raises:
            OSError: it cannot be written; the rows are still in `metrics`.
        """
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        keys = sorted(set(self.metrics_keys).union(*self.metrics))
        if keys != self.metrics_keys or not path.is_file():
            self._write_anew(path, keys)
        else:
            _append(path, keys, self.metrics)
        self.metrics_keys, self.metrics = keys, []

    def _write_anew(self, path: Path, keys: list[str]) -> None:
        rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        with whole_file(path) as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows([*rows, *self.metrics])


def _append(path: Path, keys: list[str], rows: list[dict[str, Any]]) -> None:
    size = path.stat().st_size
    try:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, keys).writerows(rows)
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)  # else half a row would stay, and what follows would be a part of it
        raise
