"""What training looks at before its first step: the annotations, and whether the image files are there.

It costs the reading of the annotations, which is needed anyway, and one listing of each image folder; no image is
decoded. Something wrong is explained with one line for each kind of error; `b2inst.verify` says the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from b2inst.data.coco import CocoDataset
from b2inst.data.errors import DataError
from b2inst.data.index import CocoIndex
from b2inst.data.scan import explain, missing_files

log = logging.getLogger(__name__)


def read_index(path: Path, command: str) -> CocoIndex:
    """Read an annotation file.

    Args:
        path: of the file.
        command: that shows more.

    Raises:
        DataError: it cannot be used; the message has one line for each kind of error.
    """
    try:
        return CocoIndex.read(path)
    except DataError as error:
        lines = explain(path) or [str(error)]
        raise DataError(message(f"{path} cannot be used:", lines, command)) from error


def look_for_files(dataset: CocoDataset, allowed: float, command: str) -> None:
    """Check that the image files of a data set are there.

    Args:
        dataset: whose images are looked for.
        allowed: the share that may be missing; then they are warned of.
        command: that shows more.

    Raises:
        DataError: more are missing.
    """
    missing = missing_files(dataset.folder, [image.file_name for image in dataset.images])
    if not missing:
        return
    first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    line = (
        f"missing image file ({len(missing):,} of {len(dataset):,}), first {dataset.folder}: {first}; fetch them, or "
        f"give the right image folder, or remove their records from {dataset.index.path}"
    )
    if len(missing) > allowed * len(dataset):
        raise DataError(message(f"{dataset.folder} cannot be used:", [line], command))
    log.warning("%s", line)


def message(head: str, lines: Sequence[str], command: str) -> str:
    """A message with its lines and the command that shows more."""
    return "\n".join([head, *(f"  {line}" for line in lines), f"for all of it, and pictures: {command}"])
