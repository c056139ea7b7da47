"""Write what `python -m b2inst.benchmark output=FOLDER` measured into docs/performance.md.

    python scripts/update_performance.py outputs/inference outputs/train

What stands between the two markers is replaced by the tables of the folders, in the order in which they are given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from blocks import replace_block

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured: begin, written by scripts/update_performance.py -->", "<!-- measured: end -->"
TITLES = {"inference": "Inference", "train": "Training step"}


def section(folder: Path) -> str:
    """Heading and tables of one benchmark.

    Raises:
        FileNotFoundError: the folder is none of a benchmark.
    """
    content = json.loads((folder / "benchmark.json").read_text())
    tables = (folder / "benchmark.md").read_text().strip()
    return f"## {TITLES[content['mode']]}\n\nRatios refer to `{content['reference']}`.\n\n{tables}"


def main(arguments: list[str] | None = None, page: Path = ROOT / "docs" / "performance.md") -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of b2inst.benchmark")
    sections = "\n\n".join(map(section, parser.parse_args(arguments).folders))
    page.write_text(replace_block(page.read_text(), BEGIN, END, f"\n{sections}\n"))


if __name__ == "__main__":
    main()
