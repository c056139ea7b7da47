"""Which trainings a study consists of, from its plan file, in the order that gives the most knowledge first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from b2inst.config import ConfigError

KEYS = {
    "plan": {"output", "records", "seeds", "common", "inspect", "references", "datasets", "arms", "products"},
    "dataset": {"stage", "overrides", "steps", "seconds_per_step", "overhead", "size", "crop", "needs", "arms"},
    "arm": {"group", "label", "overrides", "cost"},
    "product": {"title", "datasets", "stage", "seeds", "rows", "columns"},
    "row": {"label", "overrides", "cost", "columns", "cells"},
    "column": {"label", "overrides", "cost"},
    "inspect": {"images", "crops"},
}


@dataclass(frozen=True)
class Arm:
    """One variant of the method.

    Attributes:
        name: short, a folder is called so.
        group: of arms that stand in one table.
        label: what the tables say.
        overrides: of the command line of `b2inst.train`.
        cost: seconds of a step in those of the reference, for estimates before anything is measured.
        stage: it comes with the sets of this stage, if its set has a lower one.
        seeds: its own, None for those of the plan.
        datasets: on which of the sets that have all arms, None for each.
    """

    name: str
    group: str
    label: str
    overrides: tuple[str, ...]
    cost: float
    stage: int = 0
    seeds: tuple[int, ...] | None = None
    datasets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Product:
    """A table of arms: every row with every column.

    Attributes:
        name: of the product, the group of its arms.
        title: what its table is called.
        rows, columns: labels by name.
        cells: the name of the arm at (row, column); one that the plan has anyway is not trained twice.
        arms: those that are of this product alone.
    """

    name: str
    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    cells: Mapping[tuple[str, str], str]
    arms: tuple[Arm, ...]


@dataclass(frozen=True)
class Dataset:
    """Data with the budget that all arms get on it.

    Attributes:
        name: short, a folder is called so.
        stage: sets of a lower stage come first, with all their seeds.
        overrides: recipe and more of the command line.
        steps: of a training.
        seconds_per_step, overhead: for estimates before anything is measured; overhead is start, validations and
            inspection together, in seconds.
        size: (height, width) of the image whose operations are counted.
        crop: side in pixels of the network input of the crops that are drawn.
        needs: paths without which nothing of this set can run.
        arms: names.
    """

    name: str
    stage: int
    overrides: tuple[str, ...]
    steps: int
    seconds_per_step: float
    overhead: float
    size: tuple[int, int]
    crop: int
    needs: tuple[str, ...]
    arms: tuple[str, ...]

    @property
    def missing(self) -> list[str]:
        """Which of its needs are not there."""
        return [path for path in self.needs if not Path(path).expanduser().exists()]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        dataset, arm, seed: which.
        folder: where all its files go.
        overrides: of the command line, without seed, name and folder.
    """

    dataset: Dataset
    arm: Arm
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the run for people."""
        return f"{self.dataset.name}/{self.arm.name}/seed{self.seed}"

    @property
    def planned_seconds(self) -> float:
        """How long it takes, by the plan alone."""
        return self.dataset.steps * self.dataset.seconds_per_step * self.arm.cost + self.dataset.overhead


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        output: folder of all runs.
        records: file that keeps what has ended.
        references: names of the arms that differences refer to; the first one for all.
        images, crops: how many validation images are inspected, and how many crops are drawn.
        runs: in order.
        products: tables of arms.
    """

    output: Path
    records: Path
    references: tuple[str, ...]
    images: int
    crops: int
    runs: tuple[Run, ...]
    products: tuple[Product, ...] = ()

    def select(self, only: list[str], seeds: list[int] | None) -> list[Run]:
        """The runs of these patterns (`shapes`, `shapes/e`, `*/e`), all for none, and of these seeds.

        Raises:
            ConfigError: a pattern or a seed has no run.
        """
        names = list(dict.fromkeys(f"{run.dataset.name}/{run.arm.name}" for run in self.runs))
        for pattern in only:
            if not any(_fits(name, pattern) for name in names):
                raise ConfigError(f"--only {pattern}: no such run; the plan has {', '.join(names)}")
        known = sorted({run.seed for run in self.runs})
        for seed in seeds or ():
            if seed not in known:
                raise ConfigError(f"--seeds {seed}: the plan has {', '.join(map(str, known))}; add it to its seeds")
        return [
            run for run in self.runs
            if (not only or any(_fits(f"{run.dataset.name}/{run.arm.name}", pattern) for pattern in only))
            and (seeds is None or run.seed in seeds)
        ]  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """What the tables have to know of runs that are missing, as plain values."""
        runs = [{"dataset": r.dataset.name, "arm": r.arm.name, "group": r.arm.group, "label": r.arm.label,
                 "seed": r.seed} for r in self.runs]  # fmt: skip
        products = [{"name": p.name, "title": p.title, "rows": dict(p.rows), "columns": dict(p.columns),
                     "cells": [[*place, arm] for place, arm in p.cells.items()]} for p in self.products]  # fmt: skip
        return {"references": list(self.references), "runs": runs, "products": products}


