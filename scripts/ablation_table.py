"""Write the results of a study, as far as it has come, into docs/results.md and README.md.

    python scripts/ablation_table.py [--runs outputs/study]

All numbers come from the folders of the runs, where these are gone from docs/study.jsonl, which is brought up to date;
times of a pass from docs/latency.json, those of others from scripts/published.yaml. The words are those of
scripts/findings.md. What stands between the markers is replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ablation import records
from ablation.figures import draw_crops, draw_curves
from ablation.findings import fill
from ablation.results import Study, load_study
from ablation.runs import read_json
from ablation.tables import (
    cost_table,
    latency_line,
    main_table,
    precision_line,
    product_table,
    published_table,
    reasons_table,
    short_table,
    steps_table,
    target_line,
)
from blocks import replace_block
from omegaconf import OmegaConf

from b2inst.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "outputs" / "study"
RECORDS = Path("docs") / "study.jsonl"
LATENCY = Path("docs") / "latency.json"
BEGIN, END = "<!-- study: begin, written by scripts/ablation_table.py -->", "<!-- study: end -->"
GROUPS = {"basis": "The boundary basis", "scoring": "Scores", "losses": "Losses"}
FINDINGS = Path(__file__).with_name("findings.md")
README_SETS = ("shapes", "shapes_long", "dsb2018")
PICTURED = ("shapes_long", "shapes")  # images of the other sets may not be passed on with this repository
README_GROUPS = ("basis", "scoring")


def section(study: Study, dataset: str, root: Path) -> str:
    """All that is known of one set."""
    budget = study.budget(dataset)
    if budget is None:
        return f"## {dataset}\n\nMissing: no run of this set has ended."
    parts = [f"## {dataset}", f"Each run: {budget}. {precision_line(study, dataset)}"]
    parts += _pictures(study, dataset, root)
    arms = study.arms(dataset).values()
    for group, title in GROUPS.items():
        if any(results[0].group == group for results in arms):
            tables = [main_table(study, dataset, group, kind) for kind in ("mask", "boundary", "box")]
            parts += [f"### {title}", *tables]
    if any(results[0].group == "basis" for results in arms):
        parts += ["### Along the trainings", *(steps_table(study, dataset, kind) for kind in ("mask", "boundary"))]
    for product in study.products:
        latency = read_json(root / LATENCY).get(dataset)
        if table := product_table(study, dataset, product, latency):
            parts += [f"### {product['title']}", table, latency_line(latency)]
    if any(results[0].group in GROUPS for results in arms):
        parts += ["### Cost", cost_table(study, dataset), "### Inside of the models"]
        parts += [line for line in (target_line(study, dataset),) if line]
        parts.append(reasons_table(study, dataset))
    return "\n\n".join(parts)


def _pictures(study: Study, dataset: str, root: Path) -> list[str]:
    """Draw curves and crops; returns the lines that show them, or say that they are missing."""
    images = root / "docs" / "images"
    first, second = study.references[:2]
    lines = []
    if draw_curves(study, dataset, images / f"study_{dataset}_curves.png"):
        lines.append(f"![Mask and boundary AP of the arms over the steps](images/study_{dataset}_curves.png)")
    else:
        lines.append("Curves: missing.")
    if dataset in PICTURED:
        path = images / f"study_{dataset}_crops.png"
        draw_crops(study, dataset, (first, second), path)
        shown = f"![The same crops under {first} and {second}](images/{path.name})"  # of now, or of an earlier call
        lines.append(shown if path.is_file() else f"Crops under `{first}` and `{second}`: missing.")
    return lines


def page(study: Study, root: Path) -> str:
    """What stands between the markers of docs/results.md."""
    published = published_table(OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("published.yaml"))))
    others = f"## Published figures\n\nOn COCO, by others. Not comparable with the runs above.\n\n{published}"
    findings = fill(FINDINGS.read_text(), study).strip()
    return "\n\n".join(["", findings, *(section(study, name, root) for name in study.datasets), others, ""])


def readme_block(study: Study, root: Path) -> str:
    """What matters: one table of the arms that have runs, and one picture."""
    first, second = study.references[:2]
    datasets = [name for name in README_SETS if name in study.datasets and study.budget(name)]
    if not datasets:
        return "The study has no run that has ended."
    words = (
        f"AP of `{first}` in percent, mean ± deviation over n seeds, and the differences of the others to it, seed by "
        "seed, in brackets their 95 % intervals:"
    )
    lines = [words, short_table(study, datasets, README_GROUPS)]
    picture = Path("docs/images") / f"study_{PICTURED[0]}_crops.png"
    shown = f"![The same crops of {PICTURED[0]} under {first} and {second}]({picture})"
    return "\n\n".join([*lines, shown if (root / picture).is_file() else "The picture is missing."])


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="what lacks is put back there (default: %(default)s)")
    options = parser.parse_args(arguments)
    pages = {root / "docs" / "results.md": None, root / "README.md": None}
    try:
        records.unpack(root / RECORDS, options.runs)
        study = load_study(options.runs)
        records.pack(options.runs, root / RECORDS)
        contents = dict(zip(pages, (page(study, root), readme_block(study, root)), strict=True))
        texts = {path: replace_block(path.read_text(), BEGIN, END, content) for path, content in contents.items()}
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, text in texts.items():
        path.write_text(text)
    ended = sum(bool(result.metrics) for result in study.results)
    print(f"{ended} of {len(study.results)} runs have ended: {', '.join(map(str, texts))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
