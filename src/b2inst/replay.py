"""Run a training step again that was skipped: `python -m b2inst.replay outputs/.../nonfinite/step...ckpt`.

Tells the losses, and which parts of the model were the first to give values that are not finite.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from b2inst.lit import LitSegmenter
from b2inst.structures import Batch, ImageBatch, Targets

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SHOWN = 5  # names of parts


def save_step(path: Path, module: pl.LightningModule, batch: Batch, step: int, reason: str, precision: str) -> None:
    """Write a batch with the weights that it met, as a checkpoint of this package; a reader never sees half of it."""
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "batch": _plain(batch),
        "epoch": module.current_epoch,
        "global_step": step,
        "reason": reason,
        "precision": str(precision),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        torch.save(content, part)
        os.replace(part, path)
    except RuntimeError as error:  # torch's own error where the disk is full
        raise OSError(f"{path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load_step(path: str | Path) -> tuple[LitSegmenter, Batch, dict[str, Any]]:
    """Read what `save_step` wrote, tensors and plain values only.

    Returns:
        The module in training mode, the batch, and the rest of the file by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    module = LitSegmenter.from_checkpoint(path).train()
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "batch" not in content:
        raise ValueError(f"{path}: a checkpoint without a batch; give a file that callbacks.finite wrote")
    return module, _batch(content["batch"]), content


def replay(path: str | Path) -> str:
    """Forward and backward pass of such a file on the CPU, in its precision.

    Returns:
        What was seen, as text.
    """
    module, batch, content = load_step(path)
    model, dtype = module.model, AUTOCAST.get(content["precision"])
    seen = _watch(model)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        losses, _ = model.losses(model(batch.images), batch)
        total = model.total_loss(losses, content["epoch"])
    total.backward()
    broken = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    gradients = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    lines = [f"step {content['global_step']}, {content['reason']}, precision {content['precision']}, images:"]
    lines += [f"  {name}" for name in batch.images.file_names]
    lines += [f"loss {total.item():.6g}"]
    lines += [f"  {name} {value.item():.6g}{_mark(value.item())}" for name, value in losses.items()]
    lines += [_named("weights that are not finite", broken), _named("outputs that are not finite, first to last", seen)]
    return "\n".join([*lines, _named("gradients that are not finite", gradients)])


def _watch(model: nn.Module) -> list[str]:
    """Names of the parts with an output that is not finite, in the order of their calls; filled by a pass."""
    seen: list[str] = []

    def look(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                seen.append(name)

        return hook

    for name, part in model.named_modules():
        part.register_forward_hook(look(name))
    return seen


def _mark(value: float) -> str:
    return "" if math.isfinite(value) else "  <-"


def _named(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN]) or 'none'}{more}"


def _plain(value: Any) -> Any:
    """Nested dicts of tensors and plain values, which `weights_only=True` reads."""
    if isinstance(value, Batch | ImageBatch | Targets):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _batch(content: dict[str, Any]) -> Batch:
    targets = None if content["targets"] is None else Targets(**content["targets"])
    return Batch(ImageBatch(**content["images"]), targets, content["damaged"])


def main(arguments: list[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(prog="python -m b2inst.replay", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="written by a run into its folder nonfinite/")
    args = parser.parse_args(arguments)
    try:
        told = replay(args.file)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(told)


if __name__ == "__main__":
    main()
