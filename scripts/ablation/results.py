"""The numbers of a study, from the folders of its runs alone, and their statistics."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from ablation.runs import INSPECTION, METRICS, RECORD, precisions, processor_seconds, read_json, state
from b2inst.config import ConfigError

CONFIDENCE = 0.95
LEAST_PAIRS = 3  # for an interval


@dataclass(frozen=True)
class Result:
    """One run, ended or not.

    Attributes:
        folder: of the run.
        dataset, arm, group, label, seed: which.
        state: as `runs.state` says.
        metrics, inspection, cost: the files of these names, empty where they are missing.
        config: the file, of which the budget and the names are read.
    """

    folder: Path
    dataset: str
    arm: str
    group: str
    label: str
    seed: int
    state: str = "new"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    inspection: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def processor_seconds(self) -> float | None:
        """Work of all processors in the training; None if that is not known."""
        return processor_seconds(self.folder)

    @property
    def precision(self) -> str | None:
        """Of the training; None if that is not known."""
        return precisions(self.folder)

    @property
    def budget(self) -> str:
        """Steps and images of a step, as words."""
        batch = self.config["data"]["batch_size"] * self.config["trainer"].get("accumulate_grad_batches", 1)
        return f"{self.config['schedule']['steps']:,} steps of {batch} images"

    def validations(self, metric: str) -> dict[int, float]:
        """A metric of the validations of the training by step, in percent.

        The log ends with the evaluation of the best checkpoint, one step behind the last; that is not one of them.
        """
        steps = self.config["schedule"]["steps"]
        return {step: value for step, value in curve(self.folder, metric).items() if step < steps}


@dataclass(frozen=True)
class Study:
    """All runs, with those that are planned and missing.

    Attributes:
        results: one for each run.
        references: arms that differences refer to.
        products: tables of arms, as the plan's summary has them.
    """

    results: tuple[Result, ...]
    references: tuple[str, ...]
    products: tuple[Mapping[str, Any], ...] = ()

    @property
    def datasets(self) -> list[str]:
        """Names, in the order of the plan."""
        return list(dict.fromkeys(result.dataset for result in self.results))

    def arms(self, dataset: str) -> dict[str, list[Result]]:
        """The runs of each arm on a set, in the order of the plan, seeds ascending."""
        arms: dict[str, list[Result]] = {}
        for result in sorted(self.results, key=lambda r: r.seed):
            if result.dataset == dataset:
                arms.setdefault(result.arm, []).append(result)
        order = list(dict.fromkeys(r.arm for r in self.results if r.dataset == dataset))
        return {name: arms[name] for name in order}

    def budget(self, dataset: str) -> str | None:
        """What every run of a set was given, None before any has begun.

        Raises:
            ConfigError: they were given different budgets, so that they cannot be compared.
        """
        by_budget: dict[str, list[str]] = {}
        for r in self.results:
            if r.dataset == dataset and r.metrics:
                by_budget.setdefault(r.budget, []).append(f"{r.arm}/seed{r.seed}")
        if len(by_budget) > 1:
            told = "; ".join(f"{budget}: {', '.join(names)}" for budget, names in by_budget.items())
            raise ConfigError(f"{dataset}: runs of different budgets cannot be compared ({told}); delete some")
        return next(iter(by_budget), None)


def load_study(folder: Path) -> Study:
    """Read the folder that `scripts/study.py` writes.

    Raises:
        ConfigError: it holds no study.
    """
    plan = read_json(folder / "plan.json")
    if not plan:
        raise ConfigError(f"{folder} has no plan.json; `make study` writes it, or give another folder with --runs")
    results = [_result(folder / p["dataset"] / p["arm"] / f"seed{p['seed']}", p) for p in plan["runs"]]
    planned = {result.folder for result in results}
    for path in sorted(folder.glob(f"*/*/seed*/{RECORD}")):  # of arms that an earlier plan had
        if path.parent not in planned:
            results.append(_result(path.parent, read_json(path)))
    return Study(tuple(results), tuple(plan["references"]), tuple(plan.get("products", ())))


def _result(folder: Path, about: Mapping[str, Any]) -> Result:
    config = folder / "config.yaml"
    return Result(
        folder, about["dataset"], about["arm"], about["group"], about["label"], about["seed"], state(folder),
        read_json(folder / METRICS), read_json(folder / INSPECTION), read_json(folder / "cost.json"),
        OmegaConf.to_container(OmegaConf.load(config)) if config.is_file() else {},
    )  # fmt: skip


def values_by_seed(results: Sequence[Result], metric: str) -> dict[int, float]:
    """A metric of the ended runs, in percent."""
    found = {r.seed: r.metrics.get(metric) for r in results}
    return {seed: 100 * value for seed, value in found.items() if value is not None}


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and the standard deviation of the sample (n - 1), which a single value does not have."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Of an arm to a reference, over the seeds that both have.

    Attributes:
        mean: of the differences.
        low, high: Student's interval; None for fewer than three pairs, of which two that are alike by chance give one
            that looks like a proof.
        pairs: n.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


def paired_difference(ours: Mapping[int, float], its: Mapping[int, float]) -> Difference | None:
    """Compare an arm with a reference seed by seed; None where they have no seed in common.

    Args:
        ours, its: a metric by seed.
    """
    seeds = sorted(ours.keys() & its.keys())
    if not seeds:
        return None
    differences = np.array([ours[seed] - its[seed] for seed in seeds])
    mean, pairs = float(differences.mean()), len(seeds)
    if pairs < LEAST_PAIRS:
        return Difference(mean, None, None, pairs)
    half = float(stats.sem(differences) * stats.t.ppf((1 + CONFIDENCE) / 2, pairs - 1))
    return Difference(mean, mean - half, mean + half, pairs)


def interaction(
    ours: Mapping[int, float], its: Mapping[int, float], ours_else: Mapping[int, float], its_else: Mapping[int, float]
) -> Difference | None:
    """By how much a difference is larger than the same difference elsewhere, over the seeds that all four have.

    Args:
        ours, its: a metric by seed.
        ours_else, its_else: of the same two under another condition.
    """
    here = {seed: ours[seed] - its[seed] for seed in ours.keys() & its.keys()}
    return paired_difference(here, {s: ours_else[s] - its_else[s] for s in ours_else.keys() & its_else.keys()})


def unequal_precision(*arms: Sequence[Result]) -> int:
    """For how many seeds that all these arms have ended they were trained in different precisions."""
    known = [{r.seed: r.precision for r in arm if r.metrics} for arm in arms]
    return sum(len({of_arm[seed] for of_arm in known}) > 1 for seed in set.intersection(*map(set, known)))


def curve(folder: Path, metric: str) -> dict[int, float]:
    """A metric of all evaluations in the log of a run by step, in percent; of its parts the later one counts."""
    parts = sorted(folder.glob("metrics.[0-9]*.csv"), key=lambda path: int(path.suffixes[-2][1:]))
    found: dict[int, float] = {}
    for path in (*parts, folder / "metrics.csv"):
        if path.is_file():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get(metric):
                        found[int(row["step"])] = 100 * float(row[metric])
    return dict(sorted(found.items()))
