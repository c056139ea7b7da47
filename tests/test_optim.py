from functools import partial

import pytest
import torch
from torch import nn

from b2inst.optim import OptimizerFactory, Schedule

SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)


def module():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1), nn.LayerNorm(2))


@pytest.mark.parametrize(("effective", "lr"), [(16, 0.01), (4, 0.0025), (32, 0.02)])
def test_learning_rate_follows_the_batch(effective, lr):
    optimizer = OptimizerFactory(SGD, lr=0.01, reference_batch=16)(module(), effective)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(lr)] * 2


def test_norms_do_not_decay_and_biases_do():
    model = module()
    decayed, norms = OptimizerFactory(SGD, lr=0.01, reference_batch=16)(model, 16).param_groups
    assert decayed["weight_decay"] == 1e-4 and norms["weight_decay"] == 0
    assert {id(p) for p in norms["params"]} == {id(p) for i in (1, 2, 4) for p in model[i].parameters()}
    assert {id(p) for p in decayed["params"]} == {id(p) for i in (0, 3) for p in model[i].parameters()}


def test_decay_of_norms_is_a_choice():
    optimizer = OptimizerFactory(SGD, lr=0.01, reference_batch=16, norm_weight_decay=5e-5)(module(), 16)
    assert optimizer.param_groups[1]["weight_decay"] == 5e-5


def test_fixed_parameters_and_empty_groups_are_left_out():
    model = module()
    for i in (1, 2, 3, 4):
        model[i].requires_grad_(False)
    (group,) = OptimizerFactory(SGD, lr=0.01, reference_batch=16)(model, 16).param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model[0].parameters()}


def test_warmup_and_steps():
    factor = Schedule(90000, [60000, 80000]).factor
    assert factor(0) == pytest.approx(0.001)
    assert factor(500) == pytest.approx(0.5005)
    assert factor(999) == pytest.approx(0.001 + 0.999 * 0.999)
    assert factor(1000) == factor(59999) == 1
    assert factor(60000) == factor(79999) == pytest.approx(0.1)
    assert factor(80000) == factor(89999) == pytest.approx(0.01)


def test_cosine():
    factor = Schedule(110, [], decay="cosine", warmup_steps=10, warmup_factor=0.1).factor
    assert factor(0) == pytest.approx(0.1)
    assert factor(5) == pytest.approx(0.55)
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == pytest.approx(0)
    assert factor(500) == pytest.approx(0)


def test_no_warmup():
    assert Schedule(10, [], warmup_steps=0).factor(0) == 1


def test_scheduler_sets_the_rate_of_every_group():
    optimizer = OptimizerFactory(SGD, lr=0.01, reference_batch=16)(module(), 32)
    scheduler = Schedule(10, [4], warmup_steps=2, warmup_factor=0.5)(optimizer)
    rates = []
    for _ in range(6):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    wanted = [0.01, 0.015, 0.02, 0.02, 0.002, 0.002]
    assert rates == [[pytest.approx(rate)] * 2 for rate in wanted]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": [], "decay": "linear"}, "step, cosine"),
        ({"milestones": [8, 4]}, "ascend"),
        ({"milestones": [10]}, "before steps=10"),
    ],
)
def test_impossible_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(10, **options)
