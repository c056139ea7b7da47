"""An exported model against the model that it was made of."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from b2inst.bench.report import aligned
from b2inst.config import ConfigError
from b2inst.data import shapes
from b2inst.data.collate import pad
from b2inst.data.image import read_image
from b2inst.export_files import Run
from b2inst.export_model import DIVISOR, TRACED
from b2inst.predict_source import open_source
from b2inst.predictor import B2Inst
from b2inst.structures import Detections, ImageBatch

IMAGES = 4  # that are compared at most
SAME = 1.0  # pixels within which two boxes stand for the same instance
LOST = 0.01  # share of the instances that may have no counterpart: rounding decides ties at thresholds
HEAD = ("batch", "height", "width", "instances", "unpaired", "boxes", "scores", "mask logits")


@dataclass(frozen=True)
class Case:
    """One batch that both were given.

    Attributes:
        batch, height, width: of the input.
        instances: that the model finds.
        unpaired: instances of one of them that the other does not have.
        boxes: largest difference in pixels.
        scores, masks: largest difference of scores and mask logits.
    """

    batch: int
    height: int
    width: int
    instances: int
    unpaired: int
    boxes: float
    scores: float
    masks: float

    def fits(self, tolerance: float) -> bool:
        """Whether no difference is larger."""
        return max(self.boxes, self.scores, self.masks) <= tolerance and self.unpaired <= LOST * self.instances


@dataclass(frozen=True)
class Report:
    """An exported file, and what its check found.

    Attributes:
        file: its path.
        format: `onnx` or `torch_export`.
        opset: version of ONNX's operators; None in the other format.
        bytes: size of the file.
        tolerance: largest difference that is allowed.
        cases: what was compared.
        ms_exported, ms_pytorch: milliseconds an image takes, in the first case.
        threads: that both had.
    """

    file: str
    format: str
    opset: int | None
    bytes: int
    tolerance: float
    cases: list[Case]
    ms_exported: float
    ms_pytorch: float
    threads: int

    @property
    def fits(self) -> bool:
        """Whether the file does what the model does; not before something was found to compare."""
        return self.compared and all(case.fits(self.tolerance) for case in self.cases)

    @property
    def compared(self) -> bool:
        """Whether the model found anything in the images."""
        return any(case.instances for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "fits": self.fits, "torch": torch.__version__}

    def __str__(self) -> str:
        kind = "torch.export" if self.opset is None else f"ONNX, opset {self.opset}"
        rows = [
            [str(v) if isinstance(v, int) else f"{v:.1e}" for v in asdict(case).values()] for case in self.cases
        ]  # fmt: skip
        verdict = f"as PyTorch within {self.tolerance:g}" if self.fits else f"differs by more than {self.tolerance:g}"
        if not self.compared:
            verdict = "nothing was found in the images, so nothing was compared; give others with check=PATH"
        return "\n".join([
            f"{self.file}: {kind}, {self.bytes / 1e6:.1f} MB",
            aligned([list(HEAD), *rows]),
            f"{self.ms_exported:.0f} ms an image, PyTorch {self.ms_pytorch:.0f} ms ({self.threads} threads)",
            verdict,
        ])  # fmt: skip


def check_images(given: str | None) -> list[NDArray[np.uint8]]:
    """Images to compare with, (H, W, 3) uint8 RGB.

    Args:
        given: an image, a folder or a pattern, of which the first few that can be read are taken; None for the
            built-in shapes.

    Raises:
        ConfigError: there is no image.
    """
    if given is None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "shapes"
            shapes.generate(root, train_images=1, val_images=IMAGES)
            return [read_image(path) for path in sorted((root / "val").iterdir())]
    images: list[NDArray[np.uint8]] = []
    for frame in open_source(given, "check").frames():
        if frame.pixels is not None:
            images.append(frame.pixels)
        if len(images) == IMAGES:
            break
    if not images:
        raise ConfigError(f"check={given}: none of the images can be read; give others")
    return images


def batches(model: B2Inst, images: Sequence[NDArray[np.uint8]], smallest: int = DIVISOR) -> list[ImageBatch]:
    """One image alone, and three on a canvas with room around them: other numbers and sizes than were traced.

    Args:
        model: prepares the images.
        images: at least one.
        smallest: side of a canvas.
    """
    inputs = [model.prepare(image) for image in images]
    return [
        _batch(inputs[:1], model.size_divisor, smallest),
        _batch([inputs[i % len(inputs)] for i in (1, 2, 3)], model.size_divisor, smallest + DIVISOR, room=DIVISOR),
    ]


def _batch(inputs: Sequence[Tensor], divisor: int, smallest: int, room: int = 0) -> ImageBatch:
    sizes = torch.tensor([image.shape[1:] for image in inputs])
    height, width = (max(-(-side // divisor) * divisor + room, smallest) for side in sizes.amax(dim=0).tolist())
    if (height, width) == TRACED[1:]:
        width += divisor
    return ImageBatch(pad(inputs, height, width), sizes, sizes, torch.arange(len(inputs)))


def compare(model: B2Inst, run: Run, batch: ImageBatch) -> Case:
    """Give both the same images.

    Args:
        model: what was exported.
        run: the file.
        batch: the images.
    """
    expected, found = _detect(model, batch), _by_image(run(batch.pixels, batch.sizes), batch)
    pairs = [_pair(a, b) for a, b in zip(expected, found, strict=True)]
    unpaired = sum(len(a) + len(b) - 2 * len(i) for a, b, (i, _) in zip(expected, found, pairs, strict=True))
    largest = {"boxes": 0.0, "scores": 0.0, "mask_logits": 0.0}
    for a, b, (i, j) in zip(expected, found, pairs, strict=True):
        for name in largest if len(i) else ():
            difference = (getattr(a, name)[i] - getattr(b, name)[j]).abs().max()
            largest[name] = max(largest[name], float(difference))
    count, _, height, width = batch.pixels.shape
    return Case(count, height, width, sum(map(len, expected)), unpaired, *largest.values())


def _by_image(outputs: tuple[Tensor, ...], batch: ImageBatch) -> list[Detections]:
    boxes, scores, labels, masks, image = outputs
    every = Detections(boxes, labels, scores, scores, masks, (0, 0))
    return [every[image == n] for n in range(len(batch))]


def _pair(a: Detections, b: Detections) -> tuple[list[int], list[int]]:
    """Indices of instances that stand for the same; their order may differ where scores are equal."""
    if not len(a) or not len(b):
        return [], []
    # Boxes that were cut at the image can be equal; masks, at some of their cells, tell them apart.
    keys = [torch.cat([d.boxes, d.scores[:, None], d.mask_logits[:, ::4, ::4].flatten(1)], dim=1) for d in (a, b)]
    distance = torch.cdist(*keys, p=torch.inf)
    apart = (torch.cdist(a.boxes, b.boxes, p=torch.inf) > SAME) | (a.labels[:, None] != b.labels)
    distance[apart] = torch.inf
    pairs: list[tuple[int, int]] = []
    for i in range(len(a)):
        nearest, j = distance[i].min(dim=0)
        if nearest < torch.inf:
            pairs.append((i, int(j)))
            distance[:, j] = torch.inf
    return [i for i, _ in pairs], [j for _, j in pairs]


@torch.inference_mode()
def _detect(model: B2Inst, batch: ImageBatch) -> list[Detections]:
    return model.model.detect(model.model(batch), batch)


def milliseconds(model: B2Inst, run: Run, batch: ImageBatch, repeats: int = 3) -> tuple[float, float]:
    """Time that an image takes in the file and in PyTorch, the median of some repeats after a first pass."""
    return (
        _time(lambda: run(batch.pixels, batch.sizes), repeats) / len(batch),
        _time(lambda: _detect(model, batch), repeats) / len(batch),
    )


def _time(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
