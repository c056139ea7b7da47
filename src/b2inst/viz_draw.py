"""The small parts that pictures are made of: colors, scaling, contours, hatching, text."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from b2inst.ops.laplacian import boundary

NEGATIVE, NEUTRAL, POSITIVE = (33, 102, 172), (245, 245, 245), (230, 97, 1)
HATCH_LIGHT, HATCH_DARK, HATCH_PERIOD = 200, 70, 8
GOLDEN_RATIO = 0.618033988749895  # steps of this share of the color circle never come close to each other


def instance_colors(count: int) -> Tensor:
    """Colors of instances 0 to count - 1: (count, 3) uint8, RGB; neighbors in the list differ most."""
    hues = [(0.58 + i * GOLDEN_RATIO) % 1 for i in range(count)]
    return _rgb([(hue, 0.65 + 0.35 * (i % 2), 1.0 - 0.15 * (i % 3)) for i, hue in enumerate(hues)])


def basis_colors(count: int) -> Tensor:
    """Colors from green over blue to violet, (count, 3) uint8: red is left for the boundary."""
    return _rgb([(0.30 + 0.40 * i / max(1, count - 1), 0.95, 1.0) for i in range(count)])


def _rgb(hsv: Sequence[tuple[float, float, float]]) -> Tensor:
    values = [[round(255 * channel) for channel in colorsys.hsv_to_rgb(*color)] for color in hsv]
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 3)


def checked_picture(picture: Tensor, name: str) -> Tensor:
    """The picture on the CPU.

    Raises:
        ValueError: it is no (3, H, W) uint8 tensor.
    """
    if not isinstance(picture, Tensor) or picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8:
        given = f"{tuple(picture.shape)} {picture.dtype}" if isinstance(picture, Tensor) else type(picture).__name__
        raise ValueError(f"{name} is {given}: a picture is a (3, H, W) uint8 tensor, RGB")
    return picture.detach().cpu()


def resize(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """(K, h, w) float maps at another size (height, width)."""
    align = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(maps[None].float(), size, mode=mode, **align)[0]


def to_uint8(values: Tensor) -> Tensor:
    """0..255 floats as uint8, cut off outside."""
    return values.round().clamp(0, 255).to(torch.uint8)


def signed(values: Tensor) -> Tensor:
    """(3, H, W) uint8 picture of a (1, H, W) map in [-1, 1]: blue for -1, light gray for 0, orange for 1."""
    negative, neutral, positive = torch.tensor([NEGATIVE, NEUTRAL, POSITIVE]).float().view(3, 3, 1, 1)
    away = torch.where(values < 0, negative - neutral, positive - neutral)
    return to_uint8(neutral + away * values.abs())


def percentile(values: Tensor, share: float) -> Tensor:
    """(..., 1) value below which this share of the last dimension lies."""
    ordered = values.float().sort(dim=-1).values
    return ordered[..., [round((ordered.shape[-1] - 1) * share)]]


def hatch(picture: Tensor, where: Tensor) -> None:
    """Draw gray diagonal stripes into a picture where the (H, W) bool map says so."""
    y = torch.arange(where.shape[0])[:, None]
    x = torch.arange(where.shape[1])[None, :]
    phase = (x + y) % HATCH_PERIOD
    picture[:, where & (phase == 0)] = HATCH_LIGHT
    picture[:, where & (phase == HATCH_PERIOD // 2)] = HATCH_DARK


@dataclass(frozen=True)
class Patch:
    """A mask cut out of its picture, with a rim of background, so that an instance costs what its own size costs.

    Attributes:
        mask: (h, w) bool.
        left, top: where its first pixel is in the picture.
        extent: first and last column and row of the mask in the picture, [x0, y0, x1, y1]; zeros if it is empty.
    """

    mask: Tensor
    left: int = 0
    top: int = 0
    extent: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(self.mask.sum())


RIM = 1  # pixels: enough for a contour, which looks at the eight neighbors


def cut_out(mask: Tensor) -> Patch:
    """Cut an (H, W) bool mask out of its picture, with a rim where the picture goes on."""
    columns, rows = mask.any(dim=0).nonzero()[:, 0], mask.any(dim=1).nonzero()[:, 0]
    if len(rows) == 0:
        return Patch(mask[:0, :0])
    (x0, x1), (y0, y1) = columns[[0, -1]].tolist(), rows[[0, -1]].tolist()
    left, top = max(0, x0 - RIM), max(0, y0 - RIM)
    return Patch(mask[top : y1 + 1 + RIM, left : x1 + 1 + RIM], left, top, (x0, y0, x1, y1))


def paint(
    picture: Tensor, patches: Sequence[Patch], colors: Tensor, order: list[int], alpha: float, outline: bool
) -> None:
    """Fill masks with translucent colors and trace their contours at full color, in this order."""
    thick = min(picture.shape[1:]) >= 320
    for i in order:
        mask = patches[i].mask
        if mask.numel() == 0:
            continue
        color = colors[i].float()[:, None]
        part = picture[:, patches[i].top :, patches[i].left :][:, : mask.shape[0], : mask.shape[1]]
        part[:, mask] = to_uint8((1 - alpha) * part[:, mask].float() + alpha * color)
        if outline:
            line = boundary(mask[None])[0] > 0
            if thick:  # one pixel more, inwards
                line |= boundary((mask & ~line)[None])[0] > 0
            part[:, line] = colors[i][:, None]


def pixel_corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(D, 4) int64 first and last pixel of each box, inside the image."""
    limit = torch.tensor([size[1], size[0], size[1], size[0]]) - 1
    corners = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil() - 1], dim=1).cpu().long()
    corners = corners.clamp(min=0).minimum(limit)
    return torch.cat([corners[:, :2], torch.maximum(corners[:, 2:], corners[:, :2])], dim=1)


