"""Measure the inside and the cost of a run that has ended, and draw crops of it.

    python scripts/inspect_run.py outputs/demo [--images 40] [--crops 4] [--size 192x192]

Writes into the folder of the run, from its best checkpoint: `cost.json` (parameters, operations), `crops/` and, last,
`inspection.json` (attention that each basis gets, score targets, width of the boundary target).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from ablation.runs import read_json

from b2inst import runtime
from b2inst.bench.setting import Setting
from b2inst.bench.subjects import OurDetection
from b2inst.bench.timing import count_flops
from b2inst.callbacks.inspection import Crops, Inspection
from b2inst.config import CHECKPOINT_DATA_TARGETS, ConfigError, build
from b2inst.lit import LitSegmenter
from b2inst.metrics.scores import write_json

KEPT = ("state_dict", "hyper_parameters", "best_threshold", "global_step")  # of a checkpoint that is used, not gone on
NOTHING_INSIDE = {  # what `Inspector.result` would say of masks that are not made of bases
    "instances": 0, "boundary_basis": False, "attention": {}, "contribution": {}, "score_targets": {},
    "score_errors": {}, "boundary_target": None, "boundary_basis_dice": None,
}  # fmt: skip


def cost(run: Path, model: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Parameters, and operations of a pass of one image of this size with random weights.

    Args:
        run: its neighbors, the other seeds of the variant, are asked first.
        model: configuration.
        size: (height, width).
    """
    digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()
    question = {"model": digest, "height": size[0], "width": size[1]}
    for path in sorted(run.parent.glob("*/cost.json")):
        known = read_json(path)
        if known.get("of") == question:
            return known
    torch.manual_seed(0)
    built = build(model, CHECKPOINT_DATA_TARGETS)
    parameters = sum(p.numel() for p in built.parameters())
    subject = OurDetection(built, Setting(*size))  # prepares the model: batch norms are folded
    detections = sum(map(len, subject.network().detections()))
    return {"parameters": parameters, "flops": count_flops(subject), "detections": detections, "of": question}


def load(run: Path) -> LitSegmenter:
    """The best checkpoint of a run, the last one if there is none.

    Raises:
        ConfigError: there is neither, or it is damaged.
    """
    paths = [run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ConfigError(f"no {' and no '.join(map(str, paths))}; train first")
    try:
        return LitSegmenter.from_checkpoint(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def inspect(run: Path, module: LitSegmenter, images: int, crops: int, crop_size: int) -> None:
    """Pass validation images through a model of a run, and write what is seen."""
    config = module.config
    with runtime.job(config["seed"], False, False, config["training"]["matmul_precision"]):
        data = build(config["data"], CHECKPOINT_DATA_TARGETS)
        batches = -(-images // data.batch_sizes["val"])
        callbacks: list[pl.Callback] = [Crops(str(run / "crops"), crops, crop_size)]
        if module.model.has_bases:
            callbacks.append(Inspection(str(run / "inspection.json")))
        trainer = pl.Trainer(
            accelerator="auto", devices=1, logger=False, callbacks=callbacks, limit_val_batches=batches,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=run,
        )  # fmt: skip
        trainer.validate(module, datamodule=data, verbose=False)
    if not module.model.has_bases:
        write_json(NOTHING_INSIDE, run / "inspection.json", indent=2)


def slim(run: Path) -> None:
    """Keep the weights of the best checkpoint and nothing that is for going on: a third of the space, or less."""
    best = run / "checkpoints" / "best.ckpt"
    if not best.is_file() or not (run / "metrics.json").is_file():
        return  # something may go on from here
    content = torch.load(best, map_location="cpu", weights_only=True)
    kept = {k: v for k, v in content.items() if k in KEPT}
    if kept.keys() != content.keys():
        torch.save(kept, best.with_suffix(".part"))
        os.replace(best.with_suffix(".part"), best)
    for name in ("last.ckpt", "previous.ckpt"):
        (best.parent / name).unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that has ended")
    parser.add_argument("--images", type=int, default=40, help="validation images (default: %(default)s)")
    parser.add_argument("--crops", type=int, default=4, help="crops that are drawn (default: %(default)s)")
    parser.add_argument("--crop-size", type=int, default=96, help="pixels of a crop (default: %(default)s)")
    parser.add_argument(
        "--size", default="256x256", help="height x width whose operations count (default: %(default)s)"
    )
    parser.add_argument("--slim", action="store_true", help="drop from the checkpoints what is only for going on")
    options = parser.parse_args(arguments)
    height, width = map(int, options.size.split("x"))
    with runtime.told_in_words():
        module = load(options.run)
        write_json(cost(options.run, module.config["model"], (height, width)), options.run / "cost.json", indent=2)
        inspect(options.run, module, options.images, options.crops, options.crop_size)
        if options.slim:
            slim(options.run)


if __name__ == "__main__":
    sys.exit(main())
