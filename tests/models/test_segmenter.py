from dataclasses import replace

import pytest
import torch

from b2inst.losses.bce import BinaryCrossEntropy
from b2inst.losses.dice import Dice
from b2inst.losses.edge_agreement import EdgeAgreement
from b2inst.models.boundary import GlobalBoundary, InstanceBoundary, NoBoundary, UnsupervisedBoundary
from b2inst.models.scoring_learn import crops_of_predicted_boxes
from b2inst.ops.rois import clip_boxes, crop_masks
from b2inst.structures import Batch
from models import build

KINDS = [UnsupervisedBoundary, GlobalBoundary, InstanceBoundary]
VARIANTS = {"NoBoundary": NoBoundary} | {
    f"{kind.__name__}, use_prediction={used}": lambda kind=kind, used=used: kind(use_prediction=used)
    for kind in KINDS
    for used in (True, False)
}
MODES = [None, "iou", "boundary", "iou_boundary"]


def losses_of(model, batch):
    torch.manual_seed(0)  # the scoring head draws positives
    return model.losses(model(batch.images), batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_on_every_batch(variant, mode):
    model = build.segmenter(VARIANTS[variant](), mode).train()
    names = {"cls", "box", "quality", "mask", "semantic"} | {f"score_{name}" for name in model.scoring.qualities}
    if isinstance(model.boundary, GlobalBoundary | InstanceBoundary):
        names |= {"boundary_bce", "boundary_dice"}
    titles = build.BATCHES if mode == "iou_boundary" else ("normal", "no instances")  # that mode has all losses
    for title in titles:
        boxes = build.BATCHES[title]
        model.zero_grad()
        losses, stats = losses_of(model, build.batch(boxes))
        assert losses.keys() == names, title
        assert all(v.ndim == 0 and v.isfinite() and v.requires_grad for v in losses.values()), title
        assert all(v.isfinite() and not v.requires_grad for v in stats.values()), title
        model.total_loss(losses).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all()], title
        if title == "normal":
            assert not [name for name, g in gradients.items() if "weight" in name and not g.any()]


def test_outputs():
    outputs = build.segmenter()(build.images(2, 64, 96))
    assert outputs.bases.shape == (2, 5, 16, 24)
    assert [f.shape[1] for f in outputs.features] == [64] * 5
    assert build.segmenter(NoBoundary())(build.images(2, 64, 96)).bases.shape == (2, 4, 16, 24)


