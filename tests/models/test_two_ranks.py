"""Two processes learn what one learns from their images together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import two_ranks

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(two_ranks.__file__))]
    started = [
        subprocess.Popen([*command, str(rank), str(folder)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        for process in started:
            _, stderr = process.communicate(timeout=240)
            assert process.returncode == 0, stderr
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("variant", two_ranks.VARIANTS)
def test_losses_gradients_and_weights_are_those_of_one_process(found: list[dict], variant: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have: a mask that is binarized must not flip by how numbers are added up
    alone = two_ranks.learn(variant)
    torch.set_num_threads(threads)
    for kind, tolerance in (("losses", 1e-5), ("gradients", 1e-4), ("weights", 1e-5)):
        for name, wanted in alone[kind].items():
            for rank in (0, 1):
                value = found[rank][variant][kind][name]
                difference = float((value - wanted).abs().max() / wanted.abs().max().clamp(min=1))
                assert difference < tolerance, f"{kind}, {name}, rank {rank}: {difference}"
    assert all(value.isfinite().all() for value in alone["losses"].values())
    assert alone["losses"]["uneven: mask"] > 0 and alone["losses"]["no instances: mask"] == 0
