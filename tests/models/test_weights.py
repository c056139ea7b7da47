import logging

import pytest
import torch
from torch import nn

from b2inst.models.weights import load_backbone_weights, read_state_dict


def body():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))


def state(**changes):
    made = {k: torch.full_like(v, 2) for k, v in body().state_dict().items() if not k.endswith("num_batches_tracked")}
    made.update({k.replace("__", "."): v for k, v in changes.items()})
    return {k: v for k, v in made.items() if v is not None}


def load(content, allow_missing=False):
    module = body()
    load_backbone_weights(module, content, "file.pth", allow_missing)
    return module


def test_everything_is_copied_and_the_classifier_left_over(caplog):
    caplog.set_level(logging.INFO, "b2inst")
    module = load(state(fc__weight=torch.zeros(2, 4)))
    assert all((v == 2).all() for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked"))
    assert "5 loaded, 0 missing [], 1 left over [fc.weight]" in caplog.text


def test_missing_keys_are_an_error_unless_allowed():
    partial = state(**{"1__bias": None})
    with pytest.raises(ValueError, match=r"file\.pth: 1 parameters are missing: \[1\.bias\].*allow_missing=true"):
        load(partial)
    module = load(partial, allow_missing=True)
    assert (module[1].bias == 0).all() and (module[1].weight == 2).all()


@pytest.mark.parametrize("allow_missing", [False, True])
def test_unknown_keys_and_other_shapes(allow_missing):
    with pytest.raises(ValueError, match=r"Unknown keys: \[head\.weight\]"):
        load(state(head__weight=torch.zeros(1)), allow_missing)
    with pytest.raises(ValueError, match=r"Other shapes: \[1\.bias \(3,\) for \(4,\)\]"):
        load(state(**{"1__bias": torch.zeros(3)}), allow_missing)


def test_a_file_without_one_fitting_key():
    with pytest.raises(ValueError, match="none of its 0 keys"):
        load({"fc.weight": torch.zeros(1)}, allow_missing=True)


def test_long_lists_are_shortened():
    with pytest.raises(ValueError, match=r"x7 and 2 more\]"):
        load(state(**{f"x{i}": torch.zeros(1) for i in range(10)}))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_wrapped_state_dicts(tmp_path, wrap):
    torch.save(wrap(state()), tmp_path / "file.pth")
    assert read_state_dict(tmp_path / "file.pth").keys() == state().keys()


def test_files_that_hold_something_else(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(ValueError, match="holds no state dict.*epoch"):
        read_state_dict(tmp_path / "epoch.pth")
    torch.save(body(), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        read_state_dict(tmp_path / "module.pth")
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_state_dict(tmp_path / "nothing.pth")
