"""Evaluate a checkpoint, or a results file without any model: `python -m b2inst.evaluate ckpt=FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig

from b2inst import runtime
from b2inst.callbacks.evaluation import BOUNDARY_CURVES, CocoEvaluation
from b2inst.callbacks.pictures import Pictures
from b2inst.config import CHECKPOINT_DATA_TARGETS, ConfigError, build, plain
from b2inst.config_read import is_int, is_number
from b2inst.evaluate_split import evaluate_part
from b2inst.lit import LitSegmenter
from b2inst.metrics.coco import KINDS
from b2inst.metrics.results import evaluate_files, save_results
from b2inst.metrics.scores import Scores
from b2inst.paths import config_dir, unwritable
from b2inst.split import Split, this_split


def evaluate_checkpoint(config: dict[str, Any]) -> tuple[Scores | None, Path]:
    """Run a checkpoint over its validation data, or over other data; over a part of it where it is split.

    Args:
        config: plain values, as `conf/evaluate.yaml` composes them, with `ckpt`.

    Returns:
        The scores and the file they were written to; results and pictures lie beside it. No scores where other
        processes still have images to do.
    """
    ckpt = Path(config["ckpt"]).expanduser()
    output = Path(config["output"] or ckpt.resolve().parent.parent / "evaluation" / "metrics.json").expanduser()
    _check_output(output)
    try:
        module = LitSegmenter.from_checkpoint(ckpt)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"ckpt: {error}") from error
    if config["score_threshold"] is not None:
        module.model.score_threshold = config["score_threshold"]
    with runtime.job(module.config["seed"], False, False, module.config["training"]["matmul_precision"]):
        data = build(data_config(module.config["data"], config), CHECKPOINT_DATA_TARGETS, at="data")
        if list(data.category_ids) != module.config["category_ids"]:
            raise ConfigError(
                f"{data.val_annotations}: its category ids {list(data.category_ids)} are not those the checkpoint was "
                f"trained with, {module.config['category_ids']}; evaluate on data with the same classes"
            )
        split = this_split(config["shard"])
        _check_boundary_f(config, module, split)
        if split.count > 1 or config["shard"] is not None:
            return evaluate_part(config, module, data, split, output), output
        evaluation = CocoEvaluation(config["kinds"] or KINDS, config["dilation_ratio"], boundary_f=config["boundary_f"])
        pictures = Pictures(str(output.parent / "pictures"), config["pictures"])
        trainer = pl.Trainer(
            accelerator=config["accelerator"], devices=1, logger=False, callbacks=[evaluation, pictures],
            enable_progress_bar=config["progress"], enable_model_summary=False, default_root_dir=output.parent,
        )  # fmt: skip
        trainer.validate(module, datamodule=data, verbose=False)
    evaluation.scores.to_json(output)
    save_results(output.with_name("results.json"), evaluation.records)
    if evaluation.boundaries is not None:
        evaluation.boundaries.write(output.with_name(BOUNDARY_CURVES))
    return evaluation.scores, output


def data_config(trained_with: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The data settings of a checkpoint with the changes of the command line."""
    changes = config["data"]
    data = {**trained_with, **{k: v for k, v in changes.items() if v is not None and k != "limit"}}
    if changes["root"] is not None:
        data["prepare"] = None  # what is named is there, and nothing is made in its place
    val = dict(data["val"])
    if changes["root"] is not None:  # all of it is there, and not where the training found it
        val |= {key: None for key in ("annotations", "images") if val.get(key) and Path(val[key]).is_absolute()}
    if changes["limit"] is not None:
        val["limit"] = changes["limit"]
    for key in ("annotations", "images"):
        if config[key] is not None:
            val[key] = str(Path(config[key]).expanduser().absolute())
    return {**data, "val": val}


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Command line entry."""
    with runtime.told_in_words():
        evaluate(plain(cfg))


def evaluate(config: dict[str, Any]) -> None:
    """Evaluate what the configuration names, and print the tables; of several processes only that which ends last.

    Raises:
        ConfigError: something is missing or cannot work.
        DataError: the data set cannot be used.
    """
    _check(config)
    if config["ckpt"] is not None:
        scores, output = evaluate_checkpoint(config)
    else:
        output = config["output"] and Path(config["output"]).expanduser()
        if output:
            _check_output(output)
        try:
            predictions, annotations = (Path(config[key]).expanduser() for key in ("predictions", "annotations"))
            scores = evaluate_files(predictions, annotations, output, config["kinds"], config["dilation_ratio"])
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(str(error)) from error
    if scores is None:
        return
    print(scores.table())
    if config["errors"]:
        print(scores.error_table())
    if config["per_class"]:
        print(scores.class_table())
    if output:
        print(f"  {output}", flush=True)


def _check(config: dict[str, Any]) -> None:
    """Look at all values that need no file."""
    if (config["ckpt"] is None) == (config["predictions"] is None):
        raise ConfigError("give either ckpt=FILE, or predictions=FILE and annotations=FILE")
    if config["ckpt"] is None and config["annotations"] is None:
        raise ConfigError("predictions=FILE needs annotations=FILE, the COCO annotations to score against")
    if not isinstance(config["boundary_f"], bool):
        raise ConfigError(f"boundary_f={config['boundary_f']}: give true or false")
    if config["boundary_f"] and config["ckpt"] is None:
        raise ConfigError("boundary_f=true scores what the boundary basis of a checkpoint says: give ckpt=FILE")
    kinds, ratio = config["kinds"], config["dilation_ratio"]
    if kinds is not None and (not isinstance(kinds, list) or not kinds or set(map(str, kinds)) - {*KINDS}):
        raise ConfigError(f"kinds={kinds}: give a list like 'kinds=[box,mask]' of {', '.join(KINDS)}, or null for all")
    if not is_number(ratio) or not 0 < ratio < 1:
        raise ConfigError(f"dilation_ratio={ratio}: give a share of the image diagonal, between 0 and 1")
    limit, threshold, pictures = config["data"]["limit"], config["score_threshold"], config["pictures"]
    if limit is not None and not (is_int(limit) and limit >= 1):
        raise ConfigError(f"data.limit={limit}: give how many images, from 1 on, or null for all")
    if threshold is not None and not (is_number(threshold) and 0 <= threshold <= 1):
        raise ConfigError(f"score_threshold={threshold}: give a class score from 0 to 1, or null for that of the model")
    if not (is_int(pictures) and pictures >= 0):
        raise ConfigError(f"pictures={pictures}: give how many images are drawn, or 0")


def _check_boundary_f(config: dict[str, Any], module: LitSegmenter, split: Split) -> None:
    if config["boundary_f"] and not module.model.has_image_boundary:
        raise ConfigError(
            f"boundary_f=true: {config['ckpt']} has no boundary basis that is supervised with the boundary of the "
            "whole image, as boundary@model.boundary=global trains it; set boundary_f=false"
        )
    if config["boundary_f"] and (split.count > 1 or config["shard"] is not None):
        raise ConfigError(
            "boundary_f=true: a split evaluation keeps results of instances alone, and no boundary maps; evaluate in "
            "one process without shard, or set boundary_f=false"
        )


def _check_output(output: Path) -> None:
    reason = unwritable(output)
    if reason:
        raise ConfigError(f"output={output}: {reason}; give the name of a file, like output=metrics.json")


if __name__ == "__main__":
    main()
