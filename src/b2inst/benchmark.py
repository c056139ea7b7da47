"""Time our models beside torchvision's, in turn in one process: `python -m b2inst.benchmark`."""

from __future__ import annotations

import platform
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import torch
import torchvision
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from b2inst import runtime
from b2inst.bench import timing
from b2inst.bench.peers import PEERS
from b2inst.bench.report import Report, Row, aligned
from b2inst.bench.setting import Setting, Spec
from b2inst.bench.subjects import make
from b2inst.config import ConfigError, plain
from b2inst.metrics.scores import write_json
from b2inst.models.inference import Switches
from b2inst.paths import config_dir
from b2inst.predictor import choose_device

NUMBERS = ("height", "width", "batch_size", "detections", "candidates", "objects", "rounds")


def benchmark(config: dict[str, Any]) -> Report:
    """Measure what a configuration names.

    Args:
        config: plain values, as `conf/benchmark.yaml` composes them.

    Raises:
        ConfigError: a value that cannot work; nothing has been measured then.
    """
    check(config)
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    try:
        device = str(choose_device(config["device"]))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    specs = _specs(config, device)
    try:
        subjects = [make(spec) for spec in specs]
    except (FileNotFoundError, ValueError) as error:  # of the checkpoint
        raise ConfigError(str(error).splitlines()[0]) from error
    rounds, train = config["rounds"], config["mode"] == "train"
    with Progress(console=Console(stderr=True)) as progress:
        turns = progress.add_task("rounds", total=rounds + config["warm_up"])
        parts, peaks = (progress.add_task(name, total=len(specs), start=False) for name in ("stages", "memory"))
        seconds, counts = timing.run_in_turn(
            subjects, rounds, config["warm_up"], device, done=lambda: progress.advance(turns)
        )
        progress.start_task(parts)
        stages, flops = [], []
        for subject in subjects:
            stages.append(timing.time_stages(subject, min(rounds, 3), device))
            flops.append(None if train else timing.count_flops(subject))
            progress.advance(parts)
        parameters = [sum(p.numel() for p in subject.model.parameters()) for subject in subjects]
        subjects.clear()
        progress.start_task(peaks)
        memory = []
        for spec in specs:
            memory.append(timing.peak_memory(spec))
            progress.advance(peaks)
    rows = [
        Row(spec.name, *measured)
        for spec, *measured in zip(specs, seconds, stages, parameters, flops, memory, counts, strict=True)
    ]
    return Report(config["mode"], config["batch_size"], config["reference"], rows, _about(config, device))


def check(config: dict[str, Any]) -> None:
    """Look at all values.

    Raises:
        ConfigError: the first that cannot work, and what is allowed.
    """
    if config["mode"] not in ("inference", "train"):
        raise ConfigError(f"mode={config['mode']}: give inference or train")
    train = config["mode"] == "train"
    if train and config["ckpt"] is not None:
        raise ConfigError("ckpt: is for mode=inference; a training step is measured with random weights")
    for name in NUMBERS:
        if not isinstance(config[name], int) or config[name] < 1:
            raise ConfigError(f"{name}={config[name]}: give a whole number of at least 1")
    unknown = [name for name in config["peers"] if name not in PEERS]
    if unknown:
        raise ConfigError(f"peers: unknown {', '.join(unknown)}; choose of {', '.join(PEERS)}")
    names = [*config["experiments"], *_peers(config), *([config["ckpt"]] if config["ckpt"] else [])]
    if config["reference"] not in names:
        raise ConfigError(f"reference={config['reference']}: is not measured; give one of {', '.join(names) or 'none'}")


def _specs(config: dict[str, Any], device: str) -> list[Spec]:
    try:
        switches = Switches(**config["switches"])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"switches: {error}") from error
    work = {name: config[name] for name in NUMBERS if name != "rounds"}
    setting = Setting(**work, seed=config["seed"], device=device, switches=switches)
    train = config["mode"] == "train"
    specs = [Spec(name, train, setting, *_composed(name, config["overrides"])) for name in config["experiments"]]
    if config["ckpt"] is not None:
        specs.append(Spec(config["ckpt"], train, setting, ckpt=config["ckpt"]))
    return [*specs, *(Spec(name, train, setting) for name in _peers(config))]


def _peers(config: dict[str, Any]) -> list[str]:
    """The peers that can be measured: FCOS learns no masks, so that its training is another work."""
    return [name for name in config["peers"] if config["mode"] == "inference" or name != "fcos_resnet50_fpn"]


def _composed(experiment: str, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and optimizer of an experiment, without weights."""
    inside = GlobalHydra.instance().is_initialized()  # `hydra.main` has the same folder
    try:
        with nullcontext() if inside else initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose("train", [f"experiment={experiment}", *overrides, "model.backbone.weights=null"])
        return plain(cfg.model), plain(cfg.optim)
    except HydraException as error:
        raise ConfigError(f"experiments: {experiment}: {error}") from error


def _about(config: dict[str, Any], device: str) -> dict[str, Any]:
    cuda = torch.device(device).type == "cuda"
    on = [name for name, value in config["switches"].items() if value is True]
    if config["mode"] == "train" and "fold_batch_norm" in on:
        on.remove("fold_batch_norm")
    return {
        "image": f"{config['height']}x{config['width']}",
        "batch": config["batch_size"],
        "rounds": config["rounds"],
        "precision": config["switches"]["precision"],
        "switches of ours": "+".join(on) or "none",
        "on": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="benchmark")
def main(cfg: DictConfig) -> None:
    """Command line entry."""
    with runtime.told_in_words():
        config = plain(cfg)
        report = benchmark(config)
        print(aligned(report.table()), "", aligned(report.stage_table()), sep="\n", flush=True)
        if config["output"] is not None:
            output = Path(config["output"]).expanduser()
            write_json(report.to_json(), output / "benchmark.json", indent=1)
            (output / "benchmark.md").write_text(report.markdown() + "\n")
            print(f"\n{output}/benchmark.json, {output}/benchmark.md", flush=True)


if __name__ == "__main__":
    main()
