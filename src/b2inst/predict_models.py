"""The models of a prediction: the one that predicts and, where asked for, the one that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from b2inst.config import ConfigError
from b2inst.lit import LitSegmenter
from b2inst.models.inference import Switches
from b2inst.predictor import B2Inst

_REMEDY = "give a file that b2inst.train or b2inst.interop.convert wrote"


def load_models(config: dict[str, Any], show: Sequence[str]) -> dict[str, B2Inst]:
    """Load `ckpt` and, unless it is null, `compare`.

    Args:
        config: plain values, as `conf/predict.yaml` composes them.
        show: panels of a picture.

    Returns:
        the models by name, that of `ckpt` first.

    Raises:
        ConfigError: a file is none of ours, the two do not fit together, or none has what is to be shown.
    """
    keys = ["ckpt"] if config["compare"] is None else ["ckpt", "compare"]
    paths = [Path(str(config[key])).expanduser().resolve() for key in keys]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"compare={config['compare']}: is the same file as ckpt; give another checkpoint, or null")
    if not isinstance(config["compile"], bool):
        raise ConfigError(f"compile={config['compile']}: give true or false")
    try:
        switches = Switches(precision=config["precision"], compile=config["compile"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    models = [load_model(key, config, switches) for key in keys]
    if len(models) > 1:
        _same_classes(config, *models)
    none = " and ".join(str(config[key]) for key in keys)
    if "bases" in show and not any(model.has_bases for model in models):
        raise ConfigError(f"show={','.join(show)}: masks of {none} are made without bases; leave out bases")
    if "boundary" in show and not any(model.has_boundary for model in models):
        verb = "has" if len(keys) == 1 else "have"
        raise ConfigError(f"show={','.join(show)}: {none} {verb} no boundary basis; leave out boundary")
    if "attention" in show and not any(model.has_attention for model in models):
        raise ConfigError(f"show={','.join(show)}: masks of {none} are made without attention; leave out attention")
    return dict(zip(tell_apart(paths), models, strict=True))


def tell_apart(paths: Sequence[Path]) -> list[str]:
    """Name files by the parts of their paths that differ.

    Args:
        paths: different ones.

    Returns:
        a name for each, all different.

    Example:
        >>> tell_apart([Path("/runs/e/checkpoints/best.ckpt"), Path("/runs/a/checkpoints/best.ckpt")])
        ['e', 'a']
    """
    parts = [[*path.parts[:-1], path.stem] for path in paths]
    if len({tuple(part) for part in parts}) < len(parts):  # they differ in their endings alone
        parts = [list(path.parts) for path in paths]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return ["/".join(part) for part in parts]


def load_model(key: str, config: dict[str, Any], switches: Switches | None = None) -> B2Inst:
    """Load one checkpoint on the device of the configuration.

    Args:
        key: of the configuration; its value is the path of the checkpoint.
        config: plain values, with `device`.
        switches: what makes it faster.

    Raises:
        ConfigError: there is no such file, it is no checkpoint, or the device cannot be used.
    """
    try:
        module = LitSegmenter.from_checkpoint(str(config[key]))
    except FileNotFoundError as error:
        raise ConfigError(f"{key}={config[key]}: no such file; {_REMEDY}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}; {_REMEDY}") from error
    try:
        return B2Inst(module, config["device"], switches)
    except ValueError as error:  # the device, or a validation transform that is refused
        raise ConfigError(str(error)) from error


def _same_classes(config: dict[str, Any], model: B2Inst, other: B2Inst) -> None:
    own, others = model.class_names, other.class_names
    if own == others:
        return
    missing = ", ".join(name for name in own if name not in others)
    added = ", ".join(name for name in others if name not in own)
    if missing or added:
        how = f"only in ckpt: {missing or 'none'}; only in compare: {added or 'none'}"
    else:
        how = "the same names in another order"
    raise ConfigError(
        f"compare={config['compare']}: its {len(others)} classes are not the {len(own)} of ckpt={config['ckpt']} "
        f"({how}); give a checkpoint that was trained on the same classes"
    )
