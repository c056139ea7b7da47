"""Measure what docs/scaling.md reckons with, and write the table of that page.

    B2INST_DATA=DIR python scripts/measure_scaling.py

Rows that need photos use the images of `DIR/coco`; without them they say that they are missing. Times are seconds of
this process on one core.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from blocks import replace_block
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from scale import write_annotations  # noqa: E402
from synthetic import coco_like  # noqa: E402

from b2inst.config import build, plain  # noqa: E402
from b2inst.data.image import read_image  # noqa: E402
from b2inst.data.index import CocoIndex  # noqa: E402
from b2inst.paths import config_dir  # noqa: E402
from b2inst.predict_paths import Paths  # noqa: E402
from b2inst.predict_shards import Shards  # noqa: E402
from b2inst.split import Split  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- measured: begin, written by scripts/measure_scaling.py -->", "<!-- measured: end -->"
IMAGES, INSTANCES = 20_000, 145_000  # as many instances of an image as in COCO
FOUND = (7, 100)  # instances of an image in results
PHOTOS = 60
SIDE = 800  # of the shorter side of an image of the published models

Row = tuple[str, str, str]


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


READ = """
import re, sys
from b2inst.data.index import CocoIndex
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
CocoIndex.read(sys.argv[1])
print((peak() - before) * 1024)
"""


def annotations(folder: Path) -> Iterator[Row]:
    """What a file of annotations becomes in memory."""
    path = folder / "instances.json"
    write_annotations(path, IMAGES, INSTANCES)
    command = [sys.executable, "-c", READ, str(path)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    how = f"peak of the process, {IMAGES:,} generated images, {path.stat().st_size / 1e6:.0f} MB"
    yield "annotations, while read", f"{grown / path.stat().st_size:.1f} bytes for each byte of JSON", how
    size = len(pickle.dumps(CocoIndex.read(path))) / INSTANCES
    yield "annotations, index", f"{size:.0f} bytes an object, once in a process", "`len(pickle.dumps(CocoIndex))`"


def results(folder: Path, images: int = 300) -> Iterator[Row]:
    """What predictions take on the disk, and how fast they are written, read and joined."""
    sizes, times = {}, {}
    for found in FOUND:
        truth, records = coco_like(images, found)
        parts = [records[i * found : (i + 1) * found] for i in range(images)]
        shards = Shards(folder / str(found))
        shards.folder.mkdir(parents=True)
        shards.begin({})
        adding = seconds(lambda s=shards, p=parts, t=truth: [
            s.add(Split(), i, image, part, "") for i, (image, part) in enumerate(zip(t["images"], p, strict=True))
        ])  # fmt: skip
        shards.close()
        size = sum(path.stat().st_size for path in shards.folder.glob("*.jsonl"))
        sizes[found] = size / images
        times[found] = adding / images, size / seconds(shards.done), size / seconds(lambda s=shards: s.merge({}))
    few, many = FOUND
    per_instance = (sizes[many] - sizes[few]) / (many - few)
    yield (
        "results",
        f"{per_instance:.0f} bytes an instance: {sizes[few] / 1e3:.1f} KB with {few} in an image, "
        f"{sizes[many] / 1e3:.0f} KB with {many}",
        "`Shards.add` of generated results",
    )
    adding, reading, joining = times[few][0], times[many][1], times[many][2]
    yield (
        "writing, reading again, joining shards",
        f"{1e3 * adding:.2f} ms an image with {few}; {reading / 1e6:.0f} MB/s; {joining / 1e6:.0f} MB/s",
        "`Shards.add`, `done`, `merge`",
    )


def inputs(count: int = 1_000_000) -> Iterator[Row]:
    """What a list of images takes in each process."""
    paths = Paths(f"{i:057d}" for i in range(10_000))
    yield (
        "inputs held by a process",
        f"bytes of the path + 8, and 1 for done: {paths.state_bytes / len(paths) + 1:.0f} bytes",
        "`Paths.state_bytes`, paths of 57 letters",
    )
    split = Split(3, 64, "a run")
    spent = seconds(lambda: [split.owns(position) for position in range(count)])
    yield "going through all inputs for one part", f"{spent:.1f} s a million", "`Split.owns`"


def checkpoint() -> Iterator[Row]:
    """The weights of the whole model."""
    overrides = ["experiment=b2inst", "recipe=coco_1x", "model.num_classes=80"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("train", overrides).model)
    config["backbone"]["weights"] = None
    with torch.device("meta"):
        model = build(config)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    yield "checkpoint, weights alone", f"{size / 1e6:.0f} MB", "tensors of `experiment=b2inst recipe=coco_1x`"


def photos(folder: Path) -> Iterator[Row]:
    """Decoding and resizing."""
    files = sorted(folder.glob("*.jpg"))
    decode, resize, name = "inference: decode", "inference: resize to 800", "a JPEG of COCO"
    if len(files) < PHOTOS:
        yield from ((title, "missing", f"{PHOTOS} photos in `coco/val2017`") for title in (decode, resize, name))
        return
    images: list[Any] = []
    spent = seconds(lambda: images.extend(read_image(path) for path in files[:PHOTOS]))
    yield decode, f"{1e3 * spent / PHOTOS:.1f} ms of a core", f"`read_image`, {PHOTOS} photos of COCO"
    scales = [SIDE / min(image.shape[:2]) for image in images]
    spent = seconds(lambda: [
        cv2.resize(image, None, fx=s, fy=s, interpolation=cv2.INTER_LINEAR)
        for image, s in zip(images, scales, strict=True)
    ])  # fmt: skip
    yield resize, f"{1e3 * spent / PHOTOS:.1f} ms of a core", "`cv2.resize`, the same"
    mean = sum(path.stat().st_size for path in files) / len(files)
    yield name, f"{mean / 1e3:.0f} KB", f"{len(files)} files of val2017"


def table(rows: list[Row]) -> str:
    """As Markdown."""
    return "\n".join(["| measured | | with |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def main(page: Path = PAGE) -> None:
    """Command line entry."""
    cv2.setNumThreads(1)
    data = Path(os.environ.get("B2INST_DATA", ROOT / "data"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*photos(data / "coco" / "val2017"), *annotations(folder), *results(folder), *inputs(), *checkpoint()]
    page.write_text(replace_block(page.read_text(), BEGIN, END, table(rows)))
    print(table(rows))


if __name__ == "__main__":
    main()