def test_attention_covers_the_blended_bases():
    outputs = {name: build.segmenter(VARIANTS[name]()).detector.params.out_channels // 49 for name in VARIANTS}
    assert outputs == {name: 5 if name.endswith("True") else 4 for name in VARIANTS}


def test_attention_of_the_boundary_basis_may_start_low():
    bias = build.segmenter(GlobalBoundary(attention_bias=-4.0)).detector.params.bias
    assert (bias[:196] == 0).all() and (bias[196:] == -4).all()


def test_total_is_the_weighted_sum():
    terms = {"bce": BinaryCrossEntropy(weight=2.0, weight_step=1.0), "dice": Dice(weight=0.5)}
    model = build.segmenter(losses=terms, loss_weights={**build.WEIGHTS, "boundary": 0.1, "mask": 3.0})
    weights = model.weights(epoch=2)
    assert weights["boundary_bce"] == pytest.approx(0.4) and weights["boundary_dice"] == pytest.approx(0.05)
    losses = {"cls": torch.tensor(1.0), "mask": torch.tensor(2.0), "semantic": torch.tensor(3.0)}
    losses |= {"boundary_bce": torch.tensor(4.0), "boundary_dice": torch.tensor(5.0)}
    assert model.total_loss(losses).item() == pytest.approx(1 + 3 * 2 + 0.3 * 3 + 0.2 * 4 + 0.05 * 5)
    assert model.total_loss(losses, epoch=2).item() == pytest.approx(1 + 3 * 2 + 0.3 * 3 + 0.4 * 4 + 0.05 * 5)


def test_masks_are_learned_from_no_more_positives_of_an_image_than_asked():
    batch, seen = build.batch(build.BATCHES["normal"]), []
    for limit in (None, 1000, 3):
        model = build.segmenter(InstanceBoundary(), mask_positives=limit).eval()
        real = model.assembly.learn

        def learn(bases, instances, target, truth, weight, normalizer, real=real):
            seen.append((instances.per_mask(instances.image), weight, normalizer))
            return real(bases, instances, target, truth, weight, normalizer)

        model.assembly.learn = learn
        seen.append(model.losses(model(batch.images), batch))
    (image, weight, _), (every, stats), _, (plenty, _), (few, weights, total), (some, some_stats) = seen
    assert image.bincount().min() > 3 and len(image) == len(weight) == stats["positives"]
    assert plenty.keys() == every.keys() and all(torch.allclose(plenty[name], every[name]) for name in every)
    assert few.tolist() == [0, 0, 0, 1, 1, 1] and total == weights.sum()
    assert set(weights.tolist()) <= set(weight.tolist())
    assert some_stats["positives"] == stats["positives"], "what is logged is what the detector has"
    assert all(torch.equal(some[name], every[name]) for name in ("cls", "box", "quality", "semantic"))
    assert some["mask"] != every["mask"] and some["boundary_dice"] != every["boundary_dice"]
    with pytest.raises(ValueError, match="mask_positives=0: give at least 1, or null for all"):
        build.segmenter(mask_positives=0)


def test_terms_of_the_masks_are_weighted_by_centerness():
    model = build.segmenter(NoBoundary(), losses={"edge": EdgeAgreement()})
    losses, _ = losses_of(model, build.batch(build.BATCHES["normal"]))
    assert "edge" in losses and "edge" in model.weights()
    losses["edge"].backward()
    assert model.basis.bases.weight.grad.any()


def test_masks_in_the_boxes_may_be_given():
    """They replace those that are cropped from the pixels, in the mask loss and nowhere else."""
    batch = build.batch(build.BATCHES["normal"])
    model = build.segmenter()
    outputs = model(batch.images)
    crops = crop_masks(batch.targets.masks, batch.targets.boxes, model.assembly.mask_size)

    def losses(roi_masks):
        given = replace(batch, targets=replace(batch.targets, roi_masks=roi_masks))
        return model.losses(outputs, given)[0]

    cropped, same, inverted = losses(None), losses(crops), losses(1 - crops)
    assert all(torch.equal(cropped[k], same[k]) for k in cropped)
    assert [k for k in cropped if not torch.equal(cropped[k], inverted[k])] == ["mask"]


def test_losses_need_targets():
    model, batch = build.segmenter(), build.batch(build.BATCHES["normal"])
    with pytest.raises(ValueError, match="needs targets"):
        model.losses(model(batch.images), Batch(batch.images))


def test_targets_of_an_image_do_not_depend_on_its_place_in_the_batch():
    model = build.segmenter(mode="iou_boundary").eval()
    one, two = (build.batch([boxes], seed=i) for i, boxes in enumerate(build.BATCHES["normal"]))
    both = build.batch(build.BATCHES["normal"])
    both = replace(both, images=replace(both.images, pixels=torch.cat([one.images.pixels, two.images.pixels])))
    with torch.no_grad():
        (a, _), (b, _), (c, stats) = (losses_of(model, x) for x in (one, two, both))
    assert c["boundary_bce"].item() == pytest.approx((a["boundary_bce"] + b["boundary_bce"]).item() / 2, rel=1e-4)
    assert c["boundary_dice"].item() == pytest.approx((a["boundary_dice"] + b["boundary_dice"]).item() / 2, rel=1e-4)
    assert stats["positives"] > 0


# ---- scoring ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("detached", "reached"), [(True, False), (False, True)])
def test_gradient_of_the_scores_into_the_masks(detached, reached):
    model = build.segmenter(mode="iou_boundary", score={"detach_masks": detached})
    losses, _ = losses_of(model, build.batch(build.BATCHES["normal"]))
    (losses["score_iou"] + losses["score_boundary"]).backward()
    gradient = model.basis.bases.weight.grad
    assert (gradient is not None and bool(gradient.any())) == reached
    assert model.fpn.pyramid.inner_blocks[0][0].weight.grad.any()


def test_a_validation_draws_the_same_positives_each_time_and_no_number_of_the_training():
    model = build.segmenter(mode="iou", score={"max_positives": 2})
    batch = build.batch(build.BATCHES["normal"])
    outputs = model(batch.images)

    def score():
        return model.losses(outputs, batch)[0]["score_iou"].item()

    assert len({score() for _ in range(8)}) > 1, "nothing is drawn"
    model.eval()
    state = torch.get_rng_state()
    assert len({score() for _ in range(8)}) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_scores_of_predicted_boxes():
    model = build.segmenter(mode="iou_boundary", score={"boxes": "pred_box"})
    for boxes in build.BATCHES.values():
        losses, _ = losses_of(model, build.batch(boxes))
        assert all(value.isfinite() for value in losses.values())


def test_area_outside_of_a_predicted_box():
    targets = build.targets([[(0, 0, 64, 64)]])
    targets.masks[0] = False
    targets.masks[0, 16:48, 16:48] = True
    boxes = torch.tensor([[16.0, 16.0, 32.0, 48.0], [8.0, 8.0, 56.0, 56.0]])
    crops, outside = crops_of_predicted_boxes(targets, torch.tensor([0, 0]), boxes, 8)
    assert crops.flatten(1).sum(1).tolist() == [64, 32]  # half of the object, and all of it
    assert outside.tolist() == pytest.approx([64, 0])


# ---- inference --------------------------------------------------------------------------------------------------


def finder(**options):
    """A model at random that finds many boxes."""
    model = build.segmenter(**options).eval()
    torch.nn.init.zeros_(model.detector.cls_logits.bias)
    torch.nn.init.constant_(model.detector.box_pred.bias, 3.0)
    torch.nn.init.normal_(model.detector.cls_logits.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


SIZES = [(50, 90), (64, 33)]


@pytest.mark.parametrize("mode", MODES)
def test_detections(mode):
    model, images = finder(mode=mode), build.images(2, 64, 96, sizes=SIZES)
    results = model.detect(model(images), images)
    assert [found.size for found in results] == SIZES
    for found in results:
        assert 3 < len(found) <= 100
        assert (found.scores.diff() <= 0).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 0::2] <= found.size[1]).all() and (found.boxes[:, 1::2] <= found.size[0]).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()  # no place in the padding leaves an empty box
        assert (found.scores <= found.box_scores).all() and found.mask_logits.shape == (len(found), 28, 28)
        assert mode is not None or torch.equal(found.scores, found.box_scores)


