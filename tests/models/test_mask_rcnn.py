"""The two-stage models: the same as torchvision's, and what is ours about them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from b2inst.losses.edge_agreement import EdgeAgreement
from b2inst.models.mask_head import MaskHead, of_class
from b2inst.models.mask_rcnn import _positives
from b2inst.models.pafpn import PAFPN
from b2inst.structures import Batch
from models import build
from models.two_stage import KINDS, P2_TO_P6, WEIGHTS, bmask, mask_rcnn, torchvisions, twin

SIZES = [(64, 96), (50, 70)]


@pytest.fixture(scope="module")
def pair():
    reference = torchvisions()
    return reference, twin(reference)


def found_by(reference, images):
    """torchvision's detections of each image, and its masks before they are pasted."""
    pixels = zip(images.pixels, images.sizes.tolist(), strict=True)
    listed = [image[:, :h, :w].float() / 255 for image, (h, w) in pixels]
    unpasted = []
    hook = reference.roi_heads.register_forward_hook(lambda *call: unpasted.extend([m["masks"] for m in call[2][0]]))
    with torch.no_grad():
        results = reference(listed)
    hook.remove()
    return results, unpasted


@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 96), (64, 96)]])
def test_finds_what_torchvision_finds(pair, sizes):
    reference, model = (part.eval() for part in pair)
    images = build.images(len(sizes), 64, 96, sizes=sizes)
    results, masks = found_by(reference, images)
    with torch.no_grad():
        found = model.detect(model(images), images)
    for ours, theirs, mask in zip(found, results, masks, strict=True):
        assert len(ours) > 20 and len(set(ours.labels.tolist())) > 1
        torch.testing.assert_close(ours.scores, theirs["scores"], atol=1e-4, rtol=1e-4)
        apart = torch.cdist(ours.boxes, theirs["boxes"]) + 1e3 * (ours.labels[:, None] + 1 != theirs["labels"])
        order = apart.argmin(dim=1)  # scores that differ by rounding alone may change places
        assert sorted(order.tolist()) == list(range(len(ours)))
        torch.testing.assert_close(ours.scores, theirs["scores"][order], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.boxes, theirs["boxes"][order], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(ours.labels + 1, theirs["labels"][order])
        torch.testing.assert_close(ours.mask_logits.sigmoid(), mask[order, 0], atol=1e-4, rtol=1e-4)
        assert torch.equal(ours.scores, ours.box_scores) and ours.mask_logits.std() > 0.1


def test_a_padded_image_is_one_that_torchvision_pads(pair):
    """torchvision is given the two images with their own sizes."""
    reference, model = (part.eval() for part in pair)
    reference.transform.min_size, reference.transform.max_size = (50,), 1000
    images = build.images(1, 64, 96, sizes=[(50, 70)])
    results, _ = found_by(reference, images)
    reference.transform.min_size, reference.transform.max_size = (64,), 96
    with torch.no_grad():
        (found,) = model.detect(model(images), images)
    assert found.size == (50, 70) and len(found) > 20
    torch.testing.assert_close(found.boxes, results[0]["boxes"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.scores, results[0]["scores"], atol=1e-4, rtol=1e-4)


def test_losses_of_boxes_are_torchvisions(pair):
    """In training mode, with the same random draws; those of the masks differ in their target."""
    reference, model = (part.train() for part in pair)
    batch = build.batch(build.BATCHES["normal"])
    targets = [
        {"boxes": batch.targets.boxes[own], "labels": batch.targets.labels[own] + 1, "masks": batch.targets.masks[own]}
        for own in (batch.targets.image_index == n for n in range(2))
    ]
    torch.manual_seed(0)
    wanted = reference([image.float() / 255 for image in batch.images.pixels], targets)
    torch.manual_seed(0)
    losses, _ = model.losses(model(batch.images), batch)
    names = {"rpn_cls": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "cls": "loss_classifier",
             "box": "loss_box_reg"}  # fmt: skip
    for ours, theirs in names.items():
        assert losses[ours].item() == pytest.approx(wanted[theirs].item(), rel=1e-4, abs=1e-5) and losses[ours] > 0
    assert losses["mask"].item() == pytest.approx(wanted["loss_mask"].item(), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_trains_on_every_batch(kind, training):
    model = KINDS[kind]().train(training)
    for title, boxes in build.BATCHES.items():
        batch = build.batch(boxes)
        model.zero_grad()
        losses, stats = model.losses(model(batch.images), batch)
        assert losses.keys() == model.weights().keys(), title
        assert all(v.ndim == 0 and v.isfinite() and v.requires_grad for v in losses.values()), title
        assert (losses["mask"] > 0) == (losses["box"] > 0) == bool(stats["positives"] > 0) == bool(sum(boxes, [])), (
            title
        )
        model.total_loss(losses).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all()], title
        if title == "normal":
            assert not [name for name, g in gradients.items() if "weight" in name and not g.any()]
        assert model.training == training and model.rpn.training == training


def test_trains_with_path_aggregation():
    model, batch = bmask(fpn=partial(PAFPN, channels=16, **P2_TO_P6)), build.batch(build.BATCHES["normal"])
    losses, _ = model.losses(model(batch.images), batch)
    model.total_loss(losses).backward()
    assert all(layer[0].weight.grad.any() for layer in (*model.fpn.down, *model.fpn.out))


def test_losses_need_targets():
    model, batch = mask_rcnn(), build.batch(build.BATCHES["normal"])
    with pytest.raises(ValueError, match="needs targets"):
        model.losses(model(batch.images), Batch(batch.images))


def test_total_is_the_weighted_sum():
    model = bmask()
    losses = {name: torch.tensor(float(i + 1)) for i, name in enumerate(model.weights())}
    expected = {**{k: v for k, v in WEIGHTS.items() if k != "boundary"}, "boundary_bce": 0.5, "boundary_dice": 0.5}
    assert model.weights() == expected
    assert model.total_loss(losses).item() == pytest.approx(1 + 2 * 2 + 3 * 3 + 4 * 4 + 5 * 5 + 0.5 * (6 + 7))


# ---- masks --------------------------------------------------------------------------------------------------------


def test_positives_know_their_instances():
    targets = build.targets([[(0, 0, 8, 8)], [], [(0, 0, 16, 16), (8, 8, 24, 24), (4, 4, 30, 30)]])
    proposals = [torch.arange(n * 4.0).reshape(n, 4) for n in (2, 1, 3)]
    matched = [torch.tensor([0, 0]), torch.tensor([0]), torch.tensor([2, 0, 1])]
    labels = [torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([3, 0, 2])]
    rois = _positives(proposals, matched, labels, targets)
    assert rois.instance.tolist() == [0, 3, 2] and rois.labels.tolist() == [1, 3, 2]
    assert [box.tolist() for box in rois.boxes] == [[[4, 5, 6, 7]], [], [[0, 1, 2, 3], [8, 9, 10, 11]]]


def test_masks_are_learned_in_the_boxes_of_the_proposals():
    """Of a box twice as wide as its object, half of the cells are wanted."""
    model, seen = mask_rcnn(), []
    batch = build.batch([[(16, 16, 48, 48)]])
    batch.targets.masks[0] = False
    batch.targets.masks[0, 16:48, 16:48] = True
    box = torch.tensor([[16.0, 16.0, 80.0, 48.0]])
    sampled = [box], [torch.tensor([0])], [torch.tensor([1])], [torch.zeros(1, 4)]
    model.roi_heads.select_training_samples = lambda *_: sampled
    losses = model.mask_head.losses
    model.mask_head.losses = lambda features, rois, wanted, terms: (
        seen.append(wanted) or losses(features, rois, wanted, terms)
    )
    model.losses(model(batch.images), batch)
    assert seen[0].shape == (1, 28, 28)
    assert seen[0][0, :, :14].all() and not seen[0][0, :, 14:].any()


def test_the_mask_loss_is_that_of_the_class():
    torch.manual_seed(0)
    head = MaskHead(8, build.CLASSES, 1, channels=8)
    logits = torch.randn(2, 4, 28, 28, requires_grad=True)
    wanted = torch.rand(2, 28, 28).round()
    labels = torch.tensor([3, 1])
    head.forward = lambda *_: logits
    rois = type("Rois", (), {"boxes": [], "labels": labels})
    loss = head.losses(None, rois, wanted, {})["mask"]
    by_hand = [F.softplus(x) - x * y for x, y in ((logits[0, 3], wanted[0]), (logits[1, 1], wanted[1]))]
    assert loss.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
    loss.backward()
    assert [(n, c) for n in range(2) for c in range(4) if logits.grad[n, c].any()] == [(0, 3), (1, 1)]


def test_of_class():
    maps = torch.arange(6.0).reshape(3, 2, 1, 1)
    assert of_class(maps, torch.tensor([1, 0, 1])).flatten().tolist() == [1, 2, 5]


def test_terms_of_the_masks():
    model, batch = mask_rcnn(losses={"edge": EdgeAgreement(weight=2.0)}), build.batch(build.BATCHES["normal"])
    losses, _ = model.losses(model(batch.images), batch)
    assert model.weights()["edge"] == 2.0 and losses["edge"] > 0
    losses["edge"].backward()
    assert model.mask_head.predictor.mask_fcn_logits.weight.grad.any()


# ---- inference ----------------------------------------------------------------------------------------------------


def finder(kind):
    model = KINDS[kind]().eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.bias, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_detections(kind):
    model, images = finder(kind), build.images(2, 64, 96, sizes=SIZES)
    results = model.detect(model(images), images)
    assert [found.size for found in results] == SIZES
    for found in results:
        assert 3 < len(found) <= 100 and (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 0::2] <= found.size[1]).all() and (found.boxes[:, 1::2] <= found.size[0]).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.mask_logits.shape == (len(found), 28, 28) and found.mask_logits.std() > 0
        assert found.labels.min() >= 0 and found.labels.max() < build.CLASSES


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_lies_in_the_padding_changes_nothing(kind):
    model, images = finder(kind), build.images(2, 64, 96, sizes=SIZES)
    noisy = images.pixels.clone()
    noisy[1, :, 50:] = 200
    noisy[1, :, :, 70:] = 100
    assert not torch.equal(noisy, images.pixels)
    pairs = zip(*(model.detect(model(i), i) for i in (images, replace(images, pixels=noisy))), strict=True)
    for clean, other in pairs:
        assert torch.equal(clean.boxes, other.boxes) and torch.equal(clean.mask_logits, other.mask_logits)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_first_image_that_is_small_for_its_canvas_changes_nothing_of_later_ones(kind):
    images, strip = build.images(1, 64, 96), build.images(1, 64, 96, sizes=[(21, 90)])
    fresh, used = finder(kind), finder(kind)
    used.detect(used(strip), strip)
    (found,), (wanted,) = used.detect(used(images), images), fresh.detect(fresh(images), images)
    assert len(wanted) > 3
    assert torch.equal(found.boxes, wanted.boxes) and torch.equal(found.mask_logits, wanted.mask_logits)
    strides = [(1 / scale) for scale in used.roi_heads.box_roi_pool.scales]
    assert strides == used.fpn.strides[: len(strides)] and used.mask_head.pool.scales == fresh.mask_head.pool.scales


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_draws_the_same_samples_each_time_and_no_number_of_the_training(kind):
    model, batch = KINDS[kind](rois_per_image=8, anchors_per_image=8), build.batch(build.BATCHES["normal"])
    outputs = model(batch.images)

    def loss():
        return model.losses(outputs, batch)[0]["cls"].item()

    assert len({loss() for _ in range(8)}) > 1, "nothing is drawn"
    model.eval()
    state = torch.get_rng_state()
    assert len({loss() for _ in range(4)}) == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_settings_of_the_detector(kind):
    model, images = finder(kind), build.images(1, 64, 96)
    (usual,) = model.detect(model(images), images)
    middle = float(usual.scores.median())
    model.score_threshold = model.threshold_for(middle)
    (fewer,) = model.detect(model(images), images)
    assert 0 < len(fewer) < len(usual) and fewer.scores.min() == middle
    model.detections_per_image = 2
    assert len(model.detect(model(images), images)[0]) == 2
    model.score_threshold = 1.0
    (none,) = model.detect(model(images), images)
    assert len(none) == 0 and none.mask_logits.shape == (0, 28, 28) and none.boxes.shape == (0, 4)


@torch.no_grad()
def test_candidates_are_what_the_threshold_is_compared_with():
    model, images = finder("mask_rcnn"), build.images(2, 64, 96)
    outputs = model(images)
    scores = model.candidate_scores(outputs, images)
    model.score_threshold, model.detections_per_image = float(scores.sort(descending=True).values[5]), 1000
    model.roi_heads.nms_thresh = 1.0
    assert len(model.detect(outputs, images)[0]) == 5


def test_half_precision_moves_boxes_by_little():
    model, images = finder("bmask"), build.images(1, 64, 96)
    with torch.no_grad():
        outputs = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.rpn.head(list(outputs.levels.values()))
            assert model(images).levels["0"].dtype == torch.float32
    assert {t.dtype for part in half for t in part} == {torch.float32}


# ---- what does not fit --------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="5 levels need 5 sizes"):
        mask_rcnn(anchor_sizes=[32, 64])
    with pytest.raises(ValueError, match=r"bce, dice, but MaskHead does not learn"):
        mask_rcnn(losses=bmask().terms)
    with pytest.raises(ValueError, match=r"none, but BoundaryMaskHead learns.*bce,dice"):
        bmask(losses={})
    with pytest.raises(ValueError, match=r"stride 4.*model\.fpn\.lowest=3"):
        build.segmenter(fpn=lambda in_channels: mask_rcnn().fpn)


def test_has_no_bases():
    model, images = finder("mask_rcnn"), build.images(2, 64, 96)
    outputs = model(images)
    assert not (model.has_bases or model.has_boundary or model.has_attention)
    assert "cannot be exported" in model.export_problem()
    assert model.bases(outputs, 0) is None and model.blends(outputs, model.find(outputs, images)) == [None, None]
