"""Opens every image of a set, several at a time, and looks at the masks of its objects."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pycocotools import mask as coco_mask

from b2inst.data.errors import DataError, ImageSizeError
from b2inst.data.image import read_image
from b2inst.data.index import CocoImage
from b2inst.data.problems import Problem, from_error
from b2inst.data.scan import Scan
from b2inst.ops.rasterize import to_rle

A = TypeVar("A")
B = TypeVar("B")


def scan_images(
    scan: Scan, folder: Path, missing: Collection[str], threads: int, decode: bool = True
) -> Iterator[list[Problem]]:
    """Check the image files and masks of a split, in the order of its images.

    Threads are enough: OpenCV gives the interpreter free while it decodes.

    Args:
        scan: of the annotations.
        folder: of the images.
        missing: files that are known not to be there; they are not looked for again.
        threads: how many images are looked at at the same time.
        decode: open the files; otherwise only the masks are looked at.

    Yields:
        the problems of one image, usually none.
    """

    def inspect(image: CocoImage) -> list[Problem]:
        problems = list(_empty_masks(scan, image))
        if decode and image.file_name not in missing:
            problems += _file(folder / image.file_name, image)
        return problems

    yield from parallel(inspect, scan.images, threads)


def parallel(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """Map a function over items in threads, in their order; only a few results wait at a time."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # of a caller that stops early
            for future in waiting:
                future.cancel()


def _file(path: Path, image: CocoImage) -> Iterator[Problem]:
    try:
        read_image(path, image.size)
    except DataError as error:
        kind = "image of another size" if isinstance(error, ImageSizeError) else "damaged image file"
        yield from_error(kind, error, image.id)


def _empty_masks(scan: Scan, image: CocoImage) -> Iterator[Problem]:
    for record in scan.objects.get(image.id, []):
        if min(record["bbox"][2:]) <= 0:  # reported already
            continue
        if not coco_mask.area(to_rle(record["segmentation"], *image.size)):
            where, what = f"{scan.path}: annotation {record['id']}", "its mask has no pixel"
            remedy = "remove it: training leaves it out, but evaluation counts it as missed"
            yield Problem("zero area", where, what, remedy, image.id)
