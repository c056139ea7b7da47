from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from b2inst.interop.adelaidet import export_adelaidet, load_adelaidet
from b2inst.interop.files import read_weights, state_dict_of, with_current_names
from interop.small import blendmask, same, weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}
AS_ARRAYS = {k: v.numpy() for k, v in STATE.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [
    STATE, AS_ARRAYS, {"model": STATE, "iteration": 3}, {"model": AS_ARRAYS, "x": np.float64(1.5)},
    {"state_dict": STATE},
], ids=["raw", "arrays", "model", "model of arrays", "state_dict"])  # fmt: skip
def test_containers(content: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert same(state_dict_of(read_weights(tmp_path / "x.pth")), STATE)


class Harmful:
    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Harmful, "ran", True)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_no_code_of_a_file_runs_unless_it_is_allowed(save: Any, tmp_path: Path) -> None:
    Harmful.ran = False
    save({"model": AS_ARRAYS, "extra": Harmful()}, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="unsafe_pickle=True.*may run any code"):
        read_weights(tmp_path / "x.pkl")
    assert not Harmful.ran
    assert same(state_dict_of(read_weights(tmp_path / "x.pkl", unsafe_pickle=True)), STATE)
    assert Harmful.ran


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    content = {"blobs": AS_ARRAYS, "__author__": "somebody"}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert same(state_dict_of(read_weights(tmp_path / "R-50.pkl", unsafe_pickle=True)), STATE)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_weights(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        read_weights(tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no tensors: epoch, names"):
        state_dict_of({**STATE, "epoch": 3, "names": ["a"]})


def old_name(key: str) -> str:
    """The name that the first FCOS release gave to an entry."""
    for new, old in [("proposal_generator.fcos_head", "rpn.head"), ("ctrness", "centerness"),
                     ("shortcut.norm", "downsample.1"), ("shortcut", "downsample.0"), ("conv1.norm", "bn1"),
                     ("conv2.norm", "bn2"), ("res2", "layer1"), ("res3", "layer2"), ("res4", "layer3"),
                     ("res5", "layer4"), ("bottom_up", "body"), ("fpn_lateral3", "fpn.fpn_inner2"),
                     ("fpn_lateral4", "fpn.fpn_inner3"), ("fpn_lateral5", "fpn.fpn_inner4"),
                     ("fpn_output3", "fpn.fpn_layer2"), ("fpn_output4", "fpn.fpn_layer3"),
                     ("fpn_output5", "fpn.fpn_layer4"), ("top_block", "fpn.top_blocks")]:  # fmt: skip
        key = key.replace(new, old)
    return f"module.{key}"


def test_names_of_the_first_fcos_release() -> None:
    state = {k: v for k, v in weights(detector={"use_scale": True}).items()
             if not k.startswith(("basis_module", "top_layer"))}  # fmt: skip
    old = {old_name(k): v for k, v in state.items()}
    assert not old.keys() & state.keys() and "module.rpn.head.centerness.bias" in old
    assert same(with_current_names(old), state)
    model = blendmask(detector={"use_scale": True})
    load_adelaidet(model, old, detector_only=True)
    assert same(export_adelaidet(model, detector_only=True), state)