def load_plan(path: Path, output: Path | None = None) -> Plan:
    """Read a plan file; environment variables in it are resolved as in `conf/`.

    Args:
        path: see `scripts/study.yaml`, which explains every value.
        output: takes the place of the plan's.

    Raises:
        ConfigError: the file is missing, or has values that cannot work.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such plan; scripts/study.yaml is one")
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    _check(content, "plan", str(path))
    _check(content["inspect"], "inspect", f"{path}: inspect")
    arms = {name: _arm(name, part, path) for name, part in content["arms"].items()}
    products = [_product(name, part, arms, path) for name, part in content["products"].items()]
    arms.update({arm.name: arm for product in products for arm in product.arms})
    datasets = [_dataset(name, part, arms, path) for name, part in content["datasets"].items()]
    for arm in arms.values():
        for name in set(arm.datasets or ()) - set(content["datasets"]):
            raise ConfigError(
                f"{path}: products.{arm.group}.datasets: no set {name!r}; sets are {', '.join(content['datasets'])}"
            )
    for name in content["references"]:
        if name not in arms:
            raise ConfigError(f"{path}: references: no arm {name!r}; arms are {', '.join(arms)}")
    output, seeds = output or Path(content["output"]), tuple(content["seeds"])
    common = tuple(content["common"])
    runs = [
        Run(dataset, arms[arm], seed, output / dataset.name / arm / f"seed{seed}",
            (*common, *dataset.overrides, f"schedule.steps={dataset.steps}", *arms[arm].overrides))
        for dataset in datasets for seed in seeds for arm in dataset.arms if seed in (arms[arm].seeds or seeds)
    ]  # fmt: skip
    # The sort is stable: within a stage and a seed the sets come in turn, each with its arms as the plan lists them.
    runs.sort(key=lambda run: (max(run.dataset.stage, run.arm.stage), seeds.index(run.seed)))
    inspect = content["inspect"]
    records, references = Path(content["records"]), tuple(content["references"])
    return Plan(output, records, references, inspect["images"], inspect["crops"], tuple(runs), tuple(products))


def _product(name: str, part: Mapping[str, Any], arms: Mapping[str, Arm], path: Path) -> Product:
    """The cells of a table, each an arm that there is or one of its own.

    Raises:
        ConfigError: it names a column or an arm that there is not, or an arm of its own has a name that is taken.
    """
    where = f"{path}: products.{name}"
    _check(part, "product", where)
    columns = part["columns"]
    datasets = None if part["datasets"] == "all" else tuple(part["datasets"])
    for key, column in columns.items():
        _check(column, "column", f"{where}.columns.{key}")
    cells, own = {}, []
    for key, row in part["rows"].items():
        _check(row, "row", f"{where}.rows.{key}")
        chosen = list(columns) if row["columns"] == "all" else row["columns"]
        for column in [*chosen, *row["cells"]]:
            if column not in columns:
                raise ConfigError(f"{where}.rows.{key}: no column {column!r}; columns are {', '.join(columns)}")
        for column in chosen:
            given = row["cells"].get(column, [*row["overrides"], *columns[column]["overrides"]])
            known = isinstance(given, str)
            arm = given if known else f"{key}_{column}"
            if known != (arm in arms):
                taken = f"is no arm; arms are {', '.join(arms)}" if known else "is taken by another arm"
                raise ConfigError(f"{where}.rows.{key}: {arm} {taken}")
            cells[key, column] = arm
            if not known:
                label = f"{row['label']}, {columns[column]['label']}"
                cost = float(row["cost"] * columns[column]["cost"])
                own.append(Arm(arm, name, label, tuple(given), cost, part["stage"], tuple(part["seeds"]), datasets))
    labels = [{key: value["label"] for key, value in part[side].items()} for side in ("rows", "columns")]
    return Product(name, part["title"], *labels, cells, tuple(own))


def _arm(name: str, part: Mapping[str, Any], path: Path) -> Arm:
    _check(part, "arm", f"{path}: arms.{name}")
    return Arm(name, part["group"], part["label"], tuple(part["overrides"]), float(part["cost"]))


def _dataset(name: str, part: Mapping[str, Any], arms: Mapping[str, Arm], path: Path) -> Dataset:
    where = f"{path}: datasets.{name}"
    _check(part, "dataset", where)
    every = [arm.name for arm in arms.values() if arm.datasets is None or name in arm.datasets]
    chosen = tuple(every if part["arms"] == "all" else part["arms"])
    for arm in chosen:
        if arm not in arms:
            raise ConfigError(f"{where}.arms: no arm {arm!r}; arms are {', '.join(arms)}; or give all")
    return Dataset(
        name, part["stage"], tuple(part["overrides"]), part["steps"], float(part["seconds_per_step"]),
        float(part["overhead"]), tuple(part["size"]), part["crop"], tuple(part["needs"]), chosen,
    )  # fmt: skip


def _check(part: Any, kind: str, where: str) -> None:
    """Refuse what is unknown and what lacks."""
    given = set(part) if isinstance(part, Mapping) else set()
    wrong = [f"unknown {key!r}" for key in sorted(given - KEYS[kind])]
    wrong += [f"missing {key!r}" for key in sorted(KEYS[kind] - given)]
    if wrong:
        raise ConfigError(f"{where}: {', '.join(wrong)}; it has to have {', '.join(sorted(KEYS[kind]))}")


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name.split("/")[0], pattern)
