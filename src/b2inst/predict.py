"""Find instances in images or a video: `python -m b2inst.predict ckpt=FILE input=PATH`.

Writes into the folder `output`: a picture per image, `results.json` (COCO results) and `images.json` (the images by
id, and the categories). Exit code 1: nothing could be started; 2: no image could be read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from b2inst import runtime
from b2inst.config import ConfigError, plain
from b2inst.data.errors import DataError
from b2inst.paths import config_dir
from b2inst.predict_models import load_models
from b2inst.predict_panels import SHOWN
from b2inst.predict_source import Frame, Source, open_source
from b2inst.predict_writer import Writer
from b2inst.predictor import B2Inst


@dataclass
class Summary:
    """What a prediction did.

    Attributes:
        output: folder of all files.
        images: how many were read.
        instances: how many were found in them.
        problems: one line for each image that could not be read.
        seconds: from the first image to the last file.
    """

    output: Path
    images: int = 0
    instances: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        speed = f"{self.images / self.seconds:.1f} images/s" if self.seconds else ""
        skipped = f", {len(self.problems)} skipped" if self.problems else ""
        return f"{self.instances} instances in {self.images} images{skipped} ({speed})\n  {self.output}"


def predict(config: dict[str, Any]) -> Summary:
    """Run a checkpoint over a source and write what it finds.

    Args:
        config: plain values, as `conf/predict.yaml` composes them.

    Raises:
        ConfigError: something is missing or cannot work; nothing has been written then.
        DataError: a video that cannot be read; nothing has been written either.
    """
    show = check(config)
    source = open_source(str(config["input"]))
    output = _output(config, source)
    models = load_models(config, show)
    writer = Writer(output, show, config["max_side"], config["instance"], list(models))
    model = next(iter(models.values()))
    summary = Summary(output)
    start, seen = time.perf_counter(), 0
    with _progress(not config["progress"]) as progress:
        task = progress.add_task(source.name, total=source.length)
        for frames in _chunks(source, config["batch_size"]):
            seen += len(frames)
            for problem in _predict_chunk([*models.values()], frames, writer, config["score_threshold"]):
                summary.problems.append(problem)
                progress.console.print(f"skipped {problem}", markup=False)
            progress.advance(task, len(frames))
        if source.length is not None and seen < source.length:
            progress.console.print(f"{config['input']}: ends after {seen} of {source.length} frames", markup=False)
    writer.close(dict(zip(model.category_ids, model.class_names, strict=True)))
    summary.images, summary.instances = len(writer.images), len(writer.records)
    summary.seconds = time.perf_counter() - start
    return summary


def _predict_chunk(
    models: list[B2Inst], frames: list[Frame], writer: Writer, score_threshold: float | None
) -> list[str]:
    """Find and write what is in some frames; the problems of those that could not be read."""
    readable = [frame for frame in frames if frame.pixels is not None]
    look_inside = any(name != "masks" for name in writer.show)
    blend_of = writer.instance if "attention" in writer.show else None
    pixels = [frame.pixels for frame in readable]
    found = [model.run(pixels, score_threshold, look_inside, blend_of) for model in models]
    for frame, *results in zip(readable, *found, strict=True):
        writer.add(frame, results)
    return [frame.problem for frame in frames if frame.pixels is None]


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
        raise ConfigError("input: missing; give input=PATH, an image, a folder, a glob pattern or a video")
    show = [config["show"]] if isinstance(config["show"], str) else list(config["show"] or [])
    unknown = [name for name in show if name not in SHOWN]
    if unknown or not show or len(set(show)) < len(show):
        raise ConfigError(
            f"show={','.join(map(str, show)) or '[]'}: give one or more of {', '.join(SHOWN)}, each once, as in "
            "'show=[masks,bases]'"
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
    if output.is_dir() and any(output.iterdir()) and not config["force"]:
        raise ConfigError(f"output={output}: has files already; give another folder, or force=true to replace them")
    return output


def _chunks(source: Source, size: int) -> Iterator[list[Frame]]:
    """Frames, so many at a time."""
    chunk: list[Frame] = []
    for frame in source.frames():
        chunk.append(frame)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


class _Speed(TextColumn):
    """Images per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The speed since the beginning; the bar's own is unknown until there are two steps."""
        elapsed = task.finished_time or task.elapsed
        return Text(f"{task.completed / elapsed:.1f} images/s" if elapsed and task.completed else "")


def _progress(disable: bool) -> Progress:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Speed(),
        TimeRemainingColumn(), console=console, disable=disable,
    )  # fmt: skip


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="predict")
def main(cfg: DictConfig) -> None:
    """Command line entry."""
    with runtime.told_in_words(data_error=2):
        try:
            summary = predict(plain(cfg))
        except OSError as error:
            raise ConfigError(str(error)) from error
        if not summary.images:
            raise DataError(f"none of {len(summary.problems)} images could be read")
    print(summary, flush=True)


if __name__ == "__main__":
    main()
