import torch
import torch.distributed as dist

from b2inst.ops.dist import reduce_mean


def test_one_process_keeps_the_value():
    value = torch.tensor(3.0)
    assert reduce_mean(value) is value


def test_mean_over_processes_leaves_the_own_value_alone(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda value: value.add_(5.0))  # what the other process holds
    own = torch.tensor(3.0, requires_grad=True)
    mean = reduce_mean(own)
    assert mean.item() == 4 and own.item() == 3
    assert not mean.requires_grad
