"""Precision-recall curves of an evaluation, as data and as a figure."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from b2inst.metrics.accumulate import RECALLS
from b2inst.metrics.scores import Scores, write_json

_STYLES = {"AP50": "--", "AP75": ":", "AP": "-"}


def write_curves(scores: Scores, folder: str | Path) -> list[Path]:
    """Write `precision_recall.json` and `precision_recall.png`.

    The data are `recall`, the 101 recalls, and `kind/name` with the precision at each of them: `AP50` and `AP75` at
    one IoU, `AP` the mean over all ten; the mean of a curve is the metric of its name.

    Args:
        scores: of an evaluation.
        folder: where to; made if missing.

    Returns:
        What was written: nothing without objects.
    """
    lines = {f"{kind}/{name}": line for kind, parts in scores.curves.items() for name, line in parts.items()}
    if not lines:
        return []
    data, picture = (Path(folder) / f"precision_recall.{suffix}" for suffix in ("json", "png"))
    write_json({"recall": RECALLS.tolist(), **lines}, data)
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="recall", ylabel="precision, mean over classes", xlim=(0, 1), ylim=(0, 1.02))
    for index, (kind, parts) in enumerate(scores.curves.items()):
        for name, line in parts.items():
            label = f"{kind}/{name} {100 * scores.metrics[f'{kind}/{name}']:.1f}"
            axes.plot(RECALLS, line, _STYLES[name], color=f"C{index}", label=label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(picture, dpi=110)
    return [data, picture]
