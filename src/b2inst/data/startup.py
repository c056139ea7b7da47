"""What training looks at before its first step: the annotations, and whether the image files are there.

It costs the reading of the annotations, which is needed anyway, and one listing of each image folder; no image is
decoded. Something wrong is explained with one line for each kind of error; `b2inst.verify` says the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from b2inst.data.coco import CocoDataset
from b2inst.data.errors import DataError
from b2inst.data.problems import Tally, from_error
from b2inst.data.scan import category_problems, missing_files, missing_problems, scan_annotations

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One split.

    Attributes:
        annotations: the file.
        images: gives the folder, or raises a DataError.
        allowed: the share of the image files that may be missing.
    """

    annotations: Path
    images: Callable[[], Path]
    allowed: float


def explain(sources: Sequence[Source]) -> list[str]:
    """What keeps the splits from being used, of the kinds that can be seen without opening an image.

    Args:
        sources: the validation split and, if there is one, the training split.

    Returns:
        For each file that something is wrong with, a line that names it and one line for each kind of error.
    """
    tallies, categories = {}, {}
    for source in sources:
        tally = Tally()
        scan = scan_annotations(source.annotations, tally.add)
        try:
            missing = list(missing_problems(source.images(), scan.images))
        except DataError as error:
            missing = []
            tally.add(from_error("image folder", error))
        for problem in missing if len(missing) > source.allowed * len(scan.images) else ():
            tally.add(problem)
        tallies[source.annotations], categories[source.annotations] = tally, scan.categories
    if all(categories.values()) and len(categories) == 2:
        (val, theirs), (train, ours) = categories.items()
        for problem in category_problems(train, ours, val, theirs):
            tallies[train].add(problem)
    return [line for path, tally in tallies.items() for line in block(path, tally.error_lines())]


def missing_lines(dataset: CocoDataset, allowed: float) -> list[str]:
    """Look for the image files of a data set.

    Args:
        dataset: whose images are looked for.
        allowed: the share that may be missing; then they are warned of.

    Returns:
        Lines of a message if more are missing, else none.
    """
    missing = missing_files(dataset.folder, [image.file_name for image in dataset.images])
    if not missing:
        return []
    first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    line = (
        f"missing image file ({len(missing):,} of {len(dataset):,}), first {dataset.folder}: {first}; fetch them, or "
        f"give the right image folder, or remove their records from {dataset.index.path}"
    )
    if len(missing) > allowed * len(dataset):
        return block(dataset.folder, [line])
    log.warning("%s", line)
    return []


def block(path: Path, lines: Sequence[str]) -> list[str]:
    """Lines below the name of what they are about; nothing without lines."""
    return [f"{path} cannot be used:", *(f"  {line}" for line in lines)] if lines else []


def refusal(lines: Sequence[str], command: str) -> DataError:
    """The error with these lines and the command that shows more."""
    return DataError("\n".join([*lines, f"for all of it, and pictures: {command}"]))
