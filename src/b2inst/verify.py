"""Examine a data set before it is trained on: `python -m b2inst.verify data=coco|custom|... [data.root=DIR]`.

Both splits are gone through to the end, and everything that is wrong is counted. Exit code 1 means that training
would fail or leave something out; warnings are for the user to judge.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.progress import track

from b2inst import runtime, viz
from b2inst.config import ConfigError, build, plain
from b2inst.config_read import is_int
from b2inst.data.datamodule import B2InstDataModule, SplitName
from b2inst.data.errors import DataError
from b2inst.data.problems import Problem, from_error
from b2inst.data.scan import Scan, category_problems, missing_problems, scan_annotations, unrecorded_files
from b2inst.data.scan_images import scan_images
from b2inst.paths import config_dir
from b2inst.verify_report import Report, SplitReport
from b2inst.viz_sheet import Sheet, contact_sheet

Candidate = tuple[int, int, Sheet]  # of the contact sheet: number of problems, rank in its split


def verify(config: dict[str, Any]) -> Report:
    """Go through a data set and write what was found.

    Args:
        config: plain values, as `conf/verify.yaml` composes them.

    Returns:
        the findings; `verify.json` and, if there are images, `contact_sheet.png` are in the folder `output`.

    Raises:
        ConfigError: a value that cannot be.
    """
    _check(config)
    data: B2InstDataModule = build(config["data"], at="data")
    report = Report()
    candidates: list[Candidate] = []
    for split in config["splits"]:
        part = report.splits[split] = SplitReport(config["examples"])
        scan = _annotations(data, split, part)
        if scan is not None and _folder(data, split, part):
            _files(scan, split, part, config)
            candidates += _candidates(scan, split, part, config["sheet"])
    _across(report)
    output = Path(config["output"]).expanduser()
    if candidates:
        best = sorted(candidates, key=lambda item: (-item[0], item[1]))[: config["sheet"]]
        names = {id: name for part in report.splits.values() for id, name in part.categories.items()}
        picture = contact_sheet([sheet for *_, sheet in best], names)
        report.files.append(viz.save(picture, output / "contact_sheet.png"))
    report.files.append(output / "verify.json")
    report.to_json(output / "verify.json")
    return report


def _check(config: dict[str, Any]) -> None:
    splits, threads = config["splits"], config["threads"]
    if not isinstance(splits, list) or not splits or any(split not in ("train", "val") for split in splits):
        raise ConfigError(f"splits={splits}: give a list of train and val, like 'splits=[val]'; for another split give "
                          "its files as data.val.annotations=FILE data.val.images=DIR")  # fmt: skip
    if threads is not None and not (is_int(threads) and threads >= 1):
        raise ConfigError(f"threads={threads}: give how many, from 1 on, or null for as many as there are cores")
    for key in ("examples", "sheet"):
        if not (is_int(config[key]) and config[key] >= 0):
            raise ConfigError(f"{key}={config[key]}: give how many, or 0")


def _annotations(data: B2InstDataModule, split: SplitName, part: SplitReport) -> Scan | None:
    """Go through the annotation file of a split, if there is one."""
    try:
        part.annotations = data.annotations(split)
    except DataError as error:
        part.tally.add(from_error("annotation file", error))
        return None
    scan = scan_annotations(part.annotations, part.tally.add)
    part.categories, part.counts = scan.categories, scan.counts()
    instances = part.counts["annotations"] - part.counts["crowds"]
    if not instances and (data.splits[split].skip_empty or not scan.images):
        what = f"none of its {len(scan.images)} images has an instance, and skip_empty=true leaves out those without"
        part.tally.add(Problem("no annotation", str(part.annotations), what, "add annotations, or give another file"))
    return scan


def _folder(data: B2InstDataModule, split: SplitName, part: SplitReport) -> bool:
    """Find the image folder of a split."""
    try:
        part.images = data.images(split)
    except DataError as error:
        part.tally.add(from_error("image folder", error))
    return part.images is not None


def _files(scan: Scan, split: SplitName, part: SplitReport, config: dict[str, Any]) -> None:
    """Look for the image files of a split, open them, and look at its masks."""
    part.paths.update(os.path.normpath(part.images / image.file_name) for image in scan.images)
    absent = {problem.image_id: problem for problem in missing_problems(part.images, scan.images)}
    for problem in absent.values():
        part.tally.add(problem)
    missing = {image.file_name for image in scan.images if image.id in absent}
    threads = config["threads"] or os.cpu_count() or 1
    found = scan_images(scan, part.images, missing, threads, config["decode"])
    for problems in track(found, f"{split:5s}", len(scan.images), disable=not config["progress"]):
        for problem in problems:
            part.tally.add(problem)


def _candidates(scan: Scan, split: SplitName, part: SplitReport, limit: int) -> list[Candidate]:
    """Images for the contact sheet: those with most problems, then some from everywhere in the file."""
    counts = {image_id: sum(kinds.values()) for image_id, kinds in part.tally.by_image.items()}
    worst = sorted((image for image in scan.images if image.id in counts), key=lambda image: -counts[image.id])
    others = [image for image in scan.images if image.id not in counts and image.id in scan.objects]
    chosen = worst[:limit] + others[:: max(1, len(others) // max(1, limit))][:limit]
    found = []
    for rank, image in enumerate(chosen):
        kinds = part.tally.by_image.get(image.id, {})
        caption = " - ".join([f"{split} {image.file_name}", *(f"{kind} {count}" for kind, count in kinds.items())])
        sheet = Sheet(caption, part.images / image.file_name, image.size, scan.objects.get(image.id, []))
        found.append((counts.get(image.id, 0), rank, sheet))
    return found


def _across(report: Report) -> None:
    """What only shows when the splits are seen together."""
    known = set().union(*(part.paths for part in report.splits.values()))
    for folder in dict.fromkeys(part.images for part in report.splits.values() if part.images is not None):
        part = next(part for part in report.splits.values() if part.images == folder)
        for path in unrecorded_files(Path(os.path.normpath(folder)), known):
            remedy = "add it to 'images', or leave it: it is not used"
            part.tally.add(Problem("image without a record", str(path), "no record names it", remedy))
    train, val = report.splits.get("train"), report.splits.get("val")
    if train and val and train.categories and val.categories:
        for problem in category_problems(train.annotations, train.categories, val.annotations, val.categories):
            train.tally.add(problem)


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="verify")
def main(cfg: DictConfig) -> None:
    """Command line entry; the exit code is 1 if there are errors."""
    with runtime.told_in_words():
        report = verify(plain(cfg))
    report.show()
    if report.total("error"):
        sys.exit(1)


if __name__ == "__main__":
    main()
