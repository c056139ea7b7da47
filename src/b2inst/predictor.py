"""Find instances in images of any size with nothing but a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from b2inst.callbacks.pictures import DEFAULT_THRESHOLD
from b2inst.config import CHECKPOINT_TARGETS, build
from b2inst.data.augment import Augment
from b2inst.data.collate import pad
from b2inst.data.pixels import ImageLike, to_rgb
from b2inst.lit import LitSegmenter
from b2inst.models.assembly.blend import Blend
from b2inst.models.inference import Switches
from b2inst.models.segmenter import Outputs, Segmenter
from b2inst.prediction import Prediction
from b2inst.structures import ImageBatch


@dataclass(frozen=True)
class Inside:
    """What the network made of one image, on the CPU.

    Attributes:
        bases: (K, h, w) float32 mask bases, of the network input with its padding.
        boundary: (h, w) float32 logits of the boundary basis, of whatever class; None for a model without one.
        class_boundary: (C, h, w) float32 logits of the boundary of each class; None for a model that does not tell them
            apart.
        blend: attention and cropped bases of one instance, (K, R, R) or (K + 1, R, R) with the boundary basis last, in
            the frame of its box; None where it was not asked for, for an image with fewer instances, and without
            attention.
        has_attention: whether the assembly of the model makes masks with attention.
        size: (height, width) of the image as the network saw it, at the upper left of its input.
        canvas: (height, width) of the network input.
    """

    bases: Tensor
    boundary: Tensor | None
    class_boundary: Tensor | None
    blend: Blend | None
    has_attention: bool
    size: tuple[int, int]
    canvas: tuple[int, int]


class B2Inst:
    """A trained model that takes images as they are.

    Images are prepared as in the validation of the training, and what is found is brought back into their own pixels.
    Images share a pass only where their padded inputs have the same size, so that `batch_size` changes the speed and,
    beyond rounding, not the result. One object is not for several threads at a time.

    Args:
        module: in evaluation mode, for instance from `LitSegmenter.from_checkpoint`.
        device: where it runs; None for a CUDA device if there is one, else the CPU.
        switches: what makes it faster; the module itself stays as it is.

    Attributes:
        class_names: names by label.
        category_ids: ids of the annotation file by label.
        score_threshold: what `predict` takes if it is given none.
        device: where it runs.
        augment: `augment.val` of the training, which prepares images.
        size_divisor: inputs are padded to a multiple of it.

    Raises:
        ValueError: the device cannot be used.
        ConfigError: the validation transforms name something that a checkpoint may not.

    Example:
        model = B2Inst.from_checkpoint("outputs/demo/checkpoints/best.ckpt")
        result = model.predict("photo.jpg")
        result.draw("photo.jpg").save("found.png")
    """

    def __init__(
        self, module: LitSegmenter, device: str | torch.device | None = None, switches: Switches | None = None
    ) -> None:
        config = module.config
        self.device = choose_device(device)
        self._switches = switches or Switches()
        self.model: Segmenter = self._switches.prepare(module.model).to(self.device)
        self.class_names: tuple[str, ...] = tuple(config["classes"])
        self.category_ids: tuple[int, ...] = tuple(config["category_ids"])
        self.score_threshold = DEFAULT_THRESHOLD if module.best_threshold is None else module.best_threshold
        data = config["data"]
        self.size_divisor: int = data["size_divisor"]
        node = {"_target_": "b2inst.data.augment.Augment", "transforms": data["val_augment"]}
        self.augment: Augment = build(node, CHECKPOINT_TARGETS)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device | None = None, switches: Switches | None = None
    ) -> B2Inst:
        """Load a checkpoint of a training, or of `b2inst.interop.convert`.

        Only tensors and plain values are read from the file, and only parts of this package are built from it.

        Args:
            path: of the file.
            device, switches: as in the class.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is no checkpoint of this package, or asks for more.
        """
        return cls(LitSegmenter.from_checkpoint(path), device, switches)

    @property
    def has_boundary(self) -> bool:
        """Whether the model has a boundary basis."""
        return self.model.boundary.num_bases > 0

    @property
    def has_attention(self) -> bool:
        """Whether the masks are made with attention, which `Inside.blend` shows."""
        return self.model.assembly.has_attention

    @overload
    def predict(self, images: ImageLike, score_threshold: float | None = None, batch_size: int = 1) -> Prediction: ...
    @overload
    def predict(
        self, images: Sequence[ImageLike], score_threshold: float | None = None, batch_size: int = 1
    ) -> list[Prediction]: ...
    def predict(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float | None = None, batch_size: int = 1
    ) -> Prediction | list[Prediction]:
        """Find the instances of an image, or of several.

        Args:
            images: a path, an (H, W, 3) uint8 RGB array, a (3, H, W) uint8 RGB tensor or a PIL image; or a list or
                tuple of these, which may be of different sizes.
            score_threshold: smallest score of an instance, from 0 to 1; None for that with the best F1 on the
                validation data, which the checkpoint holds, or 0.3.
            batch_size: how many images are decoded and passed at a time.

        Returns:
            One result per image, in order; of a single image the result itself.

        Raises:
            ValueError: an image that is none; threshold or batch size out of range.
            DataError: a file that is not there or cannot be decoded; a kind of ValueError.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: give at least 1")
        if not isinstance(images, list | tuple):
            return self.run([to_rgb(images)], score_threshold)[0][0]
        found: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            part = [to_rgb(image, f"images[{start + i}]") for i, image in enumerate(images[start : start + batch_size])]
            found += [prediction for prediction, _ in self.run(part, score_threshold)]
        return found

    def run(
        self, images: Sequence[NDArray[np.uint8]], score_threshold: float | None = None, look_inside: bool = False,
        blend_of: int | None = None, everything: bool = False,
    ) -> list[tuple[Prediction, Inside | None]]:  # fmt: skip
        """Find the instances of images that are decoded, and keep what the network made of them.

        Args:
            images: (H, W, 3) uint8, RGB, passed together where the sizes of their inputs allow.
            score_threshold: as in `predict`.
            look_inside: keep the bases.
            blend_of: of which instance to keep attention and cropped bases as well, 0 for the best; None for none.
            everything: keep all that the validation scores, what the detector finds with its own threshold, whatever
                the mask score; `score_threshold` is not used then.

        Returns:
            of each image the result, and its `Inside` if one of the two was asked for.

        Raises:
            ValueError: threshold or instance out of range.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if isinstance(threshold, str) or not 0 <= threshold <= 1:
            raise ValueError(f"score_threshold={threshold}: give a score from 0 to 1")
        if blend_of is not None and blend_of < 0:
            raise ValueError(f"blend_of={blend_of}: give 0 for the best instance, 1 for the next, ..., or None")
        inputs = [self.prepare(image) for image in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(inputs):
            groups.setdefault(self._canvas(image), []).append(i)
        found: dict[int, tuple[Prediction, Inside | None]] = {}
        for canvas, members in groups.items():
            sizes = [images[i].shape[:2] for i in members]
            least = None if everything else threshold
            results = self._pass([inputs[i] for i in members], sizes, canvas, least, look_inside, blend_of)
            found.update(zip(members, results, strict=True))
        return [found[i] for i in range(len(images))]

    def prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """Show an image as the validation of the training shows it to the network.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            (3, H', W') uint8, RGB, without padding.

        Raises:
            ValueError: the validation of this training cut or turned images.
        """
        height, width = image.shape[:2]
        maps = np.zeros((1, height, width), np.uint16)
        if self.augment.moves_points:
            seen, _, matrix = self.augment.with_matrix(image, maps, seed=0)
            stretch = np.array([[seen.shape[1] / width, 0, 0], [0, seen.shape[0] / height, 0]])
            if not np.allclose(matrix, stretch, atol=1e-3):
                raise ValueError(
                    "augment.val of this checkpoint cuts or turns images, so that its boxes have no place in the image "
                    "itself; train with transforms that resize in augment.val"
                )
        else:
            seen, _ = self.augment(image, maps, seed=0)
        return torch.from_numpy(seen.transpose(2, 0, 1).copy())

    def _canvas(self, image: Tensor) -> tuple[int, int]:
        height, width = (-(-side // self.size_divisor) * self.size_divisor for side in image.shape[1:])
        return height, width

    @torch.inference_mode()
    def _pass(
        self, inputs: Sequence[Tensor], sizes: Sequence[tuple[int, int]], canvas: tuple[int, int],
        threshold: float | None, look_inside: bool, blend_of: int | None,
    ) -> list[tuple[Prediction, Inside | None]]:  # fmt: skip
        """One pass of the network over inputs that fit the same canvas; `sizes` are those of the images."""
        batch = _batch(inputs, sizes, canvas).to(self.device)
        with self._switches.autocast(self.device), self._finds_from(threshold):
            outputs = self.model(batch)
            found = self.model.find(outputs, batch)
            blends = [None] * len(inputs) if blend_of is None else self.model.blends(outputs, found, blend_of)
        results: list[tuple[Prediction, Inside | None]] = []
        for i, (detections, size) in enumerate(zip(found.detections(), sizes, strict=True)):
            kept = detections if threshold is None else detections[detections.scores >= threshold]
            prediction = Prediction.from_detections(kept, size, self.class_names, self.category_ids)
            inside = None
            if look_inside or blend_of is not None:
                blend = None if blend_of is None or blend_of >= len(kept) else blends[i]
                inside = self._inside(outputs, i, blend, tuple(inputs[i].shape[1:]), canvas)
            results.append((prediction, inside))
        return results

    @contextmanager
    def _finds_from(self, threshold: float | None) -> Iterator[None]:
        """Let the detector look further down than in the validation where less is asked for.

        Its threshold is one of probabilities, of which a score is the root at most; the little less is for rounding.
        """
        detector: Any = self.model.detector
        usual = detector.score_threshold
        detector.score_threshold = usual if threshold is None else min(usual, 0.999999 * threshold**2)
        try:
            yield
        finally:
            detector.score_threshold = usual

    def _inside(
        self, outputs: Outputs, index: int, blend: Blend | None, size: tuple[int, int], canvas: tuple[int, int]
    ) -> Inside:
        bases = outputs.bases[index].float().cpu()
        own = self.model.split(bases[None])[1]
        boundary, by_class = self.model.boundary.logits(own), self.model.boundary.class_logits(own)
        return Inside(
            bases=bases[: self.model.num_bases],
            boundary=None if boundary is None else boundary[0],
            class_boundary=None if by_class is None else by_class[0],
            blend=None if blend is None else Blend(blend.attention.cpu(), blend.bases.cpu()),
            has_attention=self.has_attention,
            size=size,
            canvas=canvas,
        )


def choose_device(given: str | torch.device | None) -> torch.device:
    """The device that is given, or for None a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: it cannot be used.
    """
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=given)
    except (RuntimeError, AssertionError) as error:  # torch has both, for an unknown name and for no CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={given}: cannot be used ({reason}); give cpu, or null to choose") from error
    return torch.device(given)


def _batch(inputs: Sequence[Tensor], sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]) -> ImageBatch:
    """Put inputs at the upper left of a canvas."""
    return ImageBatch(
        pixels=pad(inputs, *canvas),
        sizes=torch.tensor([image.shape[1:] for image in inputs]),
        original_sizes=torch.tensor([*sizes]),
        image_ids=torch.arange(len(inputs)),
    )
