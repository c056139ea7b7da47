"""What is kept of a study when the machines are gone: a line in one file for each run that has ended.

A line holds the small files of a run's folder, as far as tables and curves need them. Put back, they make a folder that
`study.py` takes for done and `ablation_table.py` reads as any other; its checkpoints and pictures are gone.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ablation.results import curve
from ablation.runs import INSPECTION, METRICS, RECORD, read_json, state, variables
from b2inst.config import ConfigError
from b2inst.metrics.scores import write_json
from b2inst.writing import whole_file

COST, CONFIG, LOG, PLAN = "cost.json", "config.yaml", "metrics.csv", "plan.json"
CURVES = ("box/AP", "mask/AP", "boundary/AP")


def pack(output: Path, path: Path, folders: Sequence[Path] | None = None) -> int:
    """Take runs that have ended into the file; the others that are in it stay.

    Args:
        output: folder of the study.
        path: of the file.
        folders: of these runs; None for all that are there.

    Returns:
        How many runs the file has.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(output):
        plan, records = _read(path)
        plan = read_json(output / PLAN) or plan
        if folders is None:
            folders = sorted(file.parent for file in output.glob(f"*/*/seed*/{RECORD}"))
        for folder in folders:
            if state(folder) == "done" and (folder / CONFIG).is_file():
                records["/".join(folder.parts[-3:])] = _record(folder)
        with whole_file(path) as file:
            for line in ({"plan": plan}, *({"run": name, **records[name]} for name in sorted(records))):
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
    return len(records)


def unpack(path: Path, output: Path) -> int:
    """Put the runs of the file back that have no folder.

    Args:
        path: of the file; nothing is done if it is missing.
        output: folder of the study.

    Returns:
        How many were put back.

    Raises:
        ConfigError: a line of the file is damaged.
    """
    plan, records = _read(path)
    if plan and not (output / PLAN).is_file():
        write_json(plan, output / PLAN, indent=2)
    missing = {name: record for name, record in records.items() if not (output / name).exists()}
    for name, record in missing.items():
        folder = output / name
        record[RECORD]["variables"] = variables()
        for file in (METRICS, INSPECTION, COST, RECORD):
            write_json(record[file], folder / file, indent=2)
        (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(record[CONFIG])))
        (folder / LOG).write_text(record[LOG])
    return len(missing)


def _record(folder: Path) -> dict[str, Any]:
    """The small files of a run; of its configuration the budget, the name and the loggers."""
    config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    kept = {
        "name": config["name"],
        "schedule": {"steps": config["schedule"]["steps"]},
        "data": {"batch_size": config["data"]["batch_size"]},
        "trainer": {"accumulate_grad_batches": config["trainer"].get("accumulate_grad_batches", 1)},
        "logger": dict.fromkeys(config.get("logger") or {}),
    }
    files = {file: read_json(folder / file) for file in (RECORD, METRICS, INSPECTION, COST)}
    known = {**variables(), **files[RECORD].pop("variables", {})}  # whoever packs may have other ones, or none
    record = {**_rounded(files), CONFIG: kept, LOG: _curves(folder)}
    return _exchanged(record, {value: f"<{name}>" for name, value in known.items()})


def _curves(folder: Path) -> str:
    """The lines of the log that validations wrote."""
    curves = {metric: curve(folder, metric) for metric in CURVES}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *CURVES])
    for step in sorted(set().union(*curves.values())):
        writer.writerow([step, *(_rounded(curves[m][step] / 100) if step in curves[m] else "" for m in CURVES)])
    return text.getvalue()


def _rounded(value: Any) -> Any:
    """Six digits of every number, which is more than a study can tell."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def _exchanged(value: Any, texts: dict[str, str]) -> Any:
    """Every occurrence of some texts replaced."""
    text = json.dumps(value)
    for old, new in texts.items():
        text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    return json.loads(text)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The plan and the records by the names of the runs."""
    plan: dict[str, Any] = {}
    records: dict[str, dict[str, Any]] = {}
    values = {f"<{name}>": value for name, value in variables().items()}
    for number, text in enumerate(path.read_text().splitlines() if path.is_file() else [], 1):
        try:
            line = _exchanged(json.loads(text), values)
            plan = line.get("plan", plan)
            if "run" in line:
                name = line.pop("run")
                lacking = {METRICS, INSPECTION, COST, RECORD, CONFIG, LOG} - line.keys()
                if lacking or ".." in Path(name).parts or len(Path(name).parts) != 3:
                    raise ValueError(f"it lacks {', '.join(sorted(lacking)) or 'the name of a run'}")
                records[name] = line
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path}: line {number} is damaged ({error}); take it from the repository") from error
    return plan, records


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Several studies may write the file of the same folder."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".records.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
