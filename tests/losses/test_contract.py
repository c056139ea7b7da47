"""What every configurable loss term keeps: finite, attached to the graph, fp32, blind to ignored pixels."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.bf1 import BF1
from b2inst.losses.dice import Dice
from b2inst.losses.edge_agreement import EdgeAgreement
from b2inst.losses.kervadec import Kervadec

CONF = Path(__file__).parents[2] / "conf" / "loss"
TERMS = {
    "bce": BinaryCrossEntropy(),
    "dice": Dice(),
    "dice_unsquared": Dice(squared=False, smooth=1.0, eps=0.0),
    "bf1": BF1(),
    "bf1_extract": BF1(extract=True),
    "kervadec": Kervadec(radius=4),
    "edge_agreement": EdgeAgreement(smooth_prediction=True, smooth_target=True),
    "edge_agreement_entropy": EdgeAgreement(smooth_prediction=True, smooth_target=True, cross_entropy=True),
}
FILES = {
    "bce": BinaryCrossEntropy,
    "dice": Dice,
    "dice_unsquared": Dice,
    "bf1": BF1,
    "kervadec": Kervadec,
    "edge_agreement": EdgeAgreement,
}
every_term = pytest.mark.parametrize("term", TERMS.values(), ids=TERMS.keys())
every_kind = pytest.mark.parametrize("kind", dict.fromkeys(FILES.values()))
reductions = pytest.mark.parametrize("reduction", ["mean", "none"])


def maps(batch=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, 9, 8, generator=generator).to(dtype).requires_grad_()
    target = torch.zeros(batch, 9, 8)
    target[:, 2:6, 3:7] = 1
    return logits, target, torch.ones(batch, 9, 8)


@every_term
@reductions
def test_shape_and_gradient(term, reduction):
    logits, target, weight = maps()
    loss = term(logits, target, weight, reduction)
    assert loss.shape == (() if reduction == "mean" else (3,))
    loss.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


@every_term
def test_mean_is_the_mean_of_equal_maps(term):
    logits, target, weight = maps()
    assert torch.allclose(term(logits, target, weight), term(logits, target, weight, "none").mean())


@every_term
@reductions
@pytest.mark.parametrize("case", ["no maps", "no weight", "no target", "extreme logits"])
def test_finite_and_attached(term, reduction, case):
    logits, target, weight = maps(batch=0 if case == "no maps" else 3)
    if case == "no weight":
        weight = torch.zeros_like(weight)
    if case == "no target":
        target = torch.zeros_like(target)
    given = logits * (1e4 if case == "extreme logits" else 1)
    loss = term(given, target, weight, reduction)
    assert loss.requires_grad and loss.isfinite().all()
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    if case in ("no maps", "no weight"):
        assert not loss.any() and not logits.grad.any()


@every_term
@pytest.mark.parametrize("saturated", [-1e4, 1e4])
def test_saturated_predictions_of_one_sign_are_finite(term, saturated):
    _, target, weight = maps()
    logits = torch.full_like(target, saturated, requires_grad=True)
    term(logits, target, weight).backward()
    assert logits.grad.isfinite().all()


@every_term
def test_ignored_maps_change_nothing(term):
    logits, target, weight = maps()
    alone = term(logits[:2], target[:2], weight[:2])
    weight[2] = 0
    assert torch.allclose(term(logits, target, weight), alone)


@every_term
def test_ignored_pixels_are_not_seen(term):
    logits, target, weight = maps()
    weight[:, 6:] = 0
    changed = logits.detach().clone()
    changed[:, 8] = 30.0  # two filters of 3 x 3 reach two pixels into the ignored area, so stay away from them
    if isinstance(term, BF1):
        target[:, 8] = 1  # windows of 5 x 5, but ignored pixels are taken out before
    assert torch.allclose(term(logits, target, weight), term(changed, target, weight))


@every_term
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(term, dtype):
    logits, target, weight = maps(dtype=dtype)
    expected = term(logits.float(), target, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = term(logits, target.to(dtype), weight.bool())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    loss.backward()
    assert logits.grad.dtype == dtype


@every_term
def test_gradient_in_float64(term):
    logits, target, weight = maps(batch=2, dtype=torch.float64)
    weight[0, 4:, 5:] = 0

    def loss(logits):
        return term(logits[:, 1:7, 2:7], target[:, 1:7, 2:7], weight[:, 1:7, 2:7])

    assert torch.autograd.gradcheck(loss, (logits,))


@every_term
def test_errors_name_what_was_given(term):
    logits, target, weight = maps()
    with pytest.raises(ValueError, match=r"\(3, 9, 8\), \(3, 1, 9, 8\)"):
        term(logits, target[:, None], weight)
    with pytest.raises(ValueError, match="'sum'.*'mean'.*'none'"):
        term(logits, target, weight, "sum")


@pytest.mark.parametrize(("name", "kind"), FILES.items(), ids=FILES.keys())
def test_config_file_lists_every_argument_with_its_default(name, kind):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert list(config) == [name]
    arguments = {key: value for key, value in config[name].items() if key != "_target_"}
    published = {"squared": False, "smooth": 1.0, "eps": 0.0} if name == "dice_unsquared" else {}
    assert arguments == {key: p.default for key, p in inspect.signature(kind).parameters.items()} | published
    term = instantiate(config[name])
    assert type(term) is kind
    assert term.weight_at(0) == arguments["weight"]


def test_the_factor_of_kervadec_rises_to_its_limit():
    assert [round(Kervadec().weight_at(epoch), 6) for epoch in (0, 1, 9, 50)] == [0.01, 0.02, 0.1, 0.1]
    assert BinaryCrossEntropy().weight_at(50) == 1 and math.isinf(BinaryCrossEntropy().weight_max)


@every_kind
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_step": -0.1}, "weight_step=-0.1: .*give 0 or more"),
        ({"weight": 1.0, "weight_max": 0.5}, "weight_max=0.5 is below weight=1.0.*smaller weight"),
    ],
)
def test_factors_that_fall_or_start_above_their_limit(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
    assert kind(weight=0.5, weight_max=0.5, weight_step=1.0).weight_at(3) == 0.5


def test_what_the_terms_supervise():
    assert {name: term.supervises for name, term in TERMS.items() if term.supervises != "boundary"} == {
        "edge_agreement": "mask", "edge_agreement_entropy": "mask",
    }  # fmt: skip
