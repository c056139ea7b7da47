"""How the mask of an instance is put together: the attention, the products with the bases, and their growing sum."""

from __future__ import annotations

import torch
from torch import Tensor

from b2inst import viz
from b2inst.models.assembly.blend import Blend
from b2inst.viz_draw import basis_colors, resize, signed, to_uint8

COLUMNS = 3  # of the table: attention, product, sum


def draw_blend(box: Tensor, blend: Blend, num_bases: int) -> Tensor:
    """Show in a row per basis what it adds to a mask, and in the last row what comes out.

    Args:
        box: (3, h, w) uint8, RGB, the part of the image in the box of the instance.
        blend: (K, R, R) or (K + 1, R, R), with the boundary basis last.
        num_bases: K.

    Returns:
        uint8 picture, a table of the `blend_pictures`.
    """
    return viz.side_by_side(blend_pictures(box, blend, num_bases), columns=COLUMNS)


def blend_pictures(box: Tensor, blend: Blend, num_bases: int) -> dict[str, Tensor]:
    """Draw attention, product with the basis, and sum of the products so far of each basis; then box and mask.

    Attention is black for 0 and for 1 in the full color that the basis has in `viz.draw_bases`; its caption has the
    mean. Products and sums are blue below 0 and orange above, all on one scale; so the colors of the products add up to
    those of the sum, and orange in the last sum, the mask logits, is inside of the mask.

    Args:
        box, blend, num_bases: as in `draw_blend`.

    Returns:
        caption -> (3, h, w) uint8, in the order of the rows.
    """
    size = (box.shape[1], box.shape[2])
    colors = torch.cat([basis_colors(num_bases), torch.tensor([viz.RED], dtype=torch.uint8)]).float()
    products = blend.products.detach().float().cpu()
    sums = products.cumsum(dim=0)
    scale = torch.stack([products.abs().amax(), sums.abs().amax()]).amax().clamp(min=1e-6)
    names = [f"basis {i}" if i < num_bases else "boundary" for i in range(len(products))]
    pictures = {}
    for i, (name, color) in enumerate(zip(names, colors, strict=False)):
        weights = resize(blend.attention[i : i + 1].detach().cpu(), size)
        pictures[f"attention {name} {blend.attention[i].mean():.1%}"] = to_uint8(weights * color[:, None, None])
        pictures[f"x {name}"] = signed(resize(products[i : i + 1] / scale, size))
        caption = "sum: mask logits" if i == len(products) - 1 else f"sum up to {name}"
        pictures[caption] = signed(resize(sums[i : i + 1] / scale, size))
    probs = resize(sums[-1:], size).sigmoid()
    pictures["box"] = box
    pictures["mask probability"] = to_uint8(255 * probs).expand(3, -1, -1)
    pictures["mask"] = viz.draw_instances(box, probs >= 0.5, torch.zeros(1, dtype=torch.int64), None)
    return pictures
