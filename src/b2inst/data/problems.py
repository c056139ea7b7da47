"""What can be wrong with a data set: one `Problem` for each finding, counted by kind in a `Tally`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from b2inst.data.errors import DataError

Severity = Literal["error", "warning"]

ERRORS = (
    "annotation file", "no annotation", "image folder", "categories differ", "malformed record", "duplicate id",
    "unknown image", "unknown category", "malformed segmentation", "polygon with < 3 points", "RLE of another size",
    "RLE counts do not fit", "missing image file", "damaged image file", "image of another size",
)  # fmt: skip
WARNINGS = (
    "outside of the image", "zero area", "duplicate annotation", "duplicate image file", "unused category",
    "image without a record",
)  # fmt: skip
KINDS = ERRORS + WARNINGS
"""All kinds of problems, in the order in which they are shown."""


def severity(kind: str) -> Severity:
    """Whether a kind of problem keeps a data set from being used ("error") or not ("warning")."""
    return "error" if kind in ERRORS else "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding.

    Attributes:
        kind: one of `KINDS`.
        where: file and record.
        what: is wrong there.
        remedy: what to do about it.
        image_id: of the image it concerns, None if there is none.
    """

    kind: str
    where: str
    what: str
    remedy: str
    image_id: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


def refuse(problems: Iterable[Problem]) -> None:
    """Raise at the first problem.

    Raises:
        DataError: there is one; its message is the text of the problem.
    """
    for problem in problems:
        raise DataError(str(problem))


def from_error(kind: str, error: DataError, image_id: int | None = None) -> Problem:
    """The problem that an error with the message `where: what; remedy` names."""
    where, _, rest = str(error).partition(": ")
    what, _, remedy = rest.partition("; ")
    return Problem(kind, where, what, remedy, image_id)


class Tally:
    """Counts problems by kind and by image, and keeps the first few of each kind: memory does not grow with them.

    Args:
        examples: how many of each kind are kept.

    Attributes:
        counts: number of problems by kind.
        examples: the first problems of each kind.
        by_image: number of problems of each kind by image id.
    """

    def __init__(self, examples: int = 3) -> None:
        self.keep = examples
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[Problem]] = {}
        self.by_image: dict[int, Counter[str]] = {}

    def add(self, problem: Problem) -> None:
        """Count one."""
        self.counts[problem.kind] += 1
        first = self.examples.setdefault(problem.kind, [])
        if len(first) < self.keep:
            first.append(problem)
        if problem.image_id is not None:
            self.by_image.setdefault(problem.image_id, Counter())[problem.kind] += 1

    def kinds(self, wanted: Severity | None = None) -> list[str]:
        """The kinds that were found, of one severity or of both, in the order of `KINDS`."""
        return [kind for kind in KINDS if self.counts[kind] and wanted in (None, severity(kind))]

    def total(self, wanted: Severity) -> int:
        """The number of problems of a severity."""
        return sum(self.counts[kind] for kind in self.kinds(wanted))

    def error_lines(self) -> list[str]:
        """One line for each kind of error: how many there are, and the first."""
        return [f"{kind} ({self.counts[kind]:,}), first {self.examples[kind][0]}" for kind in self.kinds("error")]
