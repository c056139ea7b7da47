"""Settings that make a run through the real entry points take seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from b2inst.config import plain
from b2inst.lit import LitSegmenter
from b2inst.paths import config_dir

SMALL = [
    "data.prepare.train_images=8", "data.prepare.val_images=4", "data.prepare.size=64", "data.batch_size=4",
    "data.num_workers=0", "data.persistent_workers=false", "model.fpn.channels=32",
    "schedule.steps=2", "schedule.warmup_steps=1", "trainer.val_check_interval=2",
    "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "~callbacks.progress",
    "trainer.log_every_n_steps=1", "callbacks.pictures.images=1",
]  # fmt: skip
TOY = [
    *SMALL, "model.detector.num_convs=1", "model.basis.channels=32", "model.basis.num_convs=1",
    "model.assembly.mask_size=28",
]  # fmt: skip
TWO_STAGE = [
    *SMALL, "model.mask_head.channels=16", "model.fc_channels=16", "model.rois_per_image=32",
    "model.pre_nms_topk.testing=100", "model.anchor_sizes=[8,16,32,64,128]",
]  # fmt: skip


def toy_config(root: Path, output: Path, *overrides: str) -> dict:
    """The resolved configuration of a toy run on shapes in `root`."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        sizes = TWO_STAGE if any("rcnn" in text for text in overrides) else TOY
        cfg = compose("train", [*sizes, f"data.root={root}", f"output={output}", "name=toy", *overrides])
    if "attention_size" in cfg.model.get("assembly", {}) and not any("attention_size" in text for text in overrides):
        cfg.model.assembly.attention_size = 7
    return plain(cfg)


CLASSES = {2: "disk", 3: "box", 5: "star"}  # name by category id, as in the built-in set


def toy_checkpoint(
    path: Path, *overrides: str, experiment: str = "ablation_e", best_threshold: float | None = None
) -> Path:
    """A checkpoint with random weights that finds a lot, with scores far apart, in any image."""
    # 64: with 32 channels a group of GroupNorm has one, and a small image at stride 128 one value, which it refuses
    overrides = (f"experiment={experiment}", "model.fpn.channels=64", *overrides)
    config = toy_config(path.parent / "set", path.parent, *overrides)
    config["classes"], config["category_ids"] = list(CLASSES.values()), list(CLASSES)
    config["model"]["num_classes"] = len(CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = LitSegmenter(config)
        if module.model.has_bases:
            torch.nn.init.normal_(module.model.detector.cls_logits.weight, std=1.0)
            torch.nn.init.normal_(module.model.detector.params.weight, std=0.3)
            torch.nn.init.normal_(module.model.basis.bases.weight, std=0.3)
        else:
            torch.nn.init.normal_(module.model.roi_heads.box_predictor.cls_score.weight, std=1.0)
            torch.nn.init.normal_(module.model.roi_heads.box_predictor.cls_score.bias, std=1.0)
    content = {"state_dict": module.state_dict(), "hyper_parameters": {"config": config}}
    if best_threshold is not None:
        content["best_threshold"] = best_threshold
    torch.save(content, path)
    return path


def run(module: str, *arguments: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python -m b2inst.<module>` as a user does."""
    # One thread: on a busy machine several add up in another order each time, and no two runs are equal in all bits.
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    env.pop("B2INST_DATA", None)
    env.pop("WANDB_API_KEY", None)
    command = [sys.executable, "-m", f"b2inst.{module}", *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done
