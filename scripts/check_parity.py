"""Compare our BlendMask, stage by stage, with reference outputs of the published one.

    python scripts/check_parity.py PREFIX [--rule FILE.py] [--write FILE.md] [--threads N]

PREFIX.npz and PREFIX.json hold the reference outputs; depth and image size follow from them. The weights follow a rule,
see parity/rule.py. Exit code 1 if any stage misses its tolerance.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import re
import sys
from pathlib import Path
from zipfile import BadZipFile

import torch
from parity.fixture import Fixture
from parity.stages import Row, all_rows, build_model

from b2inst.interop.adelaidet import export_adelaidet


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", type=Path, help="common part of the names of the .npz and the .json file")
    parser.add_argument("--rule", type=Path, help="Python file with rule_state_dict(state_dict, last_norm=(...,)) "
                        "to take the weights from, instead of our own implementation")  # fmt: skip
    parser.add_argument("--write", type=Path, help="Markdown file in which to put the table, between its two marks")
    parser.add_argument("--threads", type=int, help="threads of torch")
    return parser.parse_args(arguments)


def rule_weights(path: Path, fixture: Fixture) -> dict[str, torch.Tensor]:
    """Weights by a rule in a file of its own."""
    spec = importlib.util.spec_from_file_location("given_rule", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path}: no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes = export_adelaidet(build_model(fixture))
    last = "conv3.norm" if any(".conv3." in key for key in shapes) else "conv2.norm"
    return module.rule_state_dict(shapes, last_norm=(last,))


def table(rows: list[Row]) -> str:
    """A Markdown table of the rows."""
    lines = ["| stage | largest relative error | tolerance | | |", "|---|---|---|---|---|"]
    for row in rows:
        error = f"{row.error:.1e}" if row.tolerance else f"{row.error:g}"
        tolerance = f"{row.tolerance:.0e}" if row.tolerance else "0"
        lines.append(f"| {row.stage} | {error} | {tolerance} | {'ok' if row.passed else 'MISSED'} | {row.note} |")
    return "\n".join(lines)


def write(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- parity:NAME -->` and `<!-- /parity -->`.

    Raises:
        ValueError: if the file has no such marks.
    """
    begin, end = f"<!-- parity:{name} -->", "<!-- /parity -->"
    old = path.read_text()
    new, count = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.S)
    if not count:
        raise ValueError(f"{path}: has no line {begin} followed by {end}")
    path.write_text(new)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        fixture = Fixture.read(args.prefix)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        print(f"error: {args.prefix}: holds no reference outputs ({error!r})", file=sys.stderr)
        return 2
    rows = all_rows(fixture, rule_weights(args.rule, fixture) if args.rule else None)
    made_with = f"torch {torch.__version__}, {platform.machine()} CPU, float32"
    print(f"{args.prefix.name} ({made_with})\n{table(rows)}")
    if args.write:
        write(args.write, args.prefix.name, f"{table(rows)}\n\nMeasured with {made_with}.")
    missed = [row.stage for row in rows if not row.passed]
    print(f"missed: {', '.join(missed)}" if missed else f"all {len(rows)} stages are within their tolerances")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
