"""Whether a run can go on from a checkpoint with other settings than those that it was written with.

What can be changed at any time: loader workers, precision, devices with the same images a step, loggers, folders, the
numbers of the optimizer and its schedule, weights of the losses.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from b2inst.callbacks.loop_state import done_in_epoch, steps_of
from b2inst.config import ConfigError
from b2inst.data.datamodule import B2InstDataModule

SHOWN = 3  # changed settings that a message names


def training_data(data: B2InstDataModule, processes: int) -> dict[str, int | bool]:
    """What decides which images a batch of an epoch has, by the name of its setting."""
    images = data.dataset("train").images
    return {
        "data.batch_size x devices": data.batch_sizes["train"] * processes,
        "number of training images": len(images),
        "checksum of their ids": zlib.crc32(images.ids.tobytes()),
        "seed": int(os.environ.get("PL_GLOBAL_SEED") or 0),
        "data.group_by_aspect": data.group_by_aspect,
    }


def check_resume(
    name: str, checkpoint: Any, config: Mapping[str, Any], module: nn.Module, data: dict[str, int | bool]
) -> None:
    """Refuse what cannot work.

    Args:
        name: of the checkpoint, for messages.
        checkpoint: its content.
        config: resolved configuration of the new run, with its classes.
        module: that was built from it.
        data: `training_data` of the new run.

    Raises:
        ConfigError: the checkpoint is none of a training, or does not fit; the message has the remedy.
    """
    try:
        old = checkpoint["hyper_parameters"]["config"]
        classes, optimizer = list(old["classes"]), old["optim"]["optimizer"]["_target_"]
        shapes = {key: value.shape for key, value in checkpoint["state_dict"].items()}
        trained = sum(len(group["params"]) for group in checkpoint["optimizer_states"][0]["param_groups"])
        before = checkpoint["callbacks"].get("LastCheckpoint", {}).get("data", data)
        done = done_in_epoch(checkpoint)
        epoch_is_over = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
        _ = steps_of(checkpoint), checkpoint["lr_schedulers"]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(f"ckpt_path={name}: no checkpoint of a training of this package, it lacks {error}; "
                          f"init_from={name} starts a new run from weights alone") from error  # fmt: skip
    restart = f"or start a new run from its weights: output=NEW init_from={name} ckpt_path=null"
    if classes != list(config["classes"]):
        raise ConfigError(f"ckpt_path={name}: it was trained for the classes {_short(classes)}, and the data have "
                          f"{_short(config['classes'])}; give its data set, {restart}")  # fmt: skip
    own = {key: value.shape for key, value in module.state_dict().items()}
    other = [key for key in own.keys() | shapes.keys() if own.get(key) != shapes.get(key)]
    if other:
        raise ConfigError(f"ckpt_path={name}: the model is another one, {len(other)} of its tensors differ "
                          f"({_changes(old['model'], config['model'], 'model')}); give the old settings, "
                          f"{restart}")  # fmt: skip
    new = config["optim"]["optimizer"]["_target_"]
    if optimizer != new:
        raise ConfigError(f"ckpt_path={name}: the state of {optimizer} is of no use to {new}; give the old optim, "
                          f"{restart}")  # fmt: skip
    count = sum(parameter.requires_grad for parameter in module.parameters())
    if count != trained:
        raise ConfigError(f"ckpt_path={name}: it trains {trained} parameters, this run {count} "
                          f"({_changes(old['model'], config['model'], 'model')}); give the old settings, "
                          f"{restart}")  # fmt: skip
    changed = [f"{key} {before.get(key)} -> {data[key]}" for key in data if before.get(key) != data[key]]
    step = config["trainer"]["accumulate_grad_batches"]
    if done % step and not epoch_is_over:  # the last step of an epoch may have fewer batches
        changed.append(f"trainer.accumulate_grad_batches -> {step}, which does not divide {done}")
    if done and changed:
        raise ConfigError(f"ckpt_path={name}: {done} batches of its epoch are done, and the rest would be of other "
                          f"images ({', '.join(changed)}); give the old settings, {restart}")  # fmt: skip


def _short(names: Any) -> str:
    names = list(names)
    return f"{len(names)}: {', '.join(map(str, names[:SHOWN]))}{', ...' if len(names) > SHOWN else ''}"


def _changes(old: Any, new: Any, path: str) -> str:
    found = list(_differences(old, new, path))
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            if f"{path}.{key}" != "model.backbone.weights":  # they are in the checkpoint
                yield from _differences(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        values = (type(v).__name__ if isinstance(v, Mapping) else v for v in (old, new))
        yield "{}: {} -> {}".format(path, *values)
