"""Files of exported models: what they hold beside the graph, how they are written, and how they are run."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

import b2inst
from b2inst.config import ConfigError
from b2inst.data.augment import Rescale, Resize
from b2inst.export_model import INPUTS, OUTPUTS
from b2inst.predictor import B2Inst

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
EXTRA_FILE = "b2inst.json"  # of a file of torch.export
_AXES = {"images": ("batch", None, "height", "width"), "sizes": ("batch",)}

Run = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def require(format: str) -> None:
    """Make sure that the packages of a format are there.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"format={format}: {', '.join(missing)} missing; run pip install 'b2inst[export]'")


def describe(model: B2Inst) -> dict[str, Any]:
    """What a program needs to know to use an exported model; plain values.

    Raises:
        ConfigError: images are prepared in a way that no such program could repeat.
    """
    return {
        "b2inst_version": b2inst.__version__,
        "class_names": list(model.class_names),
        "category_ids": list(model.category_ids),
        "preprocessing": {
            "channel_order": "RGB",
            "resize": _resize(model),
            "size_divisor": model.size_divisor,
            "padding": "0, to the right and below",
            "normalization": "in the model",
        },
        "score_threshold": model.score_threshold,
        "masks": {"frame": "box", "size": model.model.mask_size, "values": "logits"},
    }


def _resize(model: B2Inst) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for name, transform in model.augment.transforms.items():
        if isinstance(transform, Resize) and len(transform.short) == 1:
            step: dict[str, Any] = {"short": transform.short[0]}
        elif isinstance(transform, Rescale):
            step = {"factor": transform.factor}
        else:
            raise ConfigError(
                f"augment.val.{name}: {type(transform).__name__} cannot be described in an exported file; train with "
                "Resize to one size or Rescale in augment.val"
            )
        steps.append({**step, "max_long": transform.max_long, "antialias": transform.antialias})
    return steps


def write_onnx(program: ExportedProgram, path: Path, about: dict[str, Any], opset: int | None) -> int:
    """Write an ONNX file; `about` becomes its `metadata_props`, each value as JSON.

    Args:
        program: see `b2inst.export_model.trace`.
        path: of the file.
        about: see `describe`.
        opset: version of the operators; None for the one that this PyTorch prefers.

    Returns:
        The version of the operators.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`create_unbacked_symint` is deprecated", FutureWarning)  # torchvision's
        written = torch.onnx.export(
            program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, opset_version=opset, verbose=False
        )
    proto = written.model_proto
    for value in proto.graph.input:
        _name_axes(value, _AXES[value.name])
    for value in proto.graph.output:
        _name_axes(value, ("instances",))
    del proto.graph.value_info[:]  # the shapes between them have the exporter's names
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in about.items()})
    onnx.save(proto, path)
    return next(entry.version for entry in proto.opset_import if entry.domain == "")


def _name_axes(value: Any, names: tuple[str | None, ...]) -> None:
    for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
        if name is not None:
            axis.dim_param = name


def write_torch(program: ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    """Write a file of `torch.export`, with `about` as JSON in its extra file `b2inst.json`."""
    torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(about)})


def load_onnx(path: Path) -> Run:
    """Run an ONNX file on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(list(OUTPUTS), {"images": images.numpy(), "sizes": sizes.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return run


def load_torch(path: Path) -> Run:
    """Run a file of `torch.export`."""
    module = torch.export.load(path).module().requires_grad_(False)
    return lambda images, sizes: module(images, sizes)