def font(side: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that is readable in a picture with this shorter side."""
    return ImageFont.load_default(size=max(9, min(16, side // 24)))


def cut(text: str, with_font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, shortened until it fits into `width` pixels."""
    while len(text) > 1 and with_font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def write_labels(picture: Tensor, places: dict[int, list[int]], texts: Sequence[str], colors: Tensor) -> Tensor:
    """Write one label per instance beside its place, inside of the picture; one that is too large for it is left out.

    The first in `places` find room first.
    """
    image = to_pil_image(picture)
    draw = ImageDraw.Draw(image)
    letters = font(min(picture.shape[1:]))
    taken: list[tuple[int, int, int, int]] = []
    for i, place in places.items():
        left, top, right, bottom = draw.textbbox((0, 0), texts[i], font=letters)
        width, height = right - left + 2, bottom - top + 2
        if width > image.width or height > image.height:
            continue
        x, y = _free_spot(place, width, height, image.size, taken)
        taken.append((x, y, x + width, y + height))
        background = tuple(colors[i].tolist())
        dark = sum(w * c for w, c in zip((0.299, 0.587, 0.114), background, strict=True)) < 140
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=background)
        draw.text((x + 1 - left, y + 1 - top), texts[i], fill="white" if dark else "black", font=letters)
    return pil_to_tensor(image)


def _free_spot(
    place: Sequence[int], width: int, height: int, size: tuple[int, int], taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int]:
    """Upper left of a label: above, below, at its place or further down; the first spot that covers least labels."""

    def covered(spot: tuple[int, int]) -> int:
        overlaps = (
            (min(spot[0] + width, x1) - max(spot[0], x0), min(spot[1] + height, y1) - max(spot[1], y0))
            for x0, y0, x1, y1 in taken
        )
        return sum(w * h for w, h in overlaps if w > 0 and h > 0)

    x0, y0, x1, y1 = place
    tries = [(x0, y0 - height), (x0, y1 + 1), (x0, y0), (x1 + 1 - width, y0 - height), (x1 + 1 - width, y1 + 1)]
    tries += [(x0, y0 + step * height) for step in (1, -2, 2, -3, 3)]
    inside = [(max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))) for x, y in tries]
    return min(inside, key=covered)
