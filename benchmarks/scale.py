"""Start-up and memory with annotations of the size of COCO's training split, generated here.

The file has 118,287 images and 860,001 instances, polygons of 27 points in the mean, and 1 % crowds as uncompressed
RLE; it weighs about as much as the original. The peer is what the usual toolboxes do: `pycocotools.coco.COCO`, whose
dicts each worker comes to own, because counting references writes to them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Result, main  # isort: skip - sets the number of threads
import numpy as np
from pycocotools.coco import COCO

from b2inst.data.index import CocoIndex

IMAGES, INSTANCES, CLASSES, HEIGHT, WIDTH = 118_287, 860_001, 80, 480, 640


def benchmarks() -> Iterator[Result]:
    """Start-up in seconds, then the memory that one worker adds when it has looked at every image, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances_train.json"
        write_annotations(path)
        ours, peer = (_in_child(lambda r=route: _measure(path, r)) for route in (_ours, _pycocotools))
    agree = ours["found"] == peer["found"]
    for name, key in (("start-up, COCO's size", "seconds"), ("memory per worker, COCO's size, MB", "worker")):
        yield Result(name, ours[key], peer[key], "pycocotools.coco.COCO", peer[key] / ours[key], agree)


def _ours(path: Path) -> tuple[Callable[[int], Any], list[int]]:
    index = CocoIndex.read(path)
    return (lambda id: [(o.id, not isinstance(o.segmentation, dict)) for o in index.objects(id)]), index.images.ids


def _pycocotools(path: Path) -> tuple[Callable[[int], Any], list[int]]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))

    def look(id: int) -> Any:
        return [(a["id"], isinstance(a["segmentation"], list)) for a in coco.loadAnns(coco.getAnnIds(id))]

    return look, coco.getImgIds()


def _measure(path: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    start = time.perf_counter()
    look, ids = read(path)
    seconds = time.perf_counter() - start

    def worker() -> tuple[float, int]:
        before, found = _own_memory(), 0
        for id in ids:
            found += hash(tuple(look(int(id))))
        return _own_memory() - before, found

    memory, found = _in_child(worker)
    return {"seconds": seconds, "worker": memory, "found": found}


def _own_memory() -> float:
    """MB that this process shares with no other."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.M)) / 1000


def _in_child(function: Callable[[], Any]) -> Any:
    """What the function returns, in a process made by fork, as the loader makes its workers."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(function()).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    with os.fdopen(read) as file:
        return json.loads(file.read())


def write_annotations(path: Path, images: int = IMAGES, instances: int = INSTANCES, seed: int = 0) -> None:
    """Write a file like instances_train2017.json; the outlines repeat, because only their number matters here."""
    rng = np.random.default_rng(seed)
    shapes = [_polygon(rng) for _ in range(2000)]
    crowds = [_crowd(rng) for _ in range(100)]
    owners = np.sort(rng.integers(1, images + 1, instances))
    labels, picks = rng.integers(1, CLASSES + 1, instances), rng.integers(0, 2000, instances)
    is_crowd = rng.random(instances) < 0.01
    with path.open("w") as file:
        records = ({"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH,
                    "license": 3, "date_captured": "2013-11-14 11:18:45", "coco_url": f"http://images/{i:012d}.jpg"}
                   for i in range(1, images + 1))  # fmt: skip
        file.write('{"info": {}, "images": [' + ", ".join(map(json.dumps, records)))
        file.write('], "categories": ' + json.dumps([{"id": i, "name": f"c{i}"} for i in range(1, CLASSES + 1)]))
        file.write(', "annotations": [')
        for i, (owner, label, pick, crowd) in enumerate(zip(owners, labels, picks, is_crowd, strict=True)):
            shape = crowds[pick % 100] if crowd else shapes[pick]
            file.write(f'{", " if i else ""}{{"segmentation": {shape}, "area": 702.1057, "iscrowd": {int(crowd)}, '
                       f'"image_id": {owner}, "bbox": [473.07, 395.93, 38.65, 28.67], "category_id": {label}, '
                       f'"id": {i + 1}}}')  # fmt: skip
        file.write("]}")


def _polygon(rng: np.random.Generator) -> str:
    points = int(np.clip(rng.lognormal(3.1, 0.6), 4, 200))
    return json.dumps([np.round(rng.random(2 * points) * HEIGHT, 2).tolist()])


def _crowd(rng: np.random.Generator) -> str:
    ends = np.sort(rng.choice(HEIGHT * WIDTH, 400, replace=False))
    return json.dumps({"size": [HEIGHT, WIDTH], "counts": np.diff([0, *ends, HEIGHT * WIDTH]).tolist()})


if __name__ == "__main__":
    main(benchmarks)
