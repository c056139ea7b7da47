"""Run models over the part of a source that is left for this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from b2inst.predict_shards import Totals
from b2inst.predict_source import Frame, Source, Wanted
from b2inst.predict_writer import Writer
from b2inst.predictor import B2Inst


@dataclass
class Summary:
    """What a prediction did.

    Attributes:
        output: folder of all files.
        images: how many this process read.
        instances: how many it found in them.
        skipped: how many images it could not read.
        before: how many were done already, by others or before.
        left: how many of the whole input are not done by anyone.
        totals: of the whole input, if its results were written.
        seconds: from the first image to the last one.
    """

    output: Path
    images: int = 0
    instances: int = 0
    skipped: int = 0
    before: int = 0
    left: int = 0
    totals: Totals | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        speed = f"{self.images / self.seconds:.1f} images/s" if self.seconds else ""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        before = f"; {self.before} were done before" if self.before else ""
        left = f"\n  {self.left} images of other processes are left; who does the last writes results.json"
        return (
            f"{self.instances} instances in {self.images} images{skipped} ({speed}){before}"
            f"{left if self.left else ''}\n  {self.output}"
        )


def run(
    source: Source, models: Sequence[B2Inst], writer: Writer, batch_size: int, score_threshold: float | None,
    progress: bool, everything: bool = False,
) -> Summary:  # fmt: skip
    """Find and write what is in the images of this process that are not done.

    Args:
        source: all images.
        models: the results are those of the first.
        writer: of this process.
        batch_size: images decoded and passed at a time.
        score_threshold: see `B2Inst.run`.
        progress: show a bar.
        everything: see `B2Inst.run`.
    """
    start = time.perf_counter()
    shards, split = writer.shards, writer.split
    done = shards.done()
    summary = Summary(writer.output, before=done.count)

    def wanted(position: int) -> bool:
        return split.owns(position) and position not in done

    with _progress(not progress) as bar:
        if shards.torn:
            bar.console.print(f"{shards.torn} lines were cut off when a process ended; their images are done again")
        total = source.length
        if total is not None and (done.count or split.count > 1):
            total = sum(map(wanted, range(total)))
        task, last = bar.add_task(source.name, total=total), source.name
        for frames in _chunks(source, batch_size, wanted):
            for problem in _find(frames, models, writer, score_threshold, everything, summary):
                bar.console.print(f"skipped {problem}", markup=False)
            bar.advance(task, len(frames))
            last = frames[-1].record["file_name"]
        seen = summary.images + summary.skipped
        if total is not None and seen < total:
            bar.console.print(f"{last}: ends after {seen} of {total} frames", markup=False)
    shards.close()
    if split.count > 1 and source.length is not None:
        summary.left = source.length - shards.done().count
    summary.seconds = time.perf_counter() - start
    return summary


def _find(
    frames: list[Frame], models: Sequence[B2Inst], writer: Writer, score_threshold: float | None, everything: bool,
    summary: Summary,
) -> Iterator[str]:  # fmt: skip
    """Find and write what is in some frames; the problems of those that could not be read."""
    look_inside = any(name != "masks" for name in writer.show)
    blend_of = writer.instance if "attention" in writer.show else None
    pixels = [frame.pixels for frame in frames if frame.pixels is not None]
    found = [model.run(pixels, score_threshold, look_inside, blend_of, everything) for model in models]
    results = zip(*found, strict=True)
    for frame in frames:  # in order, whichever can be read
        if frame.pixels is None:
            writer.skip(frame)
            summary.skipped += 1
            yield frame.problem
        else:
            result = next(results)
            writer.add(frame, result)
            summary.images += 1
            summary.instances += len(result[0][0])


def _chunks(source: Source, size: int, wanted: Wanted) -> Iterator[list[Frame]]:
    """Frames, so many at a time."""
    chunk: list[Frame] = []
    for frame in source.frames(wanted):
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
