"""Time, memory and operations of subjects.

A machine that others use drifts by a factor of two within minutes, so subjects run in turn and what counts is the
ratio within a round.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from b2inst.bench.setting import Spec
from b2inst.bench.subjects import Subject, make


def synchronize(device: str) -> None:
    """Wait for a CUDA device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def run_in_turn(
    subjects: Sequence[Subject], rounds: int, warm_up: int, device: str, done: Callable[[], None] = lambda: None
) -> tuple[list[list[float]], list[int]]:
    """Run subjects one after the other, again and again.

    Args:
        subjects: what to run.
        rounds: that are counted.
        warm_up: rounds before that are not.
        device: that is waited for.
        done: called after every round.

    Returns:
        of each subject the seconds of its rounds, and the number of its detections.
    """
    seconds: list[list[float]] = [[] for _ in subjects]
    counts = [0] * len(subjects)
    for number in range(warm_up + rounds):
        for i, subject in enumerate(subjects):
            gc.collect()
            synchronize(device)
            start = time.perf_counter()
            counts[i] = subject.finish(subject.network())
            synchronize(device)
            if number >= warm_up:
                seconds[i].append(time.perf_counter() - start)
        done()
    return seconds, counts


def time_stages(subject: Subject, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each stage, without the stages inside of it.

    `rest` is what runs in none of them, `finish` what comes after the network.
    """
    spent: dict[str, float] = {}
    running: list[list[float]] = []  # of each stage that runs now, its start and the seconds of stages inside

    def before(_: nn.Module, __: object) -> None:
        synchronize(device)
        running.append([time.perf_counter(), 0.0])

    def after(name: str) -> Callable[[nn.Module, object, object], None]:
        def stop(_: nn.Module, __: object, ___: object) -> None:
            synchronize(device)
            start, inside = running.pop()
            seconds = time.perf_counter() - start
            spent[name] = spent.get(name, 0.0) + seconds - inside
            if running:
                running[-1][1] += seconds

        return stop

    hooks = [hook for name, part in subject.stages.items()
             for hook in (part.register_forward_pre_hook(before), part.register_forward_hook(after(name)))]  # fmt: skip
    results: list[dict[str, float]] = []
    try:
        for _ in range(rounds):
            spent.clear()
            start = time.perf_counter()
            found = subject.network()
            synchronize(device)
            end = time.perf_counter()
            subject.finish(found)
            synchronize(device)
            rest = end - start - sum(spent.values())
            results.append({**spent, "rest": rest, "finish": time.perf_counter() - end})
    finally:
        for hook in hooks:
            hook.remove()
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def count_flops(subject: Subject) -> int:
    """Floating point operations of one run of the network, two for a multiplication with its addition."""
    with FlopCounterMode(display=False) as counter:
        subject.network()
    return counter.get_total_flops()


def peak_memory(spec: Spec) -> float:
    """MiB that building a subject and running it twice adds: on a CUDA device, or to a process of its own."""
    if torch.device(spec.setting.device).type == "cuda":
        return _peak_on_device(spec)
    context = multiprocessing.get_context("spawn")  # forked processes cannot use the threads of PyTorch
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_process, (spec, torch.get_num_threads()))


def _peak_on_device(spec: Spec) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(spec.setting.device)
    torch.cuda.reset_peak_memory_stats(spec.setting.device)
    subject = make(spec)
    for _ in range(2):
        subject.finish(subject.network())
    return (torch.cuda.max_memory_allocated(spec.setting.device) - before) / 2**20


def _peak_of_process(spec: Spec, threads: int) -> float:
    torch.set_num_threads(threads)
    before = _peak_rss()
    subject = make(spec)
    for _ in range(2):
        subject.finish(subject.network())
    return _peak_rss() - before


def _peak_rss() -> float:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss starts at what the parent process had
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
