"""Evaluate a checkpoint with several processes that know nothing of each other, and can be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from b2inst.config import ConfigError
from b2inst.data.datamodule import B2InstDataModule
from b2inst.data.errors import DataError
from b2inst.lit import LitSegmenter
from b2inst.metrics.coco import KINDS, CocoEvaluator
from b2inst.metrics.scores import Scores
from b2inst.predict_paths import Paths, digest
from b2inst.predict_run import run
from b2inst.predict_shards import Shards
from b2inst.predict_source import ImageFiles
from b2inst.predict_writer import Writer
from b2inst.predictor import B2Inst
from b2inst.split import Split


def evaluate_part(
    config: dict[str, Any], module: LitSegmenter, data: B2InstDataModule, split: Split, output: Path
) -> Scores | None:
    """Find what is in the images of one process; who does the last image of all scores them.

    Args:
        config: plain values, as `conf/evaluate.yaml` composes them, with `ckpt`.
        module: the checkpoint.
        data: its validation data, or others.
        split: the part of this process.
        output: the file of the scores; shards and results lie beside it.

    Returns:
        The scores; None if images of other processes are left.

    Raises:
        ConfigError: another evaluation was begun here.
        DataError: an image cannot be read.
    """
    data.setup("validate")
    images = data.dataset("val").images
    folder = data.images("val")
    source = ImageFiles(
        data.val_annotations.name, Paths(str(folder / name.decode()) for name in images.names.tolist()),
        images.ids, images.sizes,
    )  # fmt: skip
    shards = Shards(output.parent)
    if not shards.exist and output.exists():
        raise ConfigError(f"output={output}: is there already; remove it, or give another file")
    shards.begin({
        "input": source.digest(), "annotations": digest(data.val_annotations), "ckpt": digest(config["ckpt"]),
        "score_threshold": config["score_threshold"],
    })  # fmt: skip
    device = {"cpu": "cpu", "gpu": split.device(None) or "cuda"}.get(config["accelerator"], split.device(None))
    try:
        model = B2Inst(module, device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    writer = Writer(shards, split, output.parent)
    progress = config["progress"] and split.index == 0
    summary = run(source, [model], writer, data.batch_sizes["val"], None, progress, everything=True)
    print(summary, flush=True)
    return None if summary.left else _score(config, data, model, shards, split, output)


def _score(
    config: dict[str, Any], data: B2InstDataModule, model: B2Inst, shards: Shards, split: Split, output: Path
) -> Scores:
    """Score all shards; one image is held as JSON at a time."""
    evaluator = CocoEvaluator(data.val_annotations, config["kinds"] or KINDS, config["dilation_ratio"])
    for entry in shards.entries():
        if "problem" in entry:
            raise DataError(
                f"{entry['problem']}; then remove {shards.folder} and evaluate again: all images have to count"
            )
        evaluator.update([entry["image"]["id"]], entry["results"])
    scores = evaluator.compute()
    scores.to_json(output)
    shards.merge(dict(zip(model.category_ids, model.class_names, strict=True)))
    if split.count == 1:
        shards.remove()
    return scores
