"""Run every benchmark of this folder, each file in a process of its own: `python benchmarks/run.py [NAME ...]`.

Prints one JSON line per benchmark as they finish and one table at the end; the exit code is 1 if a file failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
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


def main(names: list[str]) -> int:
    """Run and report."""
    results, failed = [], []
    for path in files(names):
        found, code = run(path)
        results += found
        failed += [path.name] if code else []
    print(table(results))
    for name in failed:
        print(f"FAILED: {name}, see above")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
