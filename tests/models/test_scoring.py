import math

import pytest
import torch

from b2inst.models.scoring import NoScoring, ScoringHead, dice_score, no_scoring
from b2inst.models.scoring_base import iou_score
from b2inst.ops.laplacian import boundary, soft_boundary
from models import build

STRIDES = [8, 16, 32, 64, 128]


def head(mode="iou_boundary", in_channels=8, classes=3, **options):
    torch.manual_seed(0)
    return build.scoring(mode, **options)(in_channels, classes, STRIDES)


def disk(radius=20.0, shift=0.0, side=56):
    """(1, R, R) logits whose sign is a disk; the edge is one pixel soft."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    center = (side - 1) / 2
    return (radius - ((y - center) ** 2 + (x - center - shift) ** 2).sqrt())[None]


def mask(logits):
    return (logits >= 0).float()


# ---- qualities --------------------------------------------------------------------------------------------------


def test_dice():
    a = torch.tensor(
        [[[1.0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0]], [[0.5, 0, 0], [0, 0, 0]]]
    )
    b = torch.tensor(
        [[[0.0, 1, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]], [[1.0, 0, 0], [0, 0, 0]]]
    )
    assert dice_score(a, b).tolist() == pytest.approx([2 / 5, 1, 0, 1 / 1.25], abs=1e-5)


def test_iou():
    a = torch.tensor([[[1.0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    b = torch.tensor([[[0.0, 1, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]])
    assert iou_score(a, b).tolist() == pytest.approx([1 / 4, 0])
    assert iou_score(a, b, torch.tensor([4.0, 0.0])).tolist() == pytest.approx([1 / 8, 0])


@pytest.mark.parametrize(
    ("shift", "inner", "both"), [(0, 1.0, 1.0), (0.5, 0.75, 0.87), (1, 0.50, 0.75), (2, 0.21, 0.50)]
)
def test_a_shifted_circle(shift, inner, both):
    true, predicted = mask(disk()), disk(shift=shift)
    for band, wanted in (("inner", inner), ("both", both)):
        (found,) = head(boundary_band=band).targets(predicted, true)["boundary"].tolist()
        assert found == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(("growth", "iou", "inner", "both"), [(1, 0.905, 0.20, 0.60), (2, 0.827, 0.00, 0.21)])
def test_a_grown_circle(growth, iou, inner, both):
    true, predicted = mask(disk()), disk(20.0 + growth)
    for band, wanted in (("inner", inner), ("both", both)):
        found = head(boundary_band=band).targets(predicted, true)
        assert found["iou"].item() == pytest.approx(iou, abs=0.01)
        assert found["boundary"].item() == pytest.approx(wanted, abs=0.05)


def test_targets_judge_the_shape_and_not_the_sharpness():
    true = mask(disk())
    for softness in (0.1, 1, 2):
        assert head().targets(disk() / softness, true)["boundary"].item() == pytest.approx(1)
    soft = [head(binarize=False).targets(disk() / s, true)["boundary"].item() for s in (0.5, 1, 2)]
    assert 0.5 > soft[0] > soft[1] > soft[2]


@pytest.mark.parametrize(("padding", "least", "most"), [("replicate", 0, 0.01), ("zeros", 0.95, 0.99)])
def test_a_mask_that_fills_the_frame_of_its_box(padding, least, most):
    true = torch.ones(1, 56, 56)
    found = torch.full_like(true, 5.0)
    found[:, :3, :3] = -5
    scoring = head(boundary_padding=padding)
    assert least <= scoring.targets(found, true)["boundary"].item() <= most
    assert scoring.targets(true * 5, true)["boundary"].item() == pytest.approx(1)
    assert scoring.targets(true * -5, true)["boundary"].item() == 0, "nothing has no boundary either"
    assert scoring.targets(true * -5, true * 0)["boundary"].item() == 1


def test_targets_are_of_the_mode_and_carry_no_gradient():
    logits, true = disk().requires_grad_(), mask(disk())
    for mode, names in (("iou", {"iou"}), ("boundary", {"boundary"}), ("iou_boundary", {"iou", "boundary"})):
        targets = head(mode).targets(logits, true)
        assert targets.keys() == names and not any(t.requires_grad for t in targets.values())


def test_what_lies_outside_of_the_frame_lowers_the_iou_alone():
    true = mask(disk())
    targets = head().targets(disk(), true, true.flatten(1).sum(1))
    assert targets["iou"].item() == pytest.approx(0.5) and targets["boundary"].item() == pytest.approx(1)


# ---- combination ------------------------------------------------------------------------------------------------

SCORES = torch.tensor([0.9, 0.8, 0.5])
QUALITY = {"iou": torch.tensor([0.81, 1.3, -0.2]), "boundary": torch.tensor([0.25, 0.49, 0.6])}


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("iou", [0.9 * 0.81, 0.8, 0]),
        ("boundary", [0.9 * 0.25, 0.8 * 0.49, 0.5 * 0.6]),
        ("iou_boundary", [0.9 * 0.9 * 0.5, 0.8 * 0.7, 0]),
    ],
)
def test_combination(mode, wanted):
    assert head(mode).combine(SCORES, QUALITY).tolist() == pytest.approx(wanted)


def test_combination_without_limits():
    found = head(clamp=False).combine(SCORES, QUALITY).tolist()
    assert found[1] == pytest.approx(0.8 * math.sqrt(1.3 * 0.49))
    assert found[2] == 0  # no root of a negative product
    assert head("iou", clamp=False).combine(SCORES, QUALITY).tolist() == pytest.approx([0.9 * 0.81, 0.8 * 1.3, -0.1])


def test_no_scoring_keeps_the_class_score():
    scoring = no_scoring(in_channels=8, num_classes=3, strides=STRIDES)
    assert isinstance(scoring, NoScoring) and scoring.qualities == ()
    assert scoring.combine(SCORES, {}) is SCORES


def test_losses():
    predicted = {name: torch.tensor([0.5, 0.9]) for name in QUALITY}
    targets = {"iou": torch.tensor([1.0, 0.9]), "boundary": torch.tensor([0.0, 0.5])}
    losses = head().losses(predicted, targets)
    assert losses["iou"].item() == pytest.approx(0.5 * 0.25 / 2)
    assert losses["boundary"].item() == pytest.approx(0.5 * 0.16)  # a target of 0 does not count


# ---- head -------------------------------------------------------------------------------------------------------


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters():
    convs = 258 * 256 * 9 + 256 + 3 * (256 * 256 * 9 + 256)
    branch = 256 * 49 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 80 + 80
    paper = count(ScoringHead(256, 80, STRIDES))
    assert paper == convs + 2 * branch == 30_320_288
    light = count(ScoringHead(256, 80, STRIDES, branch="gap"))
    assert light == convs + 2 * (256 * 80 + 80) == 2_406_048
    least = count(ScoringHead(256, 80, STRIDES, branch="gap", reduced=64))
    assert light - least == 192 * 256 * 9 - (256 * 64 + 64)
    assert paper - count(ScoringHead(256, 80, STRIDES, mode="iou")) == branch
    assert paper - count(ScoringHead(256, 80, STRIDES, boundary_input=False)) == 256 * 9


def features(channels=8, images=2):
    """Level i is constant i."""
    return [torch.full((images, channels, 256 // s, 256 // s), float(i)) for i, s in enumerate(STRIDES, start=3)]


BOXES = torch.tensor([[16.0, 16, 80, 80], [0, 0, 256, 256], [100, 100, 120, 140]])


def test_features_come_from_the_level_of_the_box():
    scoring = head()
    huge = torch.tensor([[-200.0, -200, 400, 400]])
    pooled = scoring._pool(features(), torch.cat([BOXES, huge]), torch.tensor([0, 1, 1, 0]))
    assert pooled.shape == (4, 8, 8, 8)
    assert [p.max().item() for p in pooled] == [3, 4, 3, 5]
    assert [p.min().item() for p in pooled] == [3, 4, 3, 0]


def test_features_come_from_the_image_of_the_box():
    maps = [f.clone() for f in features()]
    maps[0][1] += 10
    pooled = head()._pool(maps, BOXES[[0, 0]], torch.tensor([0, 1]))
    assert [p.mean().item() for p in pooled] == [3, 13]


def test_boxes_stay_where_they_are_in_bfloat16():
    """Above 1024 px it has every eighth number alone, so that both sides of this box would move to the left by 4 px."""
    maps = [torch.arange(160.0).expand(1, 8, 2, -1).bfloat16()] * 3  # the column of each cell, which it has up to 256
    with torch.autocast("cpu", torch.bfloat16):
        pooled = head()._pool(maps, torch.tensor([[1028.0, 0, 1044, 16]]), torch.tensor([0]))
    assert pooled.float().mean().item() == pytest.approx((1036 - 4) / 8, abs=0.1)


def test_channels_may_be_reduced_before_the_pooling_or_after_it():
    maps = [torch.randn(f.shape, generator=torch.Generator().manual_seed(i)) for i, f in enumerate(features())]
    scoring, image = head(reduced=2), torch.tensor([0, 1, 1])
    pooled = scoring._pool(maps, BOXES, image)
    assert pooled.shape == (3, 2, 8, 8)
    torch.testing.assert_close(pooled, scoring.reduce(head()._pool(maps, BOXES, image)))


def test_masks_and_boundaries_are_pooled_to_the_size_of_the_features():
    entered = head(roi_size=14)._mask_input(disk())
    assert entered.shape == (1, 2, 14, 14)
    probs = disk().sigmoid()
    torch.testing.assert_close(entered[0, 0, 7, 3], probs[0, 28:32, 12:16].max())
    torch.testing.assert_close(entered[0, 1, 7, 1], soft_boundary(probs)[0, 28:32, 4:8].max())
    assert head("iou", boundary_input=False)._mask_input(disk()).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(("side", "size"), [(28, 14), (28, 8), (56, 14), (27, 14), (8, 8), (7, 14)])
def test_masks_of_any_size_are_pooled(side, size):
    logits = torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))
    entered = head("iou", boundary_input=False, roi_size=size)._mask_input(logits)
    assert torch.equal(entered, torch.nn.functional.adaptive_max_pool2d(logits.sigmoid()[:, None], size))


def test_onnx_can_pool_masks_to_a_size_that_does_not_divide_theirs(tmp_path):
    """It has no pooling in windows of several sizes, as 28 to 8 cells makes them."""
    onnxruntime = pytest.importorskip("onnxruntime")

    class Input(torch.nn.Module):
        def forward(self, logits):
            return head()._mask_input(logits)

    count, path = torch.export.Dim("count"), tmp_path / "input.onnx"
    traced = torch.export.export(Input(), (disk(side=28).expand(2, -1, -1),), dynamic_shapes=({0: count},))
    torch.onnx.export(traced, dynamo=True, verbose=False).save(path)
    logits = torch.cat([disk(9.0, shift, side=28) for shift in (0, 3, -5)])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), Input()(logits))


@pytest.mark.parametrize("roi_size", [1, 2, 7, 9])
@pytest.mark.parametrize("branch", ["fc", "gap"])
def test_features_may_have_any_side(branch, roi_size):
    scoring, labels = head(branch=branch, roi_size=roi_size), torch.tensor([2, 0, 1])
    found = scoring(features(), build.scored(disk().expand(3, -1, -1), BOXES, torch.tensor([0, 1, 1]), labels))
    assert found["iou"].shape == (3,) and found["iou"].isfinite().all()


@pytest.mark.parametrize("branch", ["fc", "gap"])
def test_predictions_are_of_the_class_of_the_instance(branch):
    scoring = head(branch=branch)
    masks, image = disk().expand(3, -1, -1), torch.tensor([0, 1, 1])
    every = [scoring(features(), build.scored(masks, BOXES, image, torch.full((3,), c)))["iou"] for c in range(3)]
    mixed = scoring(features(), build.scored(masks, BOXES, image, torch.tensor([2, 0, 1])))
    assert mixed.keys() == {"iou", "boundary"} and mixed["boundary"].shape == (3,)
    torch.testing.assert_close(mixed["iou"], torch.stack([every[2][0], every[0][1], every[1][2]]))
    assert len({round(v.item(), 6) for e in every for v in e[:1]}) == 3


def test_no_instances_stay_attached():
    scoring = head()
    none = torch.zeros(0, dtype=torch.int64)
    predicted = scoring(features(), build.scored(torch.zeros(0, 28, 28), BOXES[:0], none, none))
    targets = scoring.targets(torch.zeros(0, 28, 28), torch.zeros(0, 28, 28))
    losses = scoring.losses(predicted, targets)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in scoring.parameters())


def test_hard_and_soft_boundaries_agree_on_hard_masks():
    # what the targets compare: zeros and ones on the contour
    found = boundary(mask(disk()))
    assert torch.equal(found, (soft_boundary(mask(disk())) > 0).float())


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"mode": "both"}, "iou, boundary, iou_boundary; fc, gap"),
        ({"branch": "conv"}, "iou, boundary, iou_boundary; fc, gap"),
        ({"boxes": "box"}, "gt_box, pred_box"),
    ],
)
def test_unknown_options(options, allowed):
    with pytest.raises(ValueError, match=f"allowed: {allowed}$"):
        ScoringHead(8, 3, STRIDES, **options)


def test_sizes_and_bands_that_cannot_be():
    for size in (0, 7.5):
        with pytest.raises(ValueError, match=f"roi_size={size}: give a whole number of at least 1"):
            ScoringHead(8, 3, STRIDES, roi_size=size)
    with pytest.raises(ValueError, match="band='outer' is unknown; choose 'inner', 'both' or 'dilate_<k>'"):
        ScoringHead(8, 3, STRIDES, boundary_band="outer")
