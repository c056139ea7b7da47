import torch
import torch.distributed as dist

from b2inst.ops.dist import normalizer, reduce_mean


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


def test_a_normalizer_is_a_share_of_what_all_have(monkeypatch):
    assert normalizer(torch.tensor(3), 1) == 3 and normalizer(torch.tensor(0), 1) == 1
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "all_reduce", lambda value: value.add_(1.0))
    assert normalizer(torch.tensor(0), 1) == 0.25  # one in all: the sum of a process counts four times
    assert normalizer(torch.tensor(-1), 1) == 0.25 and normalizer(torch.tensor(7), 1) == 2
    assert normalizer(torch.tensor(0.5, dtype=torch.float64), 0.1).dtype == torch.float64
