"""Loss and AP curves from the log of a run."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = tuple[list[float], list[float]]


def curves(csv_path: str | Path, out_dir: str | Path) -> list[Path]:
    """Draw `curves_loss.png` and `curves_ap.png`.

    Args:
        csv_path: the log; columns may be sparse. Losses are `train/loss*` and `val/loss`, scores `*/AP`.
        out_dir: folder of the pictures, made if missing.

    Returns:
        What was written: no picture without a value for it, nothing without a log.
    """
    columns = _read(Path(csv_path))
    out_dir = Path(out_dir)
    losses = {k: v for k, v in columns.items() if k.startswith("train/loss") or k == "val/loss"}
    scores = {k: v for k, v in columns.items() if k.endswith("/AP")}
    written = []
    if losses:
        figure, axes = _figure("step", "loss, unweighted; total weighted")
        for name, (steps, values) in sorted(losses.items()):
            style = {"linewidth": 2.5, "color": "black"} if name.endswith("/loss") else {"linewidth": 1.0}
            axes.plot(steps, values, "--" if name.startswith("val") else "-", label=name, **style)
        if all(value > 0 for _, values in losses.values() for value in values):
            axes.set_yscale("log")
        written.append(_save(figure, axes, out_dir / "curves_loss.png"))
    if scores:
        figure, axes = _figure("step", "AP")
        for name, (steps, values) in sorted(scores.items()):
            axes.plot(steps, values, "o-", label=name)
        axes.set_ylim(bottom=0)
        written.append(_save(figure, axes, out_dir / "curves_ap.png"))
    return written


def _read(path: Path) -> dict[str, Curve]:
    """Steps and values of each column that has some."""
    if not path.is_file():
        return {}
    found: dict[str, Curve] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if cell and name not in ("step", "epoch"):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(cell))
    return found


def _figure(x: str, y: str):  # noqa: ANN202
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, axes, path: Path) -> Path:  # noqa: ANN001
    axes.legend(fontsize=7, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
