"""What the study says, in words: a text whose numbers are all filled in from the runs."""

from __future__ import annotations

import re
from collections.abc import Callable

from ablation.results import Study, interaction, unequal_precision, values_by_seed
from ablation.tables import MISSING, compared, difference_cell, shares, spread, target_line
from b2inst.config import ConfigError

PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")


def fill(text: str, study: Study) -> str:
    """Replace what stands in double braces by numbers, or by "missing" where no run has them.

    `{{ mean DATASET ARM METRIC }}`, `{{ difference DATASET ARM REFERENCE METRIC }}`, `{{ interaction DATASET ARM
    REFERENCE ARM REFERENCE METRIC }}` (by how much the first difference is larger than the second one), `{{ attention
    DATASET ARM }}` (the share of the additional basis, in percent) and `{{ target DATASET }}` (a sentence).

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


def _mean(study: Study, dataset: str, arm: str, metric: str) -> str:
    return spread(list(values_by_seed(study.arms(dataset)[arm], metric).values()))


def _difference(study: Study, dataset: str, arm: str, reference: str, metric: str) -> str:
    arms = study.arms(dataset)
    return compared(arms[arm], arms[reference], metric)


def _interaction(study: Study, dataset: str, *words: str) -> str:
    arms, metric = [study.arms(dataset)[name] for name in words[:-1]], words[-1]
    difference = interaction(*(values_by_seed(results, metric) for results in arms))
    return difference_cell(difference, unequal_precision(*arms))


def _attention(study: Study, dataset: str, arm: str) -> str:
    return spread(shares(study.arms(dataset)[arm], "attention", "overall"), " %")


def _target(study: Study, dataset: str) -> str:
    return target_line(study, dataset) or MISSING
