"""Every assembly of the configuration, with every boundary variant and every scoring."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from hydra.utils import instantiate

from b2inst.data.boundary_target import BoundaryTarget
from b2inst.losses.edge_agreement import KERNELS, EdgeAgreement
from b2inst.models.assembly.base import Assembly
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, NoBoundary, UnsupervisedBoundary
from b2inst.paths import config_dir
from models import build
from models.wanted import maps_and_boxes, numbers, wanted

NAMES = sorted(path.stem for path in (config_dir() / "assembly").glob("*.yaml"))
SIGNED = [name for name in NAMES if name != "blend"]  # a basis whose parameters are 0 takes no part
BOUNDARIES = {
    "none": NoBoundary, "unsupervised": UnsupervisedBoundary, "instance": InstanceBoundary, "global": GlobalBoundary,
    "classes": partial(GlobalBoundary, classes=True),
}  # fmt: skip
MODES = [None, "iou", "boundary", "iou_boundary", "fcn_iou"]


def assembly(name: str, **changes: object) -> Assembly:
    return instantiate({**yaml.safe_load((config_dir() / f"assembly/{name}.yaml").read_text()), **changes})


def segmenter(name: str, boundary: NoBoundary, mode: str | None = None, **parts: object):
    chosen = assembly(name, mask_size=28)
    return build.segmenter(boundary, mode, assembly=chosen, num_bases=None, **parts)


def batch(model, boxes="normal"):
    return BoundaryTarget(stride=model.assembly.basis_stride, classes=True)(build.batch(build.BATCHES[boxes]))


def step(model, given):
    losses, _ = model.losses(model(given.images), given)
    model.total_loss(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    return losses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_learns_and_detects(name: str, boundary: str, mode: str | None) -> None:
    model = segmenter(name, BOUNDARIES[boundary](), mode)
    torch.nn.init.normal_(model.detector.params.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    given = batch(model)
    losses = step(model, given)
    scores = {f"score_{quality}" for quality in model.scoring.qualities}
    assert {key for key in losses if key.startswith("score_")} == scores
    assert any(key.startswith("boundary_") for key in losses) == (boundary in ("instance", "global", "classes"))
    for layer in (model.basis.bases, model.detector.params):
        assert layer.weight.grad.isfinite().all()
        assert layer.bias.grad.any() and layer.weight.grad.flatten(1).any(dim=1).float().mean() > 0.4
    model.eval()
    torch.nn.init.zeros_(model.detector.cls_logits.bias)
    torch.nn.init.constant_(model.detector.box_pred.bias, 3.0)
    with torch.no_grad():
        found = model.detect(model(given.images), given.images)
    for detections in found:
        assert len(detections) > 3 and detections.mask_logits.shape == (len(detections), 28, 28)
        assert detections.mask_logits.isfinite().all() and detections.mask_logits.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_edge_agreement_of_the_masks(name: str) -> None:
    """With every filter and in both forms it says something to bases and parameters, where no loss of masks does."""
    terms = {f"{k}_{c}": EdgeAgreement(k, cross_entropy=c) for k in KERNELS for c in (False, True)}
    model = segmenter(name, NoBoundary(), losses=terms)
    torch.nn.init.normal_(model.detector.params.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    given = batch(model)
    losses, _ = model.losses(model(given.images), given)
    layers = (model.basis.bases.weight, model.detector.params.weight)
    for term in terms:
        assert losses[term] > 0
        for gradient in torch.autograd.grad(losses[term], layers, retain_graph=True):
            assert gradient.isfinite().all() and gradient.any()
    assert len({round(losses[term].item(), 6) for term in terms}) == len(terms)


@pytest.mark.parametrize("boxes", ["no instances", "only a pixel"])
@pytest.mark.parametrize("name", NAMES)
def test_odd_batches(name: str, boxes: str) -> None:
    """Losses stay finite and attached."""
    model = segmenter(name, GlobalBoundary(), "iou_boundary")
    step(model, batch(model, boxes))
    assert model.detector.params.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"use_prediction": False}, False),
        ({"input": "sigmoid"}, True),
        ({"input": "detached"}, False),
        ({"input": "negative"}, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_what_the_masks_see_of_the_boundary(name: str, options: dict, reached: bool) -> None:
    model = segmenter(name, UnsupervisedBoundary(**options), losses={})
    torch.nn.init.normal_(model.detector.params.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    given = batch(model)
    outputs = model(given.images)
    (gradient,) = torch.autograd.grad(model.losses(outputs, given)[0]["mask"], outputs.bases)
    assert gradient[:, :-1].any() and bool(gradient[:, -1].any()) == reached


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_at_the_stride_of_the_assembly(name: str) -> None:
    model = segmenter(name, GlobalBoundary())
    stride = model.assembly.basis_stride
    shape = (2, model.assembly.usual_bases + 1, 64 // stride, 96 // stride)
    assert model(build.images(2, 64, 96)).bases.shape == shape


@pytest.mark.parametrize("name", SIGNED)
def test_a_boundary_basis_without_weight_changes_nothing(name: str) -> None:
    """The rows that an assembly names are those it had without the boundary basis."""
    count = 3
    part = assembly(name, mask_size=8, basis_stride=8 if name == "dynamic" else 4)
    bases, boxes, image = maps_and_boxes(count + 1)
    params = numbers(3, part.num_params(count))
    extended = torch.zeros(3, part.num_params(count + 1))
    extended[:, part.rows_without_boundary(count)] = params
    plain = part(bases[:, :count], wanted(boxes, image, params))
    torch.testing.assert_close(part(bases, wanted(boxes, image, extended)), plain)
    rest = extended + (extended == 0)  # and any other row is one of the boundary basis
    assert (part(bases, wanted(boxes, image, rest)) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_locations_may_share_a_box(name: str) -> None:
    part = assembly(name, mask_size=8)
    bases, boxes, image = maps_and_boxes(part.usual_bases)
    params, roi = numbers(5, part.num_params(part.usual_bases)), torch.tensor([1, 0, 2, 1, 0])
    shared = part(bases, wanted(boxes, image, params, roi))
    torch.testing.assert_close(shared, part(bases, wanted(boxes[roi], image[roi], params)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bases_and_parameters_can_draw_a_mask(name: str) -> None:
    """Gradient descent on them alone gives two overlapping disks, each in its box."""
    part = assembly(name, mask_size=28)
    stride, count = part.basis_stride, part.usual_bases
    generator = torch.Generator().manual_seed(0)
    bases = torch.randn(1, count, 64 // stride, 96 // stride, generator=generator).requires_grad_()
    params = (0.3 * torch.randn(2, part.num_params(count), generator=generator)).requires_grad_()
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    target = (x.square() + y.square() < 13**2).float().expand(2, -1, -1)
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0], [40.0, 8.0, 88.0, 56.0]])
    instances = replace(wanted(boxes, torch.zeros(2, dtype=torch.int64), params), points=boxes[:, :2] + 24)
    instances = replace(instances, reach=torch.full((2,), 64.0))
    optimizer = torch.optim.Adam([bases, params], lr=0.1)
    for _ in range(150):
        masks = part(bases, instances)
        optimizer.zero_grad()
        part.loss(masks, target, torch.ones(2), torch.tensor(2.0)).backward()
        optimizer.step()
    found = masks > 0
    iou = (found & (target > 0)).flatten(1).sum(1) / (found | (target > 0)).flatten(1).sum(1)
    assert iou.min() > 0.9


@pytest.mark.parametrize("name", SIGNED)
def test_only_attention_has_a_start_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="attention_bias=-4.0.*has no attention"):
        segmenter(name, GlobalBoundary(attention_bias=-4.0))
