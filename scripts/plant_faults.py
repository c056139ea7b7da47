"""Plant faults in a copy of the code, one at a time, and see that the tests of what they break fail: `make faults`.

    python scripts/plant_faults.py [--only TEXT ...] [--again] [--dry-run]

`tests/planted_faults.yaml` says which. What was seen is kept in outputs/faults.jsonl and not tried again while fault,
file and tests stay as they are, so that a call that was interrupted goes on. When all were tried, the table of what was
seen goes into docs/reliability.md. The exit code is 1 if a fault was not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from blocks import replace_block

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "tests" / "planted_faults.yaml"
RECORDS = ROOT / "outputs" / "faults.jsonl"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin, written by make faults -->", "<!-- faults: end -->"
COPIED = ("src", "conf", "scripts", "tests", "notebooks", "benchmarks", "docs", "setup.cfg", "pyproject.toml",
          "README.md", "Makefile")  # fmt: skip
SEEN, MISSED, BROKEN = "seen", "NOT SEEN", "NOT TRIED, for without it these fail too"
FAILED = 1  # pytest: tests ran, and some failed; 2 to 5 say that they could not run
LIMIT = 900  # seconds for the tests of a fault


@dataclass(frozen=True)
class Fault:
    """A fault and the tests that have to see it.

    Attributes:
        promise: what it breaks.
        file: where, relative to the repository.
        find: text that is there once.
        replace: what takes its place.
        tests: files or node ids.
    """

    promise: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """The content of the file with the fault.

        Raises:
            ValueError: the place is not there once, or what comes out is no Python.
        """
        count = text.count(self.find)
        if count != 1:
            raise ValueError(f"{self.promise}: {self.file} has {self.find!r} {count} times; bring the fault up to date")
        text = text.replace(self.find, self.replace)
        if self.file.endswith(".py"):
            try:
                compile(text, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"{self.promise}: {self.file} is no Python with this fault ({error})") from error
        return text


def load(path: Path) -> list[Fault]:
    """Read the list.

    Raises:
        ValueError: an entry has other keys.
    """
    faults = []
    for number, entry in enumerate(yaml.safe_load(path.read_text())):
        if set(entry) != set(Fault.__dataclass_fields__):
            wanted = ", ".join(Fault.__dataclass_fields__)
            raise ValueError(f"{path}: entry {number} has the keys {', '.join(entry)}, it has to have {wanted}")
        faults.append(Fault(**{**entry, "tests": tuple(entry["tests"])}))
    return faults


def seen(fault: Fault, copy: Path) -> bool:
    """Plant a fault in a copy, run its tests, and take it out.

    Raises:
        RuntimeError: the tests could not run.
    """
    path = copy / fault.file
    sound = path.read_text()
    path.write_text(fault.planted(sound))
    try:
        result = _pytest(copy, fault.tests)
    except subprocess.TimeoutExpired:
        return True  # it hangs
    finally:
        path.write_text(sound)
    if result.returncode not in (0, FAILED):
        raise RuntimeError(f"{fault.promise}: pytest ended with {result.returncode}\n{result.stdout[-2000:]}")
    return result.returncode == FAILED


def pass_without(tests: Sequence[str], copy: Path) -> bool:
    """Whether tests pass while nothing is planted; else their failing would say nothing."""
    result = _pytest(copy, tests)
    if result.returncode != 0:
        print(f"without a fault pytest ends with {result.returncode}\n{result.stdout[-3000:]}", flush=True)
    return result.returncode == 0


def _pytest(copy: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--basetemp={copy / 'tmp'}"]
    return subprocess.run(
        [*command, *tests], cwd=copy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip


def copied(root: Path, folder: Path) -> Path:
    """The files that tests need, in a folder that may be changed."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).is_file():
            shutil.copy2(root / name, folder / name)
    return folder


def fingerprint(fault: Fault, root: Path) -> str:
    """Of all that decides whether a fault is seen: itself, its file, its tests and the modules that they use."""
    texts = [path.read_text() for path in (root / test.partition("::")[0] for test in fault.tests)]
    modules = {path.stem: path for path in (root / "tests").rglob("*.py") if not path.name.startswith("test_")}
    for text in texts:  # grows: a module may use others
        used = [name for name in sorted(modules) if re.search(rf"\b{name}\b", text)]
        texts += [modules.pop(name).read_text() for name in used]
    content = [repr(fault), (root / fault.file).read_text(), *texts]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()


def known(path: Path) -> dict[str, str]:
    """Verdicts of earlier calls by fingerprint; a line that a kill has cut off counts for nothing."""
    found = {}
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found[line["fingerprint"]] = line["verdict"]
    return found


def rows(faults: Sequence[Fault], copy: Path, path: Path, verdicts: Mapping[str, str]) -> Iterator[tuple[Fault, str]]:
    """Try all faults that have no verdict; a line for each on the terminal and in the file."""
    passed: dict[tuple[str, ...], bool] = {}
    for number, fault in enumerate(faults, 1):
        key, start = fingerprint(fault, copy), time.monotonic()
        if key in verdicts:
            yield fault, verdicts[key]
            continue
        if fault.tests not in passed:
            passed[fault.tests] = pass_without(fault.tests, copy)
        verdict = (SEEN if seen(fault, copy) else MISSED) if passed[fault.tests] else BROKEN
        print(f"[{number}/{len(faults)}] {time.monotonic() - start:4.0f} s  {verdict}: {fault.promise}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            # A newline in front, for the line before may have been cut off.
            file.write("\n" + json.dumps({"promise": fault.promise, "verdict": verdict, "fingerprint": key}) + "\n")
        yield fault, verdict


def table(results: Sequence[tuple[Fault, str]]) -> str:
    """As Markdown."""
    lines = ["| promise | without | seen by |", "|---|---|---|"]
    for fault, verdict in results:
        tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in fault.tests)
        what = " ".join(fault.find.split()).replace("|", "\\|")
        prefix = "" if verdict == SEEN else f"{verdict}: "
        lines.append(f"| {fault.promise} | `{what}` in `{Path(fault.file).name}` | {prefix}{tests} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=Path, default=FAULTS, help="the list (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="faults with one of these in promise or file")
    parser.add_argument("--again", action="store_true", help="try those too that were tried before")
    parser.add_argument(
        "--dry-run", action="store_true", help="see whether every fault can be planted, and run nothing"
    )
    options = parser.parse_args(arguments)
    try:
        faults = load(options.faults)
        for fault in faults:
            fault.planted((root / fault.file).read_text())
        chosen = [f for f in faults if not options.only or any(t in f.promise + f.file for t in options.only)]
        print(f"{len(chosen)} faults can be planted", flush=True)
        if options.dry_run:
            return 0
        with tempfile.TemporaryDirectory() as folder:
            copy = copied(root, Path(folder))
            path = root / RECORDS.relative_to(ROOT)
            earlier = {} if options.again else {key: v for key, v in known(path).items() if v == SEEN}
            results = list(rows(chosen, copy, path, earlier))
            verdicts = known(path)
            all_of_them = [(fault, verdicts.get(fingerprint(fault, copy))) for fault in faults]
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if all(verdict for _, verdict in all_of_them):
        page = root / PAGE.relative_to(ROOT)
        page.write_text(replace_block(page.read_text(), BEGIN, END, table(all_of_them)))
    missed = [f"{verdict}: {fault.promise}" for fault, verdict in results if verdict != SEEN]
    print("\n".join([f"{len(missed)} of {len(results)} faults were not seen", *missed]), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
