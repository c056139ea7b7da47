"""Weights of others into a checkpoint of this package, and back.

    python -m b2inst.interop.convert IN.pth OUT.ckpt [key=value ...]
    python -m b2inst.interop.convert IN.ckpt OUT.pth

What IN holds decides:

* AdelaiDet's BlendMask, CondInst or FCOS, YOLACT, or torchvision's FCOS or Mask R-CNN: OUT is a checkpoint that
  `b2inst.evaluate ckpt=OUT` and `b2inst.train init_from=OUT` read. key=value are settings as for `b2inst.train`, for
  instance experiment=b2inst.
* MSRA's ImageNet ResNets: OUT is a state dict for `model.backbone.preset=msra model.backbone.weights=OUT`.
* a checkpoint of this package: OUT is a state dict of AdelaiDet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from torch import Tensor

from b2inst.config import plain
from b2inst.interop.adelaidet import Report, export_adelaidet, load_adelaidet
from b2inst.interop.coco_classes import COCO
from b2inst.interop.files import read_weights, state_dict_of, with_current_names
from b2inst.interop.msra import is_msra, msra_to_torchvision
from b2inst.interop.torchvision import is_fcos, is_mask_rcnn, load_fcos, load_mask_rcnn
from b2inst.interop.variant import Variant, variant_of
from b2inst.interop.yolact import classes_of, is_yolact, load_yolact, yolact_overrides
from b2inst.lit import LitSegmenter
from b2inst.paths import config_dir

# torchvision's FCOS as our sizes; the masks that it does not have are BlendMask's.
_TORCHVISION = ("model.backbone.preset=torchvision", "model.backbone.weights=null", "model.backbone.depth=50",
                "model.detector.threshold_with_quality=true")  # fmt: skip
_MASK_RCNN = ("experiment=mask_rcnn_r50", "model.backbone.weights=null")
_YOLACT = ("experiment=yolact_r50", "recipe=coco_yolact")


def convert(
    source: Path,
    target: Path,
    overrides: list[str] | None = None,
    *,
    annotations: Path | None = None,
    reset_classifier: bool = False,
    unsafe_pickle: bool = False,
) -> str:
    """Convert a file; see the module.

    Args:
        source: file to read.
        target: file to write.
        overrides: settings as for `b2inst.train`.
        annotations: COCO file whose categories are the classes; None for COCO's 80.
        reset_classifier: let the class outputs start afresh if there are other classes than in the file.
        unsafe_pickle: read a file that needs the unpickler, which can run any code.

    Returns:
        What was done, for people.

    Raises:
        FileNotFoundError, ValueError: for a file that is not there or fits nothing.
    """
    content = read_weights(source, unsafe_pickle=unsafe_pickle)
    if "hyper_parameters" in content:
        return _export(source, target)
    state = state_dict_of(content, str(source))
    if is_msra(state):
        backbone = msra_to_torchvision(state, str(source))
        torch.save(backbone, target)
        return (f"{target}: {len(backbone)} tensors of a backbone; use them with model.backbone.preset=msra "
                f"model.backbone.weights={target}")  # fmt: skip
    classes = COCO if annotations is None else _categories(annotations)
    module, report = _module(state, str(source), overrides or [], classes, reset_classifier)
    save_checkpoint(module, target)
    return f"{report}\n{target}: a checkpoint for b2inst.evaluate ckpt=FILE and b2inst.train init_from=FILE"


def _export(source: Path, target: Path) -> str:
    model = LitSegmenter.from_checkpoint(source).model
    if not model.has_bases:
        raise ValueError(f"{source}: AdelaiDet has names for basis-based models, and not for {type(model).__name__}")
    state = export_adelaidet(model)
    torch.save(state, target)
    return f"{target}: {len(state)} tensors under AdelaiDet's names"


def _module(
    state: Mapping[str, Tensor], source: str, overrides: list[str], classes: Mapping[int, str], reset_classifier: bool
) -> tuple[LitSegmenter, Report]:
    if is_fcos(state):
        module = LitSegmenter(compose_config([*_TORCHVISION, *overrides], classes))
        return module, load_fcos(module.model, state, module.config["category_ids"], source)
    if is_mask_rcnn(state):
        module = LitSegmenter(compose_config([*_MASK_RCNN, *overrides], classes))
        return module, load_mask_rcnn(module.model, state, module.config["category_ids"], source)
    if is_yolact(state):
        _same_classes(classes_of(state), classes, reset_classifier, source)
        module = LitSegmenter(compose_config([*_YOLACT, *yolact_overrides(state, source), *overrides], classes))
        return module, load_yolact(module.model, state, source=source, reset_classifier=reset_classifier)
    state = with_current_names(state)
    variant = variant_of(state, source)
    _same_classes(variant.num_classes, classes, reset_classifier, source)
    module = LitSegmenter(compose_config([*_settings(variant), *overrides], classes))
    report = load_adelaidet(
        module.model, state, source=source, reset_classifier=reset_classifier, detector_only=variant.num_bases is None
    )
    return module, report


def _same_classes(given: int, classes: Mapping[int, str], reset_classifier: bool, source: str) -> None:
    if given != len(classes) and not reset_classifier:
        raise ValueError(
            f"{source}: has {given} classes, and there are {len(classes)} to convert it for. Give the annotations it "
            "was trained with (--annotations FILE), or start the class outputs afresh for your own classes "
            "(--reset-classifier)"
        )


def _settings(variant: Variant) -> list[str]:
    dynamic = ["experiment=condinst_r50_1x"] if variant.dynamic else []
    smaller = ["augment=coco_550"] if variant.levels == 4 else []
    return [*dynamic, *variant.overrides(), *smaller]


def compose_config(overrides: list[str], classes: Mapping[int, str]) -> dict[str, Any]:
    """A configuration as a training would have left it in its checkpoint.

    Args:
        overrides: settings as on the command line, later ones win; without them, the published BlendMask on COCO.
        classes: name by category id, in the order of the labels.
    """
    chosen: dict[str, str] = {"experiment": "blendmask_r50_1x", "recipe": "coco_1x"}
    settings: dict[str, str] = {"name": "converted", "output": "outputs/converted"}
    for override in overrides:  # a group may be named once only
        key, _, value = override.partition("=")
        (chosen if key in ("experiment", "recipe", "augment") else settings)[key] = value
    settings["model.num_classes"] = str(len(classes))
    arguments = [f"{key}={value}" for key, value in (chosen | settings).items()]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = plain(compose("train", arguments))
    return {**config, "classes": list(classes.values()), "category_ids": list(classes)}


def save_checkpoint(module: LitSegmenter, path: Path) -> None:
    """Write a checkpoint without the state of an optimizer: to evaluate, or to start from."""
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": {"config": module.config},
        "pytorch-lightning_version": pl.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    torch.save(content, path)


def _categories(path: Path) -> dict[int, str]:
    try:
        records = json.loads(path.expanduser().read_text())["categories"]
        return dict(sorted((record["id"], record["name"]) for record in records))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as COCO annotations with categories ({error})") from error


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m b2inst.interop.convert", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", type=Path, metavar="IN", help="file to read; nothing is downloaded")
    parser.add_argument("target", type=Path, metavar="OUT", help="file to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings as for b2inst.train")
    parser.add_argument("--annotations", type=Path, help="COCO file with the classes; without it, COCO's 80")
    parser.add_argument("--reset-classifier", action="store_true", help="start the class outputs afresh")
    parser.add_argument("--unsafe-pickle", action="store_true", help="allow Python's unpickler: it can run any code, "
                        "only for files whose origin you trust")  # fmt: skip
    args = parser.parse_intermixed_args(arguments)
    try:
        done = convert(
            args.source, args.target, args.overrides, annotations=args.annotations,
            reset_classifier=args.reset_classifier, unsafe_pickle=args.unsafe_pickle,
        )  # fmt: skip
    except (FileNotFoundError, ValueError, HydraException) as error:
        parser.exit(1, f"error: {error}\n")
    print(done)


if __name__ == "__main__":
    main()
