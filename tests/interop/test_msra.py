from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from b2inst.interop.msra import is_msra, msra_to_torchvision
from b2inst.interop.torchvision import resnet_names
from b2inst.models.backbone import ResNet
from interop.small import detectron2_state, weights

BRANCHES = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
KINDS = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b", "norm.running_mean": "bn_rm",
         "norm.running_var": "bn_riv"}  # fmt: skip


def caffe2_name(key: str) -> str:
    if match := re.fullmatch(r"(res\d)\.(\d)\.(conv\d|shortcut)\.(.+)", key):
        return f"{match[1]}_{match[2]}_{BRANCHES[match[3]]}_{KINDS[match[4]]}"
    kind = KINDS[key.removeprefix("stem.conv1.")]
    return f"conv1_{kind}" if kind == "w" else f"res_conv1_{kind}"


def fill(tmp_path: Path, state: dict[str, torch.Tensor]) -> ResNet:
    torch.save(msra_to_torchvision(state), tmp_path / "R.pth")
    return ResNet(18, preset="msra", weights=str(tmp_path / "R.pth"))


def test_both_namings_fill_a_backbone(tmp_path: Path) -> None:
    state = detectron2_state()
    old = {caffe2_name(k): v for k, v in state.items()}
    old |= {name: torch.zeros(2) for name in ("fc1000_w", "fc1000_b", "conv1_b", "pred_w", "res2_0_branch2a_b")}
    assert is_msra(state) and is_msra(old) and not is_msra(weights())
    a, b = fill(tmp_path, state).state_dict(), fill(tmp_path, old).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(a["stages.2.0.downsample.1.bias"], state["res3.0.shortcut.norm.bias"])


def test_merged_statistics_become_ones_that_change_nothing(tmp_path: Path) -> None:
    state = {k: v for k, v in detectron2_state().items() if "running" not in k}
    norm = fill(tmp_path, state).stages[0][1]
    x = torch.randn(1, 64, 3, 3)
    wanted = x * state["stem.conv1.norm.weight"].view(-1, 1, 1) + state["stem.conv1.norm.bias"].view(-1, 1, 1)
    torch.testing.assert_close(norm(x), wanted)


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="no part of a ResNet: roi_heads.x"):
        msra_to_torchvision(detectron2_state() | {"roi_heads.x": torch.zeros(1)})


def test_all_of_a_backbone_is_named() -> None:
    assert set(msra_to_torchvision(detectron2_state())) == set(resnet_names(ResNet(18, weights=None)).values())
