"""Write a model for programs without b2inst: `python -m b2inst.export ckpt=FILE format=onnx|torch_export`.

The file is compared with the model right after it was written, and the report lies beside it as JSON. Exit code 1:
nothing was written, one line says why and what to do; or the file differs from the model by more than the tolerance, or
the model found nothing to compare.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from b2inst import export_check, export_files, runtime
from b2inst.config import ConfigError, plain
from b2inst.export_check import Report
from b2inst.export_model import SMALLEST, trace
from b2inst.lit import LitSegmenter
from b2inst.metrics.scores import write_json
from b2inst.models.inference import Switches
from b2inst.paths import config_dir
from b2inst.predictor import B2Inst

_OLDEST_OPSET = 18  # of PyTorch's exporter


def export(config: dict[str, Any]) -> Report:
    """Write a checkpoint in another format, and compare the two.

    Args:
        config: plain values, as `conf/export.yaml` composes them.

    Returns:
        What was written and how it compares; the same is in the JSON file beside it.

    Raises:
        ConfigError: something is missing or cannot work; nothing has been written then.
        DataError: an image that cannot be read; nothing has been written either.
    """
    check(config)
    kind, output = config["format"], _output(config)
    export_files.require(kind)
    model = _load(config["ckpt"])
    about = export_files.describe(model)
    images = export_check.check_images(config["check"])
    batches = export_check.batches(model, images, SMALLEST[kind])
    program = trace(model.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    opset = None
    if kind == "onnx":
        opset = export_files.write_onnx(program, output, about, config["opset"])
        run = export_files.load_onnx(output)
    else:
        export_files.write_torch(program, output, about)
        run = export_files.load_torch(output)
    cases = [export_check.compare(model, run, batch) for batch in batches]
    times = export_check.milliseconds(model, run, batches[0])
    size, threads = output.stat().st_size, torch.get_num_threads()
    report = Report(str(output), kind, opset, size, config["tolerance"], cases, *times, threads)
    write_json(report.to_json(), output.with_suffix(".json"), indent=1)
    return report


def check(config: dict[str, Any]) -> None:
    """Look at all values that need neither a file nor the model.

    Raises:
        ConfigError: the first value that cannot work, and what is allowed.
    """
    if config["ckpt"] is None:
        raise ConfigError("ckpt: missing; give ckpt=FILE, for example ckpt=outputs/demo/checkpoints/best.ckpt")
    if config["format"] not in export_files.SUFFIXES:
        raise ConfigError(f"format={config['format']}: give one of {', '.join(export_files.SUFFIXES)}")
    opset, tolerance = config["opset"], config["tolerance"]
    if opset is not None and (not isinstance(opset, int) or opset < _OLDEST_OPSET):
        raise ConfigError(f"opset={opset}: give a whole number of at least {_OLDEST_OPSET}, or null to choose")
    if not isinstance(tolerance, int | float) or not tolerance > 0:
        raise ConfigError(f"tolerance={tolerance}: give a number above 0")


def _output(config: dict[str, Any]) -> Path:
    """The file to write, if that does no harm."""
    suffix = export_files.SUFFIXES[config["format"]]
    output = Path(config["output"] or Path("outputs/export") / (Path(config["ckpt"]).stem + suffix)).expanduser()
    if output.suffix != suffix:
        raise ConfigError(f"output={output}: a file of format={config['format']} ends in {suffix}")
    for path in (output, output.with_suffix(".json")):
        if path.is_dir():
            raise ConfigError(f"output={output}: {path} is a folder; give another name")
        if path.exists() and not config["force"]:
            raise ConfigError(f"output={output}: {path} is there already; give another, or force=true to replace it")
    return output


def _load(path: str) -> B2Inst:
    remedy = "give a file that b2inst.train or b2inst.interop.convert wrote"
    try:
        module = LitSegmenter.from_checkpoint(path)
    except FileNotFoundError as error:
        raise ConfigError(f"ckpt={path}: no such file; {remedy}") from error
    except ValueError as error:
        raise ConfigError(f"ckpt: {str(error).splitlines()[0]}; {remedy}") from error
    if (problem := module.model.export_problem()) is not None:
        raise ConfigError(f"ckpt={path}: {problem}")
    # Batch norms are folded here, so that no exporter has to; other memory formats only get in its way.
    return B2Inst(module, "cpu", Switches(channels_last=False))


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="export")
def main(cfg: DictConfig) -> None:
    """Command line entry."""
    with runtime.told_in_words():
        try:
            report = export(plain(cfg))
        except OSError as error:
            raise ConfigError(str(error)) from error
    print(report, flush=True)
    if not report.fits:
        sys.exit(1)


if __name__ == "__main__":
    main()
