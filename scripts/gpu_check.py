"""Test and time everything on a CUDA device: `make gpu-check`, under eight minutes.

    python scripts/gpu_check.py [height=800 width=1333 rounds=3 ...]

First the tests that need a device, then training steps and passes of R-50 in bfloat16, each part in a process of its
own, so that one that fails, for want of memory perhaps, leaves the others. What was measured goes to outputs/gpu and,
under the name of the device, into docs/performance.md. Arguments are added to every `python -m b2inst.benchmark`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from blocks import replace_block

ROOT = Path(__file__).resolve().parents[1]
PAGE, OUTPUT = ROOT / "docs" / "performance.md", ROOT / "outputs" / "gpu"
BEGIN, END = "<!-- gpu: begin, written by make gpu-check -->", "<!-- gpu: end -->"
GOAL = 0.03  # of a step: boundary ground truth and losses together
COMMON = ("switches.precision=bf16", "rounds=3")
OURS_ALONE = ("experiments=[b2inst]", "peers=[]", "reference=b2inst")
PARTS = {
    "training steps": ("mode=train", "batch_size=4", *COMMON),
    "training steps, compiled": ("mode=train", "batch_size=4", *COMMON, "switches.compile=true", *OURS_ALONE),
    "passes of one image": ("batch_size=1", *COMMON),
    "passes of 16 images": ("batch_size=16", *COMMON),
}
# A command that hangs, in a compiler for instance, is ended; a whole check stays under eight minutes.
SECONDS = {"tests": 150, "training steps, compiled": 150}


def run(command: list[str], limit: int, env: dict[str, str] | None = None) -> str | None:
    """Run a command whose output is shown; returns what went wrong, or None."""
    print(f"$ {' '.join(command)}", flush=True)
    try:
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"took more than {limit} seconds"
    return f"exit code {code}" if code else None


def measure(name: str, overrides: list[str]) -> str:
    """Run one part.

    Args:
        name: a key of `PARTS`.
        overrides: more arguments.

    Returns:
        Its section of the page.
    """
    folder = OUTPUT / name.replace(",", "").replace(" ", "_")
    command = [sys.executable, "-m", "b2inst.benchmark", *PARTS[name], *overrides, f"output={folder}"]
    wrong = run(command, SECONDS.get(name, 90))
    title = f"### {name.capitalize()}\n\n"
    if wrong:
        return f"{title}Not measured: {wrong}."
    content = json.loads((folder / "benchmark.json").read_text())
    shares = [line for row in content["rows"] if (line := share(row))]
    return "\n\n".join([f"{title}{(folder / 'benchmark.md').read_text().strip()}", *shares])


def share(row: dict[str, Any]) -> str | None:
    """Which part of a training step of ours the boundary ground truth and the losses take; None for other rows."""
    stages = row["stages"]
    if "boundary target" not in stages:
        return None
    part = (stages["boundary target"] + stages["losses"]) / sum(stages.values())
    verdict = "reached" if part < GOAL else "missed"
    return (
        f"`{row['name']}`: boundary ground truth and losses take {part:.1%} of the step (goal {GOAL:.0%}: {verdict})."
    )


def main(overrides: list[str], page: Path = PAGE) -> int:
    """Command line entry; returns the exit code."""
    device = next((text.split("=")[1] for text in overrides if text.startswith("device=")), "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device here; run this on a machine with one", file=sys.stderr)
        return 1
    start = time.monotonic()
    tests = run([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], SECONDS["tests"], {"B2INST_TEST_DEVICE": device})
    sections = [measure(name, overrides) for name in PARTS]
    name = torch.cuda.get_device_name() if device == "cuda" else device
    told = f"failed ({tests})" if tests else "passed"
    head = f"## {name}\n\nThe tests {told}; the whole check took {time.monotonic() - start:.0f} seconds."
    page.write_text(replace_block(page.read_text(), BEGIN, END, "\n" + "\n\n".join([head, *sections]) + "\n"))
    print("\n\n".join([head, *sections]))
    failed = tests or any("Not measured" in section for section in sections)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
