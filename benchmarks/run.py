"""Run every benchmark of this folder, each file in a process of its own: `python benchmarks/run.py [NAME ...]`.

Prints one JSON line per benchmark as they finish and one table at the end, and writes that table as a page of the docs
with `--write docs/benchmarks.md`; the exit code is 1 if a file failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import Result, table

FOLDER = Path(__file__).resolve().parent


def files(names: list[str]) -> list[Path]:
    """The files with benchmarks, all or those of `names`."""
    found = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if "\ndef benchmarks(" in path.read_text()}
    unknown = [name for name in names if name not in found]
    if unknown:
        sys.exit(f"no benchmark {unknown[0]!r}; there are {', '.join(found)}")
    return [found[name] for name in names or found]


def run(path: Path) -> tuple[list[Result], int]:
    """Run one file and pass its JSON lines on."""
    results = []
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("{"):
                print(line, end="", flush=True)
                results.append(Result(**json.loads(line)))
    return results, process.returncode


PEERS = ("torch", "torchvision", "albumentations", "pycocotools", "faster-coco-eval", "numpy", "opencv-python-headless")


def page(results: list[Result]) -> str:
    """The table as Markdown, with what it was measured on."""
    lines = [
        "# Benchmarks",
        "",
        'Written by `make bench BENCH_ARGS="--write docs/benchmarks.md"`. Both routes of a row run in turn in one',
        "process; seconds are medians and depend on the machine, the ratio (peer / ours) is what counts.",
        "",
        "| benchmark | ours | compared with | its | ratio | agree |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        peer, ratio = ("-" if value is None else f"{value:.3g}" for value in (result.peer, result.ratio))
        agree = {True: "equal", False: "NOT equal", None: "-"}.get(result.agree, result.agree)
        lines.append(f"| {result.name} | {result.ours:.3g} | {result.peer_name} | {peer} | {ratio} | {agree} |")
    versions = ", ".join(found for name in PEERS if (found := _version(name)))
    where = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return "\n".join([*lines, "", f"{where}; {versions}.", ""])


def _version(name: str) -> str | None:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def main(arguments: list[str]) -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files of this folder; all if none is named")
    parser.add_argument("--write", type=Path, metavar="FILE", help="Markdown file to write the table to")
    options = parser.parse_args(arguments)
    results, failed = [], []
    for path in files(options.names):
        found, code = run(path)
        results += found
        failed += [path.name] if code else []
    print(table(results))
    for name in failed:
        print(f"FAILED: {name}, see above")
    if options.write and not failed:
        options.write.write_text(page(results))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
