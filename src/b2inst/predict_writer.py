"""The files that a prediction leaves: a picture per image, results and the list of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from b2inst import viz
from b2inst.metrics.results import save_results
from b2inst.metrics.scores import write_json
from b2inst.predict_panels import draw_panels, tabulate
from b2inst.predict_source import Frame
from b2inst.prediction import Prediction
from b2inst.predictor import Inside

Result: TypeAlias = tuple[Prediction, Inside | None]


class Writer:
    """Writes pictures at once and the JSON files at the end.

    Args:
        output: folder; made when the first file is written.
        show: panels of a picture, see `draw_panels`.
        max_side: of a panel, in pixels; None for no limit.
        instance: which instance `attention` shows.
        models: names of the models whose results come.

    Attributes:
        images: a record of each image so far.
        records: COCO results of all of them.
    """

    def __init__(
        self, output: Path, show: Sequence[str], max_side: int | None, instance: int, models: Sequence[str]
    ) -> None:
        self.output = output
        self.show = show
        self.max_side = max_side
        self.instance = instance
        self.models = models
        self.images: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []

    def add(self, frame: Frame, results: Sequence[Result]) -> None:
        """Draw an image and remember what was found in it.

        Args:
            frame: the image.
            results: of each model; the files hold what the first one found.
        """
        panels = [draw_panels(frame.pixels, *result, self.show, self.max_side, self.instance) for result in results]
        viz.save(tabulate(panels, self.models), self.output / f"{frame.name}.png")
        prediction, _ = results[0]
        height, width = prediction.size
        self.images.append({**frame.record, "height": height, "width": width})
        self.records += prediction.to_coco(frame.record["id"])

    def close(self, categories: dict[int, str]) -> None:
        """Write `results.json` and `images.json`, if there was an image.

        Args:
            categories: names by id.
        """
        if self.images:
            names = [{"id": id, "name": name} for id, name in categories.items()]
            save_results(self.output / "results.json", self.records)
            write_json({"images": self.images, "categories": names}, self.output / "images.json", indent=1)
