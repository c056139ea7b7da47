"""Time a detection of every system in the tables of the study, in turn in one process: docs/latency.json.

    python scripts/time_systems.py [--plan scripts/study.yaml] [--datasets shapes] [--rounds 9]

Weights are random and get the work of trained ones, as in `b2inst.benchmark`: pixels to RLEs, as many candidates and
detections for each. `ablation_table.py` shows the medians.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation.plan import Plan, Run, load_plan
from hydra import compose, initialize_config_dir

from b2inst.bench import timing
from b2inst.bench.setting import Setting, Spec
from b2inst.bench.subjects import make
from b2inst.config import ConfigError, plain
from b2inst.metrics.scores import write_json
from b2inst.paths import config_dir

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "latency.json"
CANDIDATES, DETECTIONS = 1000, 100


def cells(plan: Plan, dataset: str) -> list[Run]:
    """One run of each arm that stands in a table of systems.

    Raises:
        ConfigError: the plan has no such set, or no such arm on it.
    """
    names = {arm for product in plan.products for arm in product.cells.values()}
    runs = {run.arm.name: run for run in reversed(plan.runs) if run.dataset.name == dataset and run.arm.name in names}
    if not runs:
        known = ", ".join(dict.fromkeys(run.dataset.name for run in plan.runs))
        raise ConfigError(f"--datasets {dataset}: no arm of a table is run on it; the plan has {known}")
    return list(reversed(runs.values()))


def measure(runs: list[Run], rounds: int) -> dict[str, Any]:
    """Milliseconds of an image: the median of the rounds, and the quartiles, by arm."""
    height, width = runs[0].dataset.size
    setting = Setting(height, width, detections=DETECTIONS, candidates=CANDIDATES)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        models = [plain(compose("train", [*run.overrides, "model.backbone.weights=null"]).model) for run in runs]
    subjects = [make(Spec(run.arm.name, False, setting, model)) for run, model in zip(runs, models, strict=True)]
    seconds, _ = timing.run_in_turn(subjects, rounds, 1, "cpu")
    found = {
        run.arm.name: [round(1000 * float(value), 1) for value in np.percentile(times, [50, 25, 75])]
        for run, times in zip(runs, seconds, strict=True)
    }
    return {"height": height, "width": width, "rounds": rounds, "on": platform.machine(),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "milliseconds": found}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_name("study.yaml"), help="of the study")
    parser.add_argument("--datasets", nargs="+", default=["shapes"], help="whose image sizes (default: shapes)")
    parser.add_argument("--rounds", type=int, default=9, help="counted (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        plan = load_plan(options.plan)
        measured = {name: measure(cells(plan, name), options.rounds) for name in options.datasets}
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_json(measured, options.output, indent=2)
    print(f"{options.output}: {sum(len(part['milliseconds']) for part in measured.values())} medians")
    return 0


if __name__ == "__main__":
    sys.exit(main())
