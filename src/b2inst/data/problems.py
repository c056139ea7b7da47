"""What can be wrong with a data set: one `Problem` for each finding, counted by kind in a `Tally`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from b2inst.data.errors import DataError

Severity = Literal["error", "warning"]

ERRORS = {
    "annotation file": "fetch or export it again, or give another one",
    "image folder": "give the right one, data.SPLIT.images=DIR",
    "categories differ": "give both splits the same 'categories'",
    "malformed record": "correct the record in the annotation file",
    "duplicate id": "renumber, or remove the duplicate",
    "unknown image": "remove the annotation or add the record of the image",
    "unknown category": "remove the annotation or add the category",
    "malformed segmentation": "export the outline again, or remove the annotation",
    "polygon with < 3 points": "remove or repair the polygon",
    "RLE of another size": "export the masks at the size of their image",
    "RLE counts do not fit": "export the mask again",
    "missing image file": "fetch it, give the right image folder, or remove its record",
    "damaged image file": "fetch it again, or remove its record",
    "image of another size": "use the annotated file, or correct 'height', 'width' and the masks",
}
WARNINGS = {
    "outside of the image": "cut box and polygon at the frame; the part outside is not learned",
    "zero area": "remove it: training leaves it out, but evaluation counts it as missed",
    "duplicate annotation": "remove it: only one of the two can be found",
    "duplicate image file": "remove one of the two records",
    "unused category": "remove it, unless other splits have objects of it",
    "image without a record": "add it to 'images', or leave it: it is not used",
}
REMEDIES = ERRORS | WARNINGS
"""What usually helps, by kind of problem; the kinds stand in the order in which they are shown."""


def severity(kind: str) -> Severity:
    """Whether a kind of problem keeps a data set from being used ("error") or not ("warning")."""
    return "error" if kind in ERRORS else "warning"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding.

    Attributes:
        kind: a key of `REMEDIES`.
        where: file and record.
        what: is wrong there.
        remedy: for this one.
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
        """The kinds that were found, of one severity or of both, in the order of `REMEDIES`."""
        return [kind for kind in REMEDIES if self.counts[kind] and wanted in (None, severity(kind))]

    def total(self, wanted: Severity) -> int:
        """The number of problems of a severity."""
        return sum(self.counts[kind] for kind in self.kinds(wanted))

    def error_lines(self) -> list[str]:
        """One line for each kind of error: how many there are, and the first."""
        return [f"{kind} ({self.counts[kind]:,}), first {self.examples[kind][0]}" for kind in self.kinds("error")]
