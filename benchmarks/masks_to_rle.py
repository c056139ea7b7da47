"""100 masks of an 800 x 1333 image to RLE, against torchvision's paste + encode and a dense paste with grid_sample.

torchvision samples pixels at other places than detectron2 and we do, and rounds boxes to whole pixels, so its codes
differ by definition; how far is printed as the mean IoU of the masks. `grid_sample paste` is detectron2's definition,
`paste_masks` of this package, on a canvas of the image.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness import THREADS, Result, compare, main  # isort: skip - sets the number of threads
import cv2
import numpy as np
import torch
from pycocotools import mask as rle_tools

from b2inst.ops.masks import masks_to_rle, paste_masks

HEIGHT, WIDTH, SIDE, COUNT = 800, 1333, 56, 100


def benchmarks() -> Iterator[Result]:
    """Boxes with sides of 20 to 400 pixels."""
    torch.set_num_threads(THREADS)
    probs, boxes = make_masks()
    name = "masks to RLE, 100 of 800x1333"

    def ours() -> list[str]:
        return [str(rle["counts"]) for rle in masks_to_rle(probs, boxes, HEIGHT, WIDTH)]

    def torchvision() -> list[str]:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        return _encode(paste_masks_in_image(probs[:, None], boxes, (HEIGHT, WIDTH))[:, 0])

    def dense() -> list[str]:
        pasted = (paste_masks(prob[None], box[None], HEIGHT, WIDTH) for prob, box in zip(probs, boxes, strict=True))
        return [code for canvas in pasted for code in _encode(canvas)]

    yield compare(name, ours, "torchvision paste + encode", torchvision, _agreement, "torchvision", rounds=3)
    yield compare(name, ours, "grid_sample paste + encode", dense, _agreement, rounds=3)


def make_masks(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred ellipses, (100, 56, 56), and their boxes, (100, 4)."""
    rng = np.random.default_rng(seed)
    probs = np.zeros((COUNT, SIDE, SIDE), np.float32)
    for prob in probs:
        axes = tuple(int(radius) for radius in rng.integers(10, SIDE // 2, 2))
        cv2.ellipse(prob, (SIDE // 2, SIDE // 2), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        prob[:] = cv2.GaussianBlur(prob, (0, 0), 2)
    center = rng.uniform([0, 0], [WIDTH, HEIGHT], (COUNT, 2))
    half = np.exp(rng.uniform(np.log(20), np.log(400), (COUNT, 2))) / 2
    boxes = np.concatenate([center - half, center + half], axis=1).clip(0, [WIDTH, HEIGHT] * 2)
    return torch.from_numpy(probs), torch.from_numpy(boxes.astype(np.float32))


def _encode(canvases: torch.Tensor) -> list[str]:
    masks = (canvases >= 0.5).numpy().astype(np.uint8)
    return [rle_tools.encode(np.asfortranarray(mask))["counts"].decode() for mask in masks]


def _agreement(ours: list[str], peer: list[str]) -> bool | str:
    if ours == peer:
        return True
    same = sum(one == two for one, two in zip(ours, peer, strict=True))
    one, two = ([{"size": [HEIGHT, WIDTH], "counts": code.encode()} for code in codes] for codes in (ours, peer))
    iou = float(np.mean([rle_tools.iou([a], [b], [0])[0, 0] for a, b in zip(one, two, strict=True)]))
    return f"{same} of {len(ours)} the same, mean IoU {iou:.3f}"


if __name__ == "__main__":
    main(benchmarks)
