"""The harness of the benchmarks: what it reports, and that a missing peer is no crash."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    import harness

    return harness


def test_routes_run_in_turn_and_the_medians_are_compared(harness, monkeypatch) -> None:
    calls, seconds = [], {"ours": iter([1, 1, 1, 2, 90]), "peer": iter([0.125] * 4 + [4, 4, 6, 6, 8, 8])}
    now = 0.0

    def route(name: str) -> None:
        nonlocal now
        calls.append(name)
        now += next(seconds[name])

    monkeypatch.setattr(harness, "Timer", functools.partial(timeit.Timer, timer=lambda: now))
    result = harness.compare("x", lambda: route("ours"), "other", lambda: route("peer"), lambda a, b: a == b, rounds=3)
    assert calls == ["ours", "peer", "ours", *["peer"] * 3, *["ours", "peer", "peer"] * 3]
    assert (result.ours, result.peer, result.ratio, result.agree) == (2, 6, 3, True)


def test_a_missing_peer_is_reported(harness, capsys) -> None:
    def benchmarks():
        yield harness.compare("x", lambda: 1, "other", lambda: 1 / 0, lambda a, b: True, package="no_such_module")

    harness.main(benchmarks)
    line, *table = capsys.readouterr().out.splitlines()
    content = json.loads(line)
    assert list(content) == ["name", "ours", "peer", "peer_name", "ratio", "agree"]
    assert content["peer"] is content["ratio"] is content["agree"] is None
    assert "other (not installed: pip install 'b2inst[bench]')" in table[1]


def test_run_finds_the_benchmarks_and_reports_a_failure(tmp_path: Path) -> None:
    for name in ("run.py", "harness.py"):
        (tmp_path / name).write_text((FOLDER / name).read_text())
    text = "from harness import Result, main\n\n\ndef benchmarks():\n    {}\n\n\nmain(benchmarks)\n"
    (tmp_path / "good.py").write_text(text.format("yield Result('g', 1.0, 2.0, 'p', 2.0, True)"))
    (tmp_path / "bad.py").write_text(text.format("raise OSError('lost')"))
    (tmp_path / "helper.py").write_text("raise SystemExit('not a benchmark')")
    done = subprocess.run([sys.executable, tmp_path / "run.py"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "lost" in done.stderr and "FAILED: bad.py" in done.stdout
    assert json.loads(done.stdout.splitlines()[0])["name"] == "g"
    written = tmp_path / "page.md"
    command = [sys.executable, tmp_path / "run.py", "--write", written]
    assert subprocess.run([*command, "bad"], timeout=240).returncode == 1 and not written.exists()
    assert subprocess.run([*command, "good"], timeout=240).returncode == 0
    assert "| g | 1 | p | 2 | 2 | equal |" in written.read_text() and "torch " in written.read_text()
