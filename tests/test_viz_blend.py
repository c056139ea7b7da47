"""The table that shows how a mask is put together, read back from its colors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from b2inst import viz
from b2inst.models.assembly.blend import Blend
from b2inst.predict_panels import crop_box
from b2inst.viz_blend import blend_pictures, draw_blend
from b2inst.viz_draw import NEGATIVE, NEUTRAL, POSITIVE, basis_colors

SIDE = 24  # of maps and pictures alike, so that nothing is resized


def make_blend(count: int = 3) -> Blend:
    generator = torch.Generator().manual_seed(0)
    bases = 4 * torch.randn(count, SIDE, SIDE, generator=generator)
    return Blend(torch.randn(count, SIDE, SIDE, generator=generator).softmax(dim=0), bases)


def box(height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def values(picture: Tensor) -> Tensor:
    """The numbers in [-1, 1] that a signed picture shows, from its red channel below 0 and its blue one above."""
    red, _, blue = picture.float()
    below = (NEUTRAL[0] - red) / (NEUTRAL[0] - NEGATIVE[0])
    above = (NEUTRAL[2] - blue) / (NEUTRAL[2] - POSITIVE[2])
    return torch.where(red < blue, -below, above)


@pytest.mark.parametrize("num_bases", [3, 2])
def test_the_drawn_products_add_up_to_the_drawn_mask_logits(num_bases: int) -> None:
    blend = make_blend()
    pictures = blend_pictures(box(), blend, num_bases)
    names = [f"basis {i}" for i in range(num_bases)] + ["boundary"] * (3 - num_bases)
    drawn = torch.stack([values(pictures[f"x {name}"]) for name in names])
    total = values(pictures["sum: mask logits"])
    assert (drawn.sum(dim=0) - total).abs().max() < 0.02
    assert (values(pictures["sum up to basis 1"]) - drawn[:2].sum(dim=0)).abs().max() < 0.02 or num_bases == 2
    scale = float(blend.logits.abs().max() / total.abs().max())
    assert (scale * total - blend.logits).abs().max() < 0.02 * scale
    probs = pictures["mask probability"][0] / 255
    assert (probs - blend.logits.sigmoid()).abs().max() < 0.01


def test_attention_is_drawn_in_the_colors_of_the_bases_and_boundary_in_red() -> None:
    blend = make_blend()
    pictures = blend_pictures(box(), blend, 2)
    attention = {caption: picture for caption, picture in pictures.items() if caption.startswith("attention")}
    means = [f"{mean:.1%}" for mean in blend.attention.mean(dim=(1, 2)).tolist()]
    names = ("basis 0", "basis 1", "boundary")
    assert list(attention) == [f"attention {name} {mean}" for name, mean in zip(names, means, strict=True)]
    for picture, weights, color in zip(
        attention.values(), blend.attention, [*basis_colors(2).tolist(), viz.RED], strict=True
    ):
        wanted = weights * torch.tensor(color)[:, None, None]
        assert (picture.float() - wanted).abs().max() <= 0.5


def test_the_mask_is_painted_where_its_probability_is_at_least_a_half() -> None:
    blend, image = make_blend(), box()
    pictures = blend_pictures(image, blend, 3)
    assert torch.equal(pictures["box"], image)
    changed = (pictures["mask"] != image).any(dim=0)
    inside = blend.logits >= 0
    assert not changed[~inside].any() and changed[inside].float().mean() > 0.95


def test_maps_take_the_size_of_the_box() -> None:
    pictures = blend_pictures(box(30, 50), make_blend(), 3)
    assert {tuple(picture.shape) for picture in pictures.values()} == {(3, 30, 50)} and len(pictures) == 12
    assert draw_blend(box(30, 50), make_blend(), 3).shape[2] == 4 + 3 * 54


def test_nothing_blends_to_nothing() -> None:
    blend = Blend(torch.full((2, 8, 8), 0.5), torch.zeros(2, 8, 8))
    pictures = blend_pictures(box(8, 8), blend, 2)
    assert (pictures["sum: mask logits"] == NEUTRAL[0]).all()


def test_a_box_is_cut_out_of_its_image() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:20, 5:35, 1] = 200
    part = crop_box(pixels, np.array([5, 10, 35, 20], np.float32), 60)
    assert part.shape == (3, 20, 60)
    assert (part[1] == 200).all() and (part[0] == 0).all()
    assert crop_box(pixels, np.array([59.9, 39.9, 60, 40], np.float32), 9).shape == (3, 9, 9)
