"""Curves over the steps, and the same crops under two arms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ablation.results import Result, Study
from b2inst import viz

KINDS = ("mask/AP", "boundary/AP")


def draw_curves(study: Study, dataset: str, path: Path, group: str = "basis") -> bool:
    """Mask and boundary AP of each arm of a group over the steps: mean of the seeds, and their range as a band.

    Returns:
        Whether there was anything to draw.
    """
    arms = {name: results for name, results in study.arms(dataset).items() if results[0].group == group}
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = False
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        for color, (name, results) in zip(colormaps["tab10"].colors, arms.items(), strict=False):
            curves = [found for r in results if r.metrics and (found := r.validations(kind))]
            steps = sorted(set.intersection(*map(set, curves))) if curves else []
            if steps:
                values = [[found[step] for found in curves] for step in steps]
                axes.plot(steps, [sum(v) / len(v) for v in values], "o-", color=color, label=name, markersize=3)
                axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15)
                drawn = True
        axes.set(xlabel="step", ylabel=kind.replace("/", " "))
        axes.grid(alpha=0.3)
    if drawn:
        figure.axes[0].legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=90)
    return drawn


def draw_crops(study: Study, dataset: str, arms: tuple[str, str], path: Path) -> int | None:
    """Image, ground truth, and what two arms found in the same crops, a row for each.

    Args:
        study: all runs.
        dataset: which set.
        arms: names of both.
        path: of the picture.

    Returns:
        The seed of both runs, the first that both have; None where there is none, and no picture then.
    """
    found = study.arms(dataset)
    both = [{r.seed: r for r in found.get(arm, []) if (r.folder / "crops" / "00_found.png").is_file()} for arm in arms]
    seeds = sorted(both[0].keys() & both[1].keys())
    if not seeds:
        return None
    first, second = (runs[seeds[0]] for runs in both)
    pictures: dict[str, Tensor] = {}
    for number in range(_count(first, second)):
        own = f"{number + 1}: " if number else ""
        pictures[f"{own}image"] = _crop(first, number, "image")
        pictures[f"{own}ground truth"] = _crop(first, number, "truth")
        pictures[f"{own}{arms[0]}"] = _crop(first, number, "found")
        pictures[f"{own}{arms[1]}"] = _crop(second, number, "found")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = viz.side_by_side(pictures, columns=4).permute(1, 2, 0).numpy()
    Image.fromarray(table).quantize(256).save(path, optimize=True)  # a palette: a third of the size
    return seeds[0]


def _count(first: Result, second: Result) -> int:
    """How many crops both have.

    Raises:
        ValueError: they are not the same.
    """
    counts = [len(list((r.folder / "crops").glob("*_found.png"))) for r in (first, second)]
    for number in range(min(counts)):
        if not torch.equal(_crop(first, number, "image"), _crop(second, number, "image")):
            raise ValueError(f"crop {number} of {first.folder} and {second.folder} are not of the same place")
    return min(counts)


def _crop(result: Result, number: int, name: str) -> Tensor:
    with Image.open(result.folder / "crops" / f"{number:02d}_{name}.png") as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
