"""The jobs of a Hydra sweep: their folders, what is left to do of them, and a table from the files that they wrote."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from b2inst.writing import may_fail, whole_file

log = logging.getLogger(__name__)

METRICS = ("box/AP", "mask/AP", "mask/AP50", "mask/AP75", "boundary/AP")
ERROR_FILE = "error.txt"
METRICS_FILE = "metrics.json"
OWN_KEYS = ("sweep.", "hydra.")  # overrides that say how to sweep, and not what a job is


class SweepTable(Callback):
    """Rewrites `sweep.md` and `sweep.csv` after each job, and prints the table at the end of the sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder that holds a sweep already, unless that one is to be continued.

        Raises:
            SystemExit: with status 1 and the remedy.
        """
        folder = Path(config.hydra.sweep.dir)
        if not config.sweep.resume and any(overrides_of(path) is not None for path in _folders(folder)):
            raise SystemExit(f"error: hydra.sweep.dir: {folder} holds the jobs of a sweep; add sweep.resume=true to go "
                             "on with it, or give another folder")  # fmt: skip

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Show the job in the table from now on, for it may be killed."""
        _update(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Bring the table up to date, so that an interrupted sweep has one too."""
        _update(config)

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
            raise SystemExit(f"{len(failed)} of {len(rows)} jobs failed: {', '.join(failed)}; see {ERROR_FILE} in "
                             "each; the same command with sweep.resume=true runs them again")  # fmt: skip


# ------------------------------------------------------------------------------------------------ jobs and folders


def overrides_of(job: Path) -> list[str] | None:
    """What was given for the job in a folder, in this order; None where the folder does not (yet) tell."""
    try:
        given = OmegaConf.to_container(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    except Exception:  # of the disk, of YAML, of OmegaConf: a kill may have left any part of the file
        return None
    return _of_job(given) if isinstance(given, list) else None


def job_folder(folder: Path, number: int, overrides: list[str]) -> str:
    """Name of the folder of a job: the one with these overrides, whatever its number; else a new one.

    Args:
        folder: of the sweep.
        number: of the job in this call; the name of its folder unless another job has that.
        overrides: of the job.
    """
    wanted = sorted(_of_job(overrides))
    for path in _folders(folder):
        given = overrides_of(path)
        if given is not None and sorted(given) == wanted:
            return path.name
    names = [str(number), *(f"{number}-{i}" for i in range(1, 1000))]
    return next(name for name in names if overrides_of(folder / name) is None)


def status(job: Path) -> str:
    """`done`, `failed` or `unfinished`, from the files in the folder of a job."""
    if (job / ERROR_FILE).is_file():
        return "failed"
    return "unfinished" if read_metrics(job) is None else "done"


def read_metrics(job: Path) -> dict[str, Any] | None:
    """The metrics of a job (fractions); None where it has not come so far."""
    try:
        metrics = json.loads((job / METRICS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) else None


def _of_job(overrides: list[Any]) -> list[str]:
    return [str(text) for text in overrides if not str(text).lstrip("+~").startswith(OWN_KEYS)]


def _folders(folder: Path) -> list[Path]:
    jobs = (path.parents[1] for path in folder.glob("*/.hydra/overrides.yaml"))
    return sorted(jobs, key=lambda path: (len(path.name), path.name))


def _resolve(*, _root_: DictConfig) -> str:
    hydra = _root_.hydra
    return job_folder(Path(hydra.sweep.dir), hydra.job.num, list(hydra.overrides.task))


def _update(config: DictConfig) -> None:
    if config.hydra.mode.name == "MULTIRUN":
        write_table(Path(config.hydra.sweep.dir))


# Used by conf/train.yaml. The callback of the same file leads every process of a launcher to this module.
OmegaConf.register_new_resolver("sweep_folder", _resolve, replace=True)


# ------------------------------------------------------------------------------------------------------- the table


def collect(folder: Path) -> list[dict[str, Any]]:
    """One row per job folder, in the order of the jobs: status, list of overrides and metrics (fractions)."""
    rows = []
    for job in _folders(folder):
        state = status(job)
        metrics = (read_metrics(job) or {}) if state == "done" else {}
        values = {name: "" if metrics.get(name) is None else f"{metrics[name]:.4f}" for name in METRICS}
        rows.append({"job": job.name, "overrides": overrides_of(job) or [], "status": state, **values})
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
    """Write `sweep.md` and `sweep.csv` into the folder of a sweep; a reader never sees half of one.

    Returns:
        The rows.
    """
    rows = collect(folder)
    if rows:
        with may_fail("the table of the sweep", "it is written again after each job"):
            with whole_file(folder / "sweep.md") as file:
                file.write(render(rows) + "\n")
            with whole_file(folder / "sweep.csv") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows({**row, "overrides": " ".join(row["overrides"])} for row in rows)
    return rows
