"""Write what `python -m b2inst.benchmark output=FOLDER` measured into docs/performance.md.

    python scripts/update_performance.py outputs/inference outputs/train

What stands between the two markers is replaced by the tables of the folders, in the order in which they are given.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from blocks import replace_block

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured: begin, written by scripts/update_performance.py -->", "<!-- measured: end -->"
TITLES = {"inference": "Inference", "train": "Training step"}
MASK_RCNN = "maskrcnn_resnet50_fpn"
# mode -> what is compared with what, in which quantity, and the ratio that it is to have at most
GOALS = {
    "inference": [("blendmask_r50_1x", MASK_RCNN, "time", 0.65), ("b2inst_light", "blendmask_r50_1x", "time", 1.1)],
    "train": [("blendmask_r50_1x", MASK_RCNN, "time", 0.75), ("blendmask_r50_1x", MASK_RCNN, "memory", 0.75)],
}


def section(folder: Path) -> str:
    """Heading and tables of one benchmark.

    Raises:
        FileNotFoundError: the folder is none of a benchmark.
    """
    content = json.loads((folder / "benchmark.json").read_text())
    tables = (folder / "benchmark.md").read_text().strip()
    head = f"## {TITLES[content['mode']]}\n\nRatios refer to `{content['reference']}`; of rounds, that is the median."
    return "\n\n".join([head, tables, *goals(content)])


def goals(content: dict[str, Any]) -> list[str]:
    """The goals that the rows of a benchmark can be held against, as a table; none where a row is missing."""
    rows = {row["name"]: row for row in content["rows"]}
    lines = []
    for ours, peer, what, most in GOALS[content["mode"]]:
        if ours in rows and peer in rows:
            ratio = _ratio(rows[ours], rows[peer], what)
            verdict = "reached" if ratio <= most else f"missed by {ratio - most:.2f}"
            lines.append(f"| `{ours}` / `{peer}`, {what} | {most} | {ratio:.2f} | {verdict} |")
    return ["\n".join(["| goal | at most | measured | |", "|---|---|---|---|", *lines])] if lines else []


def _ratio(ours: dict[str, Any], peer: dict[str, Any], what: str) -> float:
    if what == "memory":
        return ours["memory"] / peer["memory"]
    return statistics.median(a / b for a, b in zip(ours["seconds"], peer["seconds"], strict=True))


def main(arguments: list[str] | None = None, page: Path = ROOT / "docs" / "performance.md") -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of b2inst.benchmark")
    sections = "\n\n".join(map(section, parser.parse_args(arguments).folders))
    page.write_text(replace_block(page.read_text(), BEGIN, END, f"\n{sections}\n"))


if __name__ == "__main__":
    main()
