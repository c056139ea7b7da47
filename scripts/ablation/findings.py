"""What the study says, in words: a text whose numbers are all filled in from the runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import fmean

from ablation.results import Study, interaction, paired_difference, unequal_precision, values_by_seed
from ablation.tables import MISSING, difference_cell, shares, spread, target_line
from b2inst.config import ConfigError

PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")


def fill(text: str, study: Study) -> str:
    """Replace what stands in double braces by numbers, or by "missing" where no run has them.

    `{{ mean DATASET ARM METRIC }}`, `{{ difference DATASET ARM REFERENCE METRIC }}`, `{{ interaction DATASET ARM
    REFERENCE ARM REFERENCE METRIC }}` (by how much the first difference is larger than the second one), `{{ attention
    DATASET ARM }}` (the share of the additional basis, in percent) and `{{ target DATASET }}` (a sentence). For an arm
    and a reference several may stand, with commas in between: their mean, seed by seed, which varies less.

    Raises:
        ConfigError: a place asks for something else, or for an arm that the study does not have.
    """
    kinds: dict[str, tuple[int, Callable[..., str]]] = {
        "mean": (3, _mean), "difference": (4, _difference), "interaction": (6, _interaction),
        "attention": (2, _attention), "target": (1, _target),
    }  # fmt: skip

    def one(match: re.Match[str]) -> str:
        kind, *words = match[1].split() or [""]
        if kind not in kinds or len(words) != kinds[kind][0]:
            known = ", ".join(f"{name} with {count} words" for name, (count, _) in kinds.items())
            raise ConfigError(f"findings: {match[0]} is none of {known}")
        try:
            return kinds[kind][1](study, *words)
        except KeyError as error:
            raise ConfigError(f"findings: {match[0]}: the study has no {error}") from error

    return PLACE.sub(one, text)


def _by_seed(study: Study, dataset: str, names: str, metric: str) -> dict[int, float]:
    """A metric of one or several arms, their mean, for the seeds that all of them have."""
    values = [values_by_seed(study.arms(dataset)[name], metric) for name in names.split(",")]
    return {seed: fmean(of_arm[seed] for of_arm in values) for seed in set.intersection(*map(set, values))}


def _unequal(study: Study, dataset: str, *names: str) -> int:
    return unequal_precision(*(study.arms(dataset)[name] for each in names for name in each.split(",")))


def _mean(study: Study, dataset: str, arms: str, metric: str) -> str:
    return spread(list(_by_seed(study, dataset, arms, metric).values()))


def _difference(study: Study, dataset: str, ours: str, its: str, metric: str) -> str:
    difference = paired_difference(*(_by_seed(study, dataset, arms, metric) for arms in (ours, its)))
    return difference_cell(difference, _unequal(study, dataset, ours, its))


def _interaction(study: Study, dataset: str, *words: str) -> str:
    difference = interaction(*(_by_seed(study, dataset, arms, words[-1]) for arms in words[:-1]))
    return difference_cell(difference, _unequal(study, dataset, *words[:-1]))


def _attention(study: Study, dataset: str, arm: str) -> str:
    return spread(shares(study.arms(dataset)[arm], "attention", "overall"), " %")


def _target(study: Study, dataset: str) -> str:
    return target_line(study, dataset) or MISSING
