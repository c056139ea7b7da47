"""Find instances in images or a video: `python -m b2inst.predict ckpt=FILE input=PATH`.

Writes into the folder `output`: a picture per image, `results.json` (COCO results), `images.json` (the images by id,
and the categories) and, if there are some, `problems.json` (images that could not be read). The same command goes on
where it was stopped, and under `torchrun` or `srun` each process takes its part. Exit code 1: nothing could be started,
or written; 2: no image could be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from b2inst import runtime
from b2inst.config import ConfigError, plain
from b2inst.data.errors import DataError
from b2inst.paths import config_dir
from b2inst.predict_models import load_models
from b2inst.predict_panels import SHOWN
from b2inst.predict_paths import digest
from b2inst.predict_run import Summary, run
from b2inst.predict_shards import FOLDER, Shards
from b2inst.predict_source import Source, Video, open_source
from b2inst.predict_writer import Writer
from b2inst.split import this_split


def predict(config: dict[str, Any]) -> Summary:
    """Run a checkpoint over a source and write what it finds.

    Args:
        config: plain values, as `conf/predict.yaml` composes them.

    Raises:
        ConfigError: something is missing or cannot work; nothing has been written then.
        DataError: a video that cannot be read; nothing has been written either.
    """
    show = check(config)
    split = this_split(config["shard"])
    if split.count > 1 and config["force"]:
        raise ConfigError("force=true: several processes cannot agree on what to replace; remove the folder yourself")
    source = open_source(str(config["input"]))
    if split.count > 1 and isinstance(source, Video):
        raise ConfigError(f"input={config['input']}: a video is not split in {split.count} parts; give shard=0/1")
    output = _output(config, source)
    models = load_models({**config, "device": split.device(config["device"])}, show)
    shards = Shards(output)
    if config["force"]:
        _remove_results(shards)
    shards.begin(
        {"input": source.digest(), "ckpt": digest(config["ckpt"]), "score_threshold": config["score_threshold"]}
    )
    writer = Writer(shards, split, output, show, config["max_side"], config["instance"], list(models))
    progress = config["progress"] and split.index == 0
    summary = run(source, [*models.values()], writer, config["batch_size"], config["score_threshold"], progress)
    if not summary.left:  # who does the last image joins the files
        model = next(iter(models.values()))
        summary.totals = shards.merge(dict(zip(model.category_ids, model.class_names, strict=True)))
        if split.count == 1:  # others may still be about to look
            shards.remove()
    return summary


def _remove_results(shards: Shards) -> None:
    """Forget what was found before: results that are still there after the next one is stopped would not be its own."""
    shards.remove()
    for name in ("results", "images", "problems"):
        (shards.output / f"{name}.json").unlink(missing_ok=True)


def check(config: dict[str, Any]) -> list[str]:
    """Look at all values that need neither a file nor the model.

    Returns:
        What is to be shown, as a list.

    Raises:
        ConfigError: the first value that cannot work, and what is allowed.
    """
    if config["ckpt"] is None:
        raise ConfigError("ckpt: missing; give ckpt=FILE, for example ckpt=outputs/demo/checkpoints/best.ckpt")
    if config["input"] is None:
        raise ConfigError("input: missing; give input=PATH, an image, a folder, a glob pattern, a list or a video")
    given = config["show"]
    show = [given] if isinstance(given, str) else list(given or [])
    unknown = [name for name in show if name not in SHOWN]
    if unknown or (not show and given is not None) or len(set(show)) < len(show):
        raise ConfigError(
            f"show={','.join(map(str, show)) or '[]'}: give one or more of {', '.join(SHOWN)}, each once, as in "
            "'show=[masks,bases]', or null for no pictures"
        )
    threshold = config["score_threshold"]
    if threshold is not None and (not _is(threshold, int, float) or not 0 <= threshold <= 1):
        raise ConfigError(f"score_threshold={threshold}: give a score from 0 to 1, or null for the checkpoint's own")
    numbers = (("batch_size", 1, ""), ("max_side", 32, ", or null for no limit"), ("instance", 0, "; 0 is the best"))
    for name, least, more in numbers:
        value = config[name]
        if not (value is None and name == "max_side") and (not _is(value, int) or value < least):
            raise ConfigError(f"{name}={value}: give a whole number of at least {least}{more}")
    return show


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _output(config: dict[str, Any], source: Source) -> Path:
    """The folder to write into, if that does no harm."""
    output = Path(config["output"] or Path("outputs") / "predict" / source.name).expanduser()
    if output.resolve() in source.folders:
        raise ConfigError(f"output={output}: the images are in there and might be replaced; give another folder")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output}: is a file; give a folder")
    others = output.is_dir() and any(path.name != FOLDER for path in output.iterdir())
    if others and not config["force"] and not Shards(output).exist:
        raise ConfigError(f"output={output}: has files already; give another folder, or force=true to replace them")
    return output


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="predict")
def main(cfg: DictConfig) -> None:
    """Command line entry."""
    with runtime.told_in_words(data_error=2):
        try:
            summary = predict(plain(cfg))
        except OSError as error:
            raise ConfigError(str(error)) from error
        if summary.totals is not None and not summary.totals.images:
            raise DataError(f"none of {summary.totals.problems} images could be read")
    print(summary, flush=True)


if __name__ == "__main__":
    main()
