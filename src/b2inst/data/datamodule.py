"""The LightningDataModule: from a folder in COCO format to batches with boundary ground truth on the device."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import cv2
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler

from b2inst.data.augment import Augment
from b2inst.data.boundary_target import BoundaryTarget
from b2inst.data.coco import CocoDataset
from b2inst.data.collate import SIZE_DIVISOR, collate
from b2inst.data.damaged import DamageLimit
from b2inst.data.errors import DataError
from b2inst.data.index import CocoIndex
from b2inst.data.problems import refuse
from b2inst.data.sampler import EpochSampler, GroupedBatchSampler, LazyLoader, ResumableLoader
from b2inst.data.scan import category_problems
from b2inst.data.startup import Source, block, explain, missing_lines, refusal
from b2inst.structures import Batch

log = logging.getLogger(__name__)

ROOT_VARIABLE = "B2INST_DATA"
SplitName = Literal["train", "val"]


@dataclass(frozen=True)
class Split:
    """Where one split is and what is taken of it.

    Attributes:
        annotations: the COCO file, relative to the root or absolute; None: `annotations/instances_<split>*.json`.
        images: the image folder, relative to the root or absolute; None: the folder in the root with the name that
            follows `instances_` in the annotation file.
        skip_empty: leave out images without an instance, as detectron2 does in training.
        limit: take the first so many images of those left; None for all.
    """

    annotations: str | Path | None = None
    images: str | Path | None = None
    skip_empty: bool = False
    limit: int | None = None


class B2InstDataModule(pl.LightningDataModule):
    """Loaders for training and validation; test and predict use the validation split.

    Args:
        root: folder of the set; a relative one is looked for in the folder that the environment variable
            B2INST_DATA names, if it is set. None if both splits give absolute paths, or for B2INST_DATA itself.
        train: the training split, as a `Split` or as keyword arguments of one.
        val: the validation split.
        train_augment: named albumentations transforms for training; None or {} for none.
        val_augment: the same for validation, where they should not be random.
        boundary_target: makes the boundary ground truth after the transfer to the device; None to make none.
        prepare: called with the root before anything is read, for example to generate the set.
        batch_size: images per process and step in training.
        val_batch_size: the same in validation; None for `batch_size`.
        num_workers: loader processes of each loader; 0 loads in the main process.
        size_divisor: batches are padded to a multiple of it.
        pin_memory: copy batches to pinned memory, for CUDA.
        persistent_workers: keep the loader processes from epoch to epoch.
        group_by_aspect: make training batches of wide or of tall images only, which need less padding.
        max_damaged: share of the training images whose files may be missing or damaged; they are left out of their
            batches with a warning. 0 fails at the first. Validation bears none.

    Raises:
        ValueError: `max_damaged` is no share.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        train: Split | Mapping[str, Any] | None = None,
        val: Split | Mapping[str, Any] | None = None,
        train_augment: Mapping[str, Any] | None = None,
        val_augment: Mapping[str, Any] | None = None,
        boundary_target: BoundaryTarget | None = None,
        prepare: Callable[[Path], Any] | None = None,
        batch_size: int = 16,
        val_batch_size: int | None = None,
        num_workers: int = 2,
        size_divisor: int = SIZE_DIVISOR,
        pin_memory: bool = False,
        persistent_workers: bool = True,
        group_by_aspect: bool = False,
        max_damaged: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 <= max_damaged <= 1:
            raise ValueError(f"max_damaged={max_damaged!r}: give a share of the training images, from 0 to 1")
        self.root = resolve_root(root)
        self.splits: dict[SplitName, Split] = {"train": _split(train), "val": _split(val)}
        self.augments = {"train": Augment(train_augment), "val": Augment(val_augment)}
        self.boundary_target = boundary_target
        self.prepare = prepare
        self.batch_sizes = {"train": batch_size, "val": val_batch_size or batch_size}
        self.num_workers = num_workers
        self.size_divisor = size_divisor
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.group_by_aspect = group_by_aspect
        self.max_damaged = max_damaged
        self._datasets: dict[SplitName, CocoDataset] = {}
        self._prepared = False

    # ------------------------------------------------------------------ what is on disk

    def prepare_data(self) -> None:
        """Call `prepare`, once in a process; it has to bear several processes at a time."""
        if self.prepare is not None and not self._prepared:
            self.prepare(self.root)
        self._prepared = True

    def annotations(self, split: SplitName) -> Path:
        """The annotation file of a split.

        Raises:
            DataError: the root or the file is not there, or several files could be meant.
        """
        self.prepare_data()
        given = self.splits[split].annotations
        if not self.root.is_dir() and not Path(given or "").is_absolute():
            raise DataError(
                f"data.root: {self.root.absolute()} is no folder ({ROOT_VARIABLE} is "
                f"{os.environ.get(ROOT_VARIABLE, 'not set')}); set data.root=DIR to a folder with annotations/ and "
                f"images in it; a relative DIR is looked for in ${ROOT_VARIABLE}, if that is set"
            )
        if given is not None:
            return self.root / given
        pattern = f"annotations/instances_{split}*.json"
        found = sorted(self.root.glob(pattern))
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} files match: {', '.join(path.name for path in found)}" if found else "no file matches"
        raise DataError(f"{self.root}/{pattern}: {what}; say which one with data.{split}.annotations=FILE")

    def images(self, split: SplitName) -> Path:
        """The image folder of a split.

        Raises:
            DataError: it is not there.
        """
        annotations = self.annotations(split)
        given = self.splits[split].images
        if given is not None:
            places = [self.root / given]
        else:  # an annotation file outside the root may have its images beside it
            name = annotations.stem.removeprefix("instances_")
            places = [self.root / name, annotations.parent.parent / name]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            there = sorted(path.name for path in self.root.glob("*/"))
            raise DataError(
                f"{places[0]}: is no folder, for the images of {annotations}; set data.{split}.images=DIR, absolute or "
                f"relative to {self.root}, which has the folders {there}"
            )
        return folder

    @property
    def val_annotations(self) -> Path:
        """The file that the validation is scored against."""
        return self.annotations("val")

    # ------------------------------------------------------------------ what is in it

    @cached_property
    def val_index(self) -> CocoIndex:
        """The checked annotations of the validation split; names and counts of classes come from it."""
        return self._read("val")

    @cached_property
    def train_index(self) -> CocoIndex:
        """The checked annotations of the training split.

        Raises:
            DataError: something in the file is wrong, or its categories are not those of the validation split.
        """
        val, path = self.val_index, self.annotations("train")
        if path == val.path:
            return val
        index = self._read("train")
        ours, theirs = (dict(zip(i.category_ids, i.class_names, strict=True)) for i in (index, val))
        refuse(category_problems(path, ours, val.path, theirs))
        return index

    def _read(self, split: SplitName) -> CocoIndex:
        """Read an annotation file; if it cannot be used, say what is wrong with both splits, to mend it at once.

        Raises:
            DataError: it cannot be used; the message has one line for each kind of error.
        """
        path = self.annotations(split)
        try:
            return CocoIndex.read(path)
        except DataError as error:
            sources = {}
            for name in ("val", "train"):
                with contextlib.suppress(DataError):  # of another split, which is perhaps not wanted
                    place = self.annotations(name)
                    allowed = self.max_damaged if name == "train" else 0.0
                    sources.setdefault(place, Source(place, partial(self.images, name), allowed))
            lines = explain(list(sources.values())) or block(path, [str(error)])
            raise refusal(lines, self.verify_command()) from error

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Ids of the classes in the annotation files, by label."""
        return self.val_index.category_ids

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.val_index.class_names

    @property
    def num_classes(self) -> int:
        """C, the number of categories of the annotation files."""
        return len(self.category_ids)

    # ------------------------------------------------------------------ loaders

    def dataset(self, split: SplitName) -> CocoDataset:
        """The data set of a split; made once."""
        if split not in self._datasets:
            part = self.splits[split]
            index = self.train_index if split == "train" else self.val_index
            dataset = CocoDataset(
                index, self.images(split), self.augments[split], part.skip_empty, part.limit,
                skip_damaged=split == "train" and self.max_damaged > 0,
            )  # fmt: skip
            self._datasets[split] = dataset
            counts = index.class_counts()
            shown = sorted(counts.items(), key=lambda item: -item[1])[:10]
            text = ", ".join(f"{name} {count:,}" for name, count in shown) + (", ..." if len(counts) > 10 else "")
            total = f"{len(index.images):,} images, {sum(counts.values()):,} instances, {len(counts)} classes"
            log.info("%s: uses %s of %s (%s) in %s", split, f"{len(dataset):,}", total, text, index.path)
        return self._datasets[split]

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations and look for the files, so that what is wrong shows before the first step.

        Raises:
            DataError: something is wrong; one line for each kind of error.
        """
        lines: list[str] = []
        for split in ("train", "val") if stage in ("fit", None) else ("val",):
            lines += missing_lines(self.dataset(split), self.max_damaged if split == "train" else 0.0)
        if lines:
            raise refusal(lines, self.verify_command())

    def verify_command(self) -> str:
        """The command that examines this set thoroughly."""
        settings = {"data.root": self.root}
        for split, part in self.splits.items():
            settings |= {f"data.{split}.annotations": part.annotations, f"data.{split}.images": part.images}
        given = (f"{key}={shlex.quote(str(value))}" for key, value in settings.items() if value is not None)
        return " ".join(["python -m b2inst.verify data=custom", *given])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; a last incomplete one is dropped unless it is the only one.

        Order and samples depend on the seed of Lightning, the epoch and the image only, so that a resumed epoch is the
        one that was interrupted.
        """
        dataset, size = self.dataset("train"), self.batch_sizes["train"]
        seed = int(os.environ.get("PL_GLOBAL_SEED") or torch.randint(2**31, ()))
        sizes = dataset.images.sizes
        rank, processes = self._place()
        sampler = GroupedBatchSampler(
            EpochSampler(dataset, seed), size, len(dataset) >= size * processes, seed,
            groups=(sizes[:, 0] > sizes[:, 1]) if self.group_by_aspect else None, rank=rank, processes=processes,
        )  # fmt: skip
        return self._loader("train", batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the file, of which each process takes its share.

        All have as many, for they wait for each other; so the last ones may have images of the first, which the
        evaluation counts once.
        """
        rank, processes = self._place()
        dataset, sampler = self.dataset("val"), None
        if processes > 1:
            sampler = DistributedSampler(dataset, processes, rank, shuffle=False)
        return self._loader("val", batch_size=self.batch_sizes["val"], sampler=sampler)

    def _place(self) -> tuple[int, int]:
        """Rank of this process, and how many there are."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    predict_dataloader = val_dataloader

    def _loader(self, split: SplitName, **batches: Any) -> DataLoader[Batch]:
        loader = ResumableLoader if split == "train" else LazyLoader
        return loader(
            self.dataset(split),
            **batches,
            generator=torch.Generator(),  # else each start of workers moves the generator that the model draws from
            collate_fn=partial(collate, divisor=self.size_divisor),
            num_workers=self.num_workers,
            worker_init_fn=_start_worker,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers and self.num_workers > 0,
        )

    @cached_property
    def damage(self) -> DamageLimit:
        """The training images that were left out so far, in this process."""
        return DamageLimit(self.max_damaged, len(self.dataset("train")))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the images that the loader left out.

        Raises:
            DataError: there are more than `max_damaged` allows.
        """
        if batch.damaged:
            self.damage.add(batch.damaged)
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make the boundary ground truth where the batch now is."""
        if self.boundary_target is None or batch.targets is None:
            return batch
        return self.boundary_target(batch)


def resolve_root(root: str | Path | None) -> Path:
    """The folder that `root` means: a relative one is looked for in $B2INST_DATA, if that is set.

    A root that already begins with $B2INST_DATA, as those of the configurations do, is left as it is.
    """
    base = Path(os.environ.get(ROOT_VARIABLE) or ".").expanduser()
    path = Path("." if root is None else root).expanduser()
    return path if path.is_absolute() or path.is_relative_to(base) else base / path


def _split(split: Split | Mapping[str, Any] | None) -> Split:
    return split if isinstance(split, Split) else Split(**(split or {}))


def _start_worker(worker_id: int) -> None:
    """Leave the cores to the other workers; torch has already seeded its generator, which samples draw from."""
    cv2.setNumThreads(0)
    os.setpgid(0, 0)  # Ctrl-C and a scheduler's signals go to a whole group; the main process still needs its batches