def test_scoring_changes_the_order_and_not_the_boxes():
    images = build.images(2, 64, 96)
    plain, scored = finder(), finder(mode="iou_boundary")
    scored.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.normal_(scored.scoring.branches["iou"][-1].bias, mean=0.5, std=0.3)
    torch.nn.init.constant_(scored.scoring.branches["boundary"][-1].bias, 0.5)
    changed = False
    for before, after in zip(plain.detect(plain(images), images), scored.detect(scored(images), images), strict=True):
        order = after.box_scores.argsort(descending=True, stable=True)
        torch.testing.assert_close(after.box_scores[order], before.box_scores)
        assert {tuple(b) for b in after.boxes.tolist()} == {tuple(b) for b in before.boxes.tolist()}
        changed = changed or not torch.equal(order, torch.arange(len(order)))
    assert changed


def test_masks_are_pooled_in_boxes_that_are_clipped_or_not():
    images = build.images(1, 64, 96)
    clipped, squeezed = finder(), finder(clip_before_pool=False)
    a, b = (model.detect(model(images), images)[0] for model in (clipped, squeezed))
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
    same = (a.mask_logits == b.mask_logits).flatten(1).all(1)
    border = (a.boxes[:, :2] == 0).any(1) | (a.boxes[:, 2] == 96) | (a.boxes[:, 3] == 64)
    assert not same[border].any() and same[~border].all()


def test_nothing_found():
    model, images = build.segmenter(mode="iou_boundary").eval(), build.images(2, 64, 96)
    torch.nn.init.constant_(model.detector.cls_logits.bias, -20.0)
    results = model.detect(model(images), images)
    assert [len(found) for found in results] == [0, 0]
    assert results[0].mask_logits.shape == (0, 28, 28) and results[0].boxes.shape == (0, 4)


def test_clip():
    boxes = torch.tensor([[-5.0, -5.0, 120.0, 120.0], [70.0, 10.0, 80.0, 20.0]])
    clipped = clip_boxes(boxes, torch.tensor([[50, 90], [64, 33]]))
    assert clipped.tolist() == [[0, 0, 90, 50], [33, 10, 33, 20]]
