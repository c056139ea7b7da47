"""Write the results of finished runs, and a picture of the first, into README.md.

    python scripts/update_readme.py outputs/demo [RUN ...]

Everything that stands between the two `results` markers of README.md is replaced. All numbers come from the
`metrics.json` and `config.yaml` of the runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from blocks import replace_block
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
IMAGE = Path("docs/images/demo.png")
COLUMNS = ["box/AP", "mask/AP", "mask/AP50", "mask/AP75", "boundary/AP"]
BEGIN, END = "<!-- results: begin, written by scripts/update_readme.py -->", "<!-- results: end -->"


def row(run: Path) -> str:
    """One line of the table.

    Args:
        run: folder of a run that has ended.

    Raises:
        FileNotFoundError: it lacks one of the two files.
    """
    metrics = json.loads((run / "metrics.json").read_text())
    config = OmegaConf.load(run / "config.yaml")
    steps = config["schedule"]["steps"]
    val = config["data"]["val"]
    # an annotation file that is null is that of the split's own name
    learned = str(val.get("annotations") or "").rpartition("/")[2].startswith("instances_train")
    told = [*([str(val["limit"])] if val["limit"] else []), *(["training"] if learned else []), "images"]
    data = Path(config["data"]["root"]).name + (f", {' '.join(told)}" if len(told) > 1 else "")
    images = config["data"]["batch_size"] * config["trainer"].get("accumulate_grad_batches", 1)
    cells = [f"`{config['name']}`", data, f"{steps:,} of {images}", *(_percent(metrics.get(key)) for key in COLUMNS)]
    return f"| {' | '.join(cells)} |"


def block(runs: list[Path]) -> str:
    """What stands between the markers."""
    head = ["run", "data", "steps of images", *(key.replace("/", " ") for key in COLUMNS)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *map(row, runs)]
    shown = "Image, ground truth, predictions, bases, boundary basis and its target, as the first run drew them"
    return "\n".join([f"![{shown}]({IMAGE})", "", *lines])


def _percent(value: Any) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs that have ended")
    parser.add_argument("--picture", default="02_*.png", help="which picture of the first run (default: %(default)s)")
    options = parser.parse_args(arguments)
    text = replace_block((root / "README.md").read_text(), BEGIN, END, block(options.runs))
    pictures = sorted((options.runs[0] / "pictures").glob(options.picture))
    if not pictures:
        parser.error(f"{options.runs[0] / 'pictures'} holds no {options.picture}")
    (root / IMAGE).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pictures[0], root / IMAGE)
    (root / "README.md").write_text(text)


if __name__ == "__main__":
    main()
