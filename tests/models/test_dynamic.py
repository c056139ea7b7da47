import pytest
import torch
from torch.nn import functional as F

from b2inst.models.assembly.base import Instances
from b2inst.models.assembly.dynamic import DynamicConvolutions
from b2inst.ops.upsample import aligned_bilinear
from models.wanted import in_box, maps_and_boxes, numbers


def instances(params, boxes, image, roi=None):
    points = torch.tensor([[20.0, 28.0], [12.0, 12.0], [100.0, 60.0], [4.0, 4.0]])[: len(params)]
    return Instances(boxes, image, params, points, torch.tensor([64.0, 256.0, 64.0, 1024.0])[: len(params)], roi)


def one_by_one(bases, wanted, channels=8, stride=8):
    """The network of each instance as convolutions of its own image, with published positions of the parameters."""
    found = []
    for p, params in enumerate(wanted.params):
        box = p if wanted.roi is None else wanted.roi[p]
        x = bases[wanted.image[box]]
        height, width = x.shape[-2:]
        columns = (wanted.points[p, 0] - (torch.arange(width) * stride + stride // 2)).expand(height, width)
        rows = (wanted.points[p, 1] - (torch.arange(height) * stride + stride // 2))[:, None].expand(height, width)
        x = torch.cat([torch.stack([columns, rows]) / wanted.reach[p], x])[None]
        inputs = x.shape[1]
        a, b, c = channels * inputs, channels * channels, channels
        ends = torch.tensor([a, b, c, channels, channels, 1]).cumsum(0).tolist()
        w1, w2, w3, b1, b2, b3 = (params[end - n : end] for end, n in zip(ends, [a, b, c, 8, 8, 1], strict=True))
        x = F.conv2d(x, w1.reshape(channels, inputs, 1, 1), b1).relu()
        x = F.conv2d(x, w2.reshape(channels, channels, 1, 1), b2).relu()
        found.append(F.conv2d(x, w3.reshape(1, channels, 1, 1), b3)[0, 0])
    return torch.stack(found)


@pytest.mark.parametrize(("num_bases", "count"), [(8, 169), (9, 177)])
def test_all_at_once_is_one_by_one(num_bases, count):
    """Four locations of three boxes in two images; 9 bases with the boundary basis."""
    bases, boxes, image = maps_and_boxes(num_bases)
    assembly = DynamicConvolutions(mask_size=8)
    assert assembly.num_params(num_bases) == count
    wanted = instances(numbers(4, count), boxes, image, torch.tensor([2, 0, 1, 0]))
    expected = one_by_one(bases, wanted)
    torch.testing.assert_close(assembly.image_logits(bases, wanted), expected, atol=1e-5, rtol=1e-4)
    masks = assembly(bases, wanted)
    enlarged = aligned_bilinear(expected[:, None], 2)[:, 0]
    for i, box in enumerate(boxes[wanted.roi]):
        torch.testing.assert_close(masks[i], in_box(enlarged[i], box - 0.5, 8, 4), atol=1e-4, rtol=1e-4)


def test_learns_from_the_whole_image():
    """The masks of `forward`, and Dice on the grid of the mask logits against every fourth pixel of the truth."""
    bases, boxes, image = maps_and_boxes(8)
    wanted = instances(numbers(4, 169), boxes, image, torch.tensor([2, 0, 1, 0]))
    height, width = 8 * bases.shape[2], 8 * bases.shape[3]
    truth = numbers(len(boxes), height, width, seed=3) > 0.5
    assembly = DynamicConvolutions(mask_size=8)
    nothing = torch.full((4, 8, 8), torch.nan)  # what is true in the boxes has no part in it
    masks, loss = assembly.learn(bases, wanted, nothing, truth, numbers(4), torch.tensor(1.0))
    torch.testing.assert_close(masks, assembly(bases, wanted))
    enlarged = aligned_bilinear(one_by_one(bases, wanted)[:, None], 2)[:, 0]
    values = []
    for logits, roi in zip(enlarged, wanted.roi, strict=True):
        p, g = logits.sigmoid(), truth[roi][2::4, 2::4].float()
        values.append(1 - 2 * (p * g).sum() / (p.square().sum() + g.square().sum() + 1e-5))
    torch.testing.assert_close(loss, torch.stack(values).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("upsampling", "stride"), [(2, 4), (1, 8), (4, 2), (8, 1)])
def test_what_is_learned_is_cut_where_it_is(upsampling, stride):
    """Logits that are right at every pixel that `learn` looks at make a disk at its place."""
    assembly = DynamicConvolutions(mask_size=56, upsampling=upsampling)
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    box = torch.tensor([[20.0, 20.0, 76.0, 76.0]])
    moved = []
    for shift in torch.arange(8) + 0.25:
        depth = 20 - ((x - 44 - shift).square() + (y - 44 - shift).square()).sqrt()  # of each pixel in the disk
        seen = depth[stride // 2 :: stride, stride // 2 :: stride]
        mask = assembly._cut(seen[None, None], instances(torch.zeros(1, 169), box, torch.zeros(1, dtype=torch.int64)))
        inside = (mask[0] > 0).float()
        cells = torch.arange(56) + 20.5
        moved.append([(inside.sum(0) * cells).sum() / inside.sum() - 44 - shift,
                      (inside.sum(1) * cells).sum() / inside.sum() - 44 - shift])  # fmt: skip
    assert torch.tensor(moved).mean(dim=0).abs().max() < 0.1


def test_a_mask_of_the_whole_box_is_not_right_outside_of_it():
    """Whatever is outside of the boxes is learned too, though nobody sees it."""
    bases, boxes, image = maps_and_boxes(8)
    params = torch.zeros(1, 169)
    params[:, -1] = 9.0  # everything, everywhere
    wanted = instances(params.requires_grad_(), boxes[:1], image[:1])
    x0, y0, x1, y1 = boxes[0].round().int().tolist()
    truth = torch.zeros(1, 8 * bases.shape[2], 8 * bases.shape[3], dtype=torch.bool)
    truth[:, max(y0, 0) : y1, max(x0, 0) : x1] = True
    _, loss = DynamicConvolutions().learn(bases, wanted, torch.ones(1, 56, 56), truth, torch.ones(1), torch.tensor(1.0))
    assert loss > 0.3


def test_locations_are_seen_relative_to_the_instance():
    """With weights that let one coordinate through, the logits are the distance in units of the level."""
    bases, boxes, image = maps_and_boxes(8)
    params = torch.zeros(2, 169)
    params[:, 1] = 1  # y of the first layer, its first output
    params[:, 80] = params[:, 144] = 1
    logits = DynamicConvolutions().image_logits(bases, instances(params, boxes[:2], image[:2]))
    y = torch.arange(16) * 8.0 + 4
    for i, (at, reach) in enumerate([(28.0, 64.0), (12.0, 256.0)]):
        torch.testing.assert_close(logits[i], ((at - y) / reach).clamp(min=0)[:, None].expand(-1, 20))


def test_nothing_wanted():
    bases, boxes, image = maps_and_boxes(8)
    bases.requires_grad_()
    params = torch.zeros(0, 169, requires_grad=True)
    assembly = DynamicConvolutions(mask_size=8)
    masks = assembly(bases, instances(params, boxes, image, torch.zeros(0, dtype=torch.int64)))
    assert masks.shape == (0, 8, 8)
    truth = torch.zeros(len(boxes), 8 * bases.shape[2], 8 * bases.shape[3], dtype=torch.bool)
    wanted = instances(params, boxes, image, torch.zeros(0, dtype=torch.int64))
    masks, loss = assembly.learn(bases, wanted, masks, truth, torch.zeros(0), torch.tensor(1e-6))
    assert masks.shape == (0, 8, 8) and loss.item() == 0
    loss.backward()
    assert bases.grad is not None and params.grad is not None


def test_dice_of_every_positive_counts_the_same():
    logits, target = numbers(3, 4, 4), (numbers(3, 4, 4, seed=2) > 0).float()
    values = []
    for p, g in zip(logits.sigmoid(), target, strict=True):
        values.append(1 - 2 * (p * g).sum() / (p.square().sum() + g.square().sum() + 1e-5))
    loss = DynamicConvolutions().loss(logits, target, torch.tensor([1.0, 0.5, 0.0]), torch.tensor(1.5))
    torch.testing.assert_close(loss, torch.stack(values).mean())


def test_a_single_layer_is_a_weighted_sum():
    bases, boxes, image = maps_and_boxes(8)
    assembly = DynamicConvolutions(num_layers=1)
    assert assembly.num_params(8) == 8 + 2 + 1
    params = numbers(2, 11)
    params[:, :2] = 0  # of the coordinates
    logits = assembly.image_logits(bases, instances(params, boxes[:2], image[:2]))
    expected = torch.einsum("pk,pkij->pij", params[:, 2:10], bases[image[:2]]) + params[:, 10, None, None]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("option", [{"num_layers": 0}, {"channels": 0}, {"channels": 7.5}], ids=str)
def test_layers_and_channels_are_whole_numbers(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value}: give a whole number of at least 1"):
        DynamicConvolutions(**option)


def test_upsampling_that_does_not_divide():
    with pytest.raises(ValueError, match="upsampling=3.*basis_stride=8"):
        DynamicConvolutions(upsampling=3)
