"""MSRA's ImageNet ResNets, from which the published models were trained, under torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_KINDS = {"w": "weight", "bn_s": "norm.weight", "bn_b": "norm.bias", "bn_rm": "norm.running_mean",
          "bn_riv": "norm.running_var"}  # fmt: skip
_EPS = 1e-5  # of the batch norms
# ImageNet's classifier, and biases in front of a norm
_UNUSED = re.compile(r"(stem\.)?fc(1000)?[._].+|pred_.+|.*(conv\d|shortcut)\.bias|conv1_b|res\d_\d+_branch(1|2[abc])_b")


def is_msra(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is an ImageNet ResNet with Caffe2's or detectron2's names, and nothing more."""
    return "res2_0_branch2a_w" in state or "res2.0.conv1.weight" in state


def msra_to_torchvision(state: Mapping[str, Tensor], source: str = "state dict") -> dict[str, Tensor]:
    """A backbone for `model.backbone.weights=FILE` with `model.backbone.preset=msra`.

    Files without running statistics have them merged into scale and bias; they get statistics that change nothing.

    Args:
        state: as `b2inst.interop.files.state_dict_of` returns it.
        source: where it comes from, for messages.

    Raises:
        ValueError: for keys that are no part of a ResNet; all are listed.
    """
    named = {k: _detectron2_name(k) for k in state if not _UNUSED.fullmatch(k)}
    if unknown := [k for k, name in named.items() if name is None]:
        raise ValueError(f"{source}: no part of a ResNet: {', '.join(unknown)}")
    converted = {_torchvision_name(name): state[k] for k, name in named.items() if name is not None}
    for key in [k for k in converted if re.search(r"(bn\d|downsample\.1)\.weight$", k)]:
        layer = key.removesuffix("weight")
        converted.setdefault(f"{layer}running_mean", torch.zeros_like(converted[key]))
        converted.setdefault(f"{layer}running_var", torch.full_like(converted[key], 1 - _EPS))
    return converted


def _detectron2_name(key: str) -> str | None:
    if match := re.fullmatch(r"(res\d)_(\d+)_branch(1|2a|2b|2c)_(w|bn_s|bn_b|bn_rm|bn_riv)", key):
        return f"{match[1]}.{match[2]}.{_BRANCHES[match[3]]}.{_KINDS[match[4]]}"
    if match := re.fullmatch(r"(?:res_)?conv1_(w|bn_s|bn_b|bn_rm|bn_riv)", key):
        return f"stem.conv1.{_KINDS[match[1]]}"
    return key if re.match(r"(stem|res[2-5]\.\d+)\.(conv\d|shortcut)\.", key) else None


def _torchvision_name(name: str) -> str:
    name = re.sub(r"conv(\d)\.norm\.", r"bn\1.", name.removeprefix("stem."))
    name = re.sub(r"shortcut\.norm\.", "downsample.1.", name)
    name = re.sub(r"shortcut\.", "downsample.0.", name)
    return re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", name)
