"""A table over the jobs of a Hydra sweep, from the files that they wrote."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

METRICS = ("box/AP", "mask/AP", "mask/AP50", "mask/AP75", "boundary/AP")
ERROR_FILE = "error.txt"


class SweepTable(Callback):
    """Rewrites `sweep.md` and `sweep.csv` after each job, and prints the table at the end of the sweep."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Bring the table up to date, so that an interrupted sweep has one too."""
        if config.hydra.mode.name == "MULTIRUN":
            write_table(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table.

        Raises:
            SystemExit: with status 1 if a job failed.
        """
        folder = Path(config.hydra.sweep.dir)
        rows = write_table(folder)
        print(f"{render(rows)}\n  {folder / 'sweep.csv'}", flush=True)
        failed = [row["job"] for row in rows if row["status"] != "done"]
        if failed:
            raise SystemExit(f"{len(failed)} of {len(rows)} jobs failed: {', '.join(failed)}; see {ERROR_FILE} in each")


def collect(folder: Path) -> list[dict[str, Any]]:
    """One row per job folder, in the order of the jobs: status, list of overrides and metrics (fractions)."""
    jobs = sorted((p.parents[1] for p in folder.glob("*/.hydra/overrides.yaml")), key=lambda p: (len(p.name), p.name))
    rows = []
    for job in jobs:
        metrics_file = job / "metrics.json"
        failed = (job / ERROR_FILE).is_file()
        status = "failed" if failed else "done" if metrics_file.is_file() else "unfinished"
        metrics = json.loads(metrics_file.read_text()) if status == "done" else {}
        overrides = list(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
        values = {name: "" if metrics.get(name) is None else f"{metrics[name]:.4f}" for name in METRICS}
        rows.append({"job": job.name, "overrides": overrides, "status": status, **values})
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, without the overrides that all jobs share; these stand above it."""
    if not rows:
        return "no jobs"
    shared = [text for text in rows[0]["overrides"] if len(rows) > 1 and all(text in row["overrides"] for row in rows)]
    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    for row in rows:
        own = " ".join(text for text in row["overrides"] if text not in shared)
        lines.append([own if name == "overrides" else row[name] for name in head])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"All jobs: `{' '.join(shared)}`\n\n{table}" if shared else table


def write_table(folder: Path) -> list[dict[str, Any]]:
    """Write `sweep.md` and `sweep.csv` into the folder of a sweep.

    Returns:
        The rows.
    """
    rows = collect(folder)
    if rows:
        (folder / "sweep.md").write_text(render(rows) + "\n")
        with (folder / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "overrides": " ".join(row["overrides"])} for row in rows)
    return rows
