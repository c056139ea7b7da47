"""The files that a prediction leaves: a picture per image, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from b2inst import viz
from b2inst.predict_panels import draw_panels, tabulate
from b2inst.predict_shards import Shards
from b2inst.predict_source import Frame
from b2inst.prediction import Prediction
from b2inst.predictor import Inside
from b2inst.split import Split

Result: TypeAlias = tuple[Prediction, Inside | None]


class Writer:
    """Writes the picture of an image, then the line that makes the image done. Nothing is kept.

    Args:
        shards: where the lines go.
        split: whose lines they are.
        output: folder of the pictures.
        show: panels of a picture, see `draw_panels`; none for no pictures.
        max_side: of a panel, in pixels; None for no limit.
        instance: which instance `attention` shows.
        models: names of the models whose results come.
    """

    def __init__(
        self,
        shards: Shards,
        split: Split,
        output: Path,
        show: Sequence[str] = (),
        max_side: int | None = None,
        instance: int = 0,
        models: Sequence[str] = (),
    ) -> None:
        self.shards = shards
        self.split = split
        self.output = output
        self.show = show
        self.max_side = max_side
        self.instance = instance
        self.models = models

    def add(self, frame: Frame, results: Sequence[Result]) -> None:
        """Draw an image and write what was found in it.

        Args:
            frame: the image.
            results: of each model; the files hold what the first one found.
        """
        if self.show:
            panels = [draw_panels(frame.pixels, *result, self.show, self.max_side, self.instance) for result in results]
            viz.save(tabulate(panels, self.models), self.output / f"{frame.name}.png")
        prediction, _ = results[0]
        height, width = prediction.size
        record = {**frame.record, "height": height, "width": width}
        self.shards.add(self.split, frame.position, record, prediction.to_coco(frame.record["id"]), "")

    def skip(self, frame: Frame) -> None:
        """Write why an image could not be read, so that nobody tries again."""
        self.shards.add(self.split, frame.position, frame.record, (), frame.problem)
