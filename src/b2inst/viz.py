"""Pictures of images, instances, bases and boundaries.

A picture is a (3, H, W) uint8 tensor on the CPU, RGB. Inputs may be on any device and are never changed. The layout
of `draw_bases` follows the design figure of B2Inst (mask bases in color, boundary basis in red); colors, scaling
and hatching are our choices. Nothing here needs Lightning, Hydra or W&B.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from b2inst.ops.masks import paste_masks
from b2inst.structures import Detections
from b2inst.viz_draw import (
    Patch,
    basis_colors,
    checked_picture,
    cut,
    cut_out,
    font,
    hatch,
    instance_colors,
    paint,
    percentile,
    pixel_corners,
    resize,
    signed,
    to_uint8,
    write_labels,
)  # fmt: skip

RED = (255, 0, 0)
IGNORED = 120


def draw_instances(
    image: Tensor,
    masks: Tensor,
    labels: Tensor,
    class_names: Sequence[str] | None,
    scores: Tensor | None = None,
    boxes: Tensor | None = None,
    alpha: float = 0.45,
    outline: bool = True,
    crowd: Tensor | None = None,
) -> Tensor:
    """Paint instances on their image: translucent masks, outlines inside of the masks, and a label for each.

    Where masks overlap the smaller one is on top. Instance i has color i of `instance_colors`. An instance whose mask
    is empty and that has no box gets no label; nor does one in a picture too small for its text.

    Args:
        image: (3, H, W) uint8, RGB.
        masks: (D, H, W) bool.
        labels: (D,) int64, indices into `class_names`.
        class_names: names of the classes, or None for no text at all.
        scores: (D,) in [0, 1], written after the name.
        boxes: (D, 4) XYXY in pixels of the image, drawn as thin rectangles; parts outside of the image are cut off.
        alpha: how opaque the masks are, from 0 to 1.
        outline: draw the contour of each mask at full color, 1 px wide, 2 px in images of at least 320 px.
        crowd: (H, W) bool, ignored area, hatched in gray below the instances.

    Returns:
        (3, H, W) uint8 picture; without instances and crowd a copy of the image.

    Raises:
        ValueError: an image that is none, shapes that do not fit together, or a label without a name.
    """
    picture = checked_picture(image, "image").clone()
    count, size = len(masks), tuple(picture.shape[1:])
    _check_instances(count, size, masks, labels, class_names, scores, boxes)
    if crowd is not None:
        if tuple(crowd.shape) != size:
            raise ValueError(f"crowd has shape {tuple(crowd.shape)}, the image {size}: give both at the same size")
        hatch(picture, crowd.cpu().bool())
    if count == 0:
        return picture
    patches = [cut_out(mask) for mask in masks.cpu()]
    return draw_patches(picture, patches, labels, class_names, scores, boxes, alpha, outline)


def draw_patches(
    picture: Tensor, patches: Sequence[Patch], labels: Tensor, class_names: Sequence[str] | None,
    scores: Tensor | None = None, boxes: Tensor | None = None, alpha: float = 0.45, outline: bool = True,
) -> Tensor:  # fmt: skip
    """Paint instances as `draw_instances` does, given as the parts of the picture that they are in.

    Args:
        picture: (3, H, W) uint8, RGB; it may be changed.
        patches: of D instances, inside of the picture.
        labels, class_names, scores, boxes, alpha, outline: see `draw_instances`.
    """
    colors = instance_colors(len(patches))
    areas = torch.tensor([patch.area for patch in patches])
    order = areas.argsort(descending=True, stable=True).tolist()
    paint(picture, patches, colors, order, alpha, outline)
    if boxes is not None:
        corners = pixel_corners(boxes, tuple(picture.shape[1:]))
        picture = draw_bounding_boxes(picture, corners, colors=[tuple(color) for color in colors.tolist()])
    if class_names is None:
        return picture
    visible = [i for i in reversed(order) if boxes is not None or areas[i] > 0]
    places = {i: [*patches[i].extent] if boxes is None else corners[i].tolist() for i in visible}
    texts = [class_names[label] for label in labels.tolist()]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    return write_labels(picture, places, texts, colors)


def draw_detections(
    image: Tensor,
    detections: Detections,
    class_names: Sequence[str] | None,
    score_threshold: float = 0.3,
    max_instances: int = 50,
) -> Tensor:
    """Paint the best detections of an image; masks from 0.5 on, as they are evaluated.

    Args:
        image: (3, H, W) uint8, RGB.
        detections: of this image, best first, boxes in its pixels.
        class_names: names of the classes, or None for no text.
        score_threshold: detections with a lower `scores` are left out.
        max_instances: no more than this many are drawn.

    Returns:
        (3, H, W) uint8 picture.

    Raises:
        ValueError: the detections refer to another size than the image's.
    """
    height, width = checked_picture(image, "image").shape[1:]
    if tuple(detections.size) != (height, width):
        raise ValueError(
            f"the detections refer to an image of {tuple(detections.size)}, the image is {(height, width)} "
            f"(height, width): call detections.resized({(height, width)}) first"
        )
    found = detections.to("cpu")
    found = found[found.scores >= score_threshold][:max_instances]
    probs, boxes = found.mask_logits.float().sigmoid(), found.boxes.float()
    masks = torch.zeros(len(found), height, width, dtype=torch.bool)
    for i in range(len(found)):  # one by one: the float masks of a crowded photo would take hundreds of MB
        masks[i] = paste_masks(probs[i : i + 1], boxes[i : i + 1], height, width)[0] >= 0.5
    return draw_instances(image, masks, found.labels, class_names, found.scores, boxes)


def draw_bases(bases: Tensor, size: tuple[int, int], boundary: Tensor | None = None) -> Tensor:
    """Blend the mask bases, each in a color of its own, and lay the boundary basis over them in red.

    Each basis is stretched from its 2nd to its 98th percentile, so that a few outliers do not wash the picture out.
    Where several are strong their colors mix. No mixture is red: only the boundary is.

    Args:
        bases: (K, h, w) float, K >= 1, without the boundary basis.
        size: (height, width) of the picture, the area that the grid covers (of a padded input: with its padding).
        boundary: (h, w) logits of the boundary basis; drawn as opaque as their sigmoid.

    Returns:
        (3, height, width) uint8 picture.

    Raises:
        ValueError: shapes that do not fit together.
    """
    bases, boundary = _checked_bases(bases, boundary)
    flat = bases.flatten(1)  # [K, h * w]
    low, high = percentile(flat, 0.02), percentile(flat, 0.98)
    strength = ((flat - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    # The squares let the strongest basis have its color; the brightness is that of the strongest, never their sum.
    share = strength**2 / (strength**2).sum(dim=0).clamp(min=1e-6)
    mixed = basis_colors(len(bases)).float().T @ (share * strength.amax(dim=0))  # [3, h * w]
    picture = resize(mixed.view(3, *bases.shape[1:]), size)
    if boundary is not None:
        red = torch.tensor(RED, dtype=torch.float32).view(3, 1, 1)
        picture = torch.lerp(picture, red, resize(boundary[None], size).sigmoid())
    return to_uint8(picture)


def draw_basis_row(bases: Tensor, boundary_logits: Tensor | None, size: tuple[int, int]) -> Tensor:
    """Show each basis by itself, and the probability of the boundary in gray; rows of at most eight.

    A basis is blue below 0 and orange above, at full color from the 98th percentile of its magnitude on.

    Args:
        bases: (K, h, w) float, K >= 1, without the boundary basis.
        boundary_logits: (h, w) logits of the boundary basis, or None.
        size: (height, width) of each map, see `draw_bases`.

    Returns:
        uint8 picture of the maps with the captions "basis 0" ... and "boundary".

    Raises:
        ValueError: shapes that do not fit together.
    """
    bases, boundary_logits = _checked_bases(bases, boundary_logits)
    maps = {}
    for i, basis in enumerate(bases):
        scale = percentile(basis.abs().flatten(), 0.98).clamp(min=1e-6)
        value = resize((basis / scale).clamp(-1, 1)[None], size)  # [1, H, W]
        maps[f"basis {i}"] = signed(value)
    if boundary_logits is not None:
        maps["boundary"] = to_uint8(255 * resize(boundary_logits[None], size).sigmoid()).expand(3, -1, -1)
    return side_by_side(maps, columns=min(len(maps), 8))


def draw_boundary(target: Tensor, size: tuple[int, int], weight: Tensor | None = None) -> Tensor:
    """Show a boundary target, its cells as they are: white where there is boundary, gray and hatched where ignored.

    Args:
        target: (h, w) in [0, 1].
        size: (height, width) of the picture, the area that the grid covers.
        weight: (h, w), 0 where the target is ignored (crowds, padding); None: nowhere.

    Returns:
        (3, height, width) uint8 picture.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if target.ndim != 2 or (weight is not None and weight.shape != target.shape):
        given = f"target {tuple(target.shape)}" + ("" if weight is None else f", weight {tuple(weight.shape)}")
        raise ValueError(f"{given}: both have to be (h, w), those of one image")
    picture = to_uint8(255 * resize(target.detach().float().cpu()[None], size, "nearest-exact")).repeat(3, 1, 1)
    if weight is not None:
        ignored = resize((weight.detach().cpu() == 0).float()[None], size, "nearest-exact")[0] > 0
        picture[:, ignored] = IGNORED
        hatch(picture, ignored)
    return picture


def side_by_side(pictures: Mapping[str, Tensor], columns: int | None = None, pad: int = 4) -> Tensor:
    """Put pictures into a table on white, each below its caption; a caption that is too long is cut.

    Args:
        pictures: caption -> (3, H, W) uint8; sizes may differ, a picture stands at the upper left of its cell.
        columns: pictures per row; None puts all in one row.
        pad: white pixels around each cell.

    Returns:
        uint8 picture of the table.

    Raises:
        ValueError: no pictures, something that is none, or no columns.
    """
    if not pictures or (columns is not None and columns < 1):
        raise ValueError(f"{len(pictures)} pictures in {columns} columns: at least one of each is needed")
    checked = [(caption, checked_picture(picture, repr(caption))) for caption, picture in pictures.items()]
    columns = columns or len(checked)
    rows = [checked[i : i + columns] for i in range(0, len(checked), columns)]
    cell = max(picture.shape[2] for _, picture in checked)
    letters = font(min(max(picture.shape[1:]) for _, picture in checked))
    head = sum(letters.getmetrics())
    height = pad + sum(head + max(picture.shape[1] for _, picture in row) + pad for row in rows)
    table = Image.new("RGB", (pad + min(columns, len(checked)) * (cell + pad), height), "white")
    draw, y = ImageDraw.Draw(table), pad
    for row in rows:
        for column, (caption, picture) in enumerate(row):
            x = pad + column * (cell + pad)
            draw.text((x, y), cut(caption, letters, cell), fill="black", font=letters)
            table.paste(to_pil_image(picture), (x, y + head))
        y += head + max(picture.shape[1] for _, picture in row) + pad
    return pil_to_tensor(table)


def save(picture: Tensor, path: str | Path) -> Path:
    """Write a PNG file; a reader sees the old file or the new one, never half of it.

    Args:
        picture: (3, H, W) uint8, RGB.
        path: ends in .png; missing folders are made.

    Returns:
        The path.

    Raises:
        ValueError: not a picture, or another ending.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} does not end in .png, the only format that pictures are written in")
    file = to_pil_image(checked_picture(picture, "picture"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        file.save(part, format="PNG", compress_level=3)  # 6, the default, takes twice the time for a tenth less
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _check_instances(
    count: int, size: tuple[int, int], masks: Tensor, labels: Tensor, class_names: Sequence[str] | None,
    scores: Tensor | None, boxes: Tensor | None,
) -> None:  # fmt: skip
    if masks.dtype != torch.bool:
        raise ValueError(f"masks are {masks.dtype}: bool is needed, threshold them first")
    if tuple(masks.shape[1:]) != size:
        raise ValueError(f"masks are {tuple(masks.shape[1:])}, the image is {size}: give both at the same size")
    for name, values in (("labels", labels), ("scores", scores), ("boxes", boxes)):
        if values is not None and len(values) != count:
            raise ValueError(f"{len(values)} {name} for {count} masks")
    if class_names is not None and count:
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < len(class_names):
                raise ValueError(f"label {label} has no name: there are {len(class_names)} class names")


def _checked_bases(bases: Tensor, boundary: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if bases.ndim != 3 or len(bases) == 0:
        raise ValueError(f"bases are {tuple(bases.shape)}: (K, h, w) with K >= 1 is needed")
    if boundary is not None and boundary.shape != bases.shape[1:]:
        raise ValueError(f"the boundary is {tuple(boundary.shape)}, the bases are {tuple(bases.shape[1:])}")
    bases, boundary = (
        # A picture of a diverged net is wanted as well: what is not finite is drawn as 0.
        None if maps is None else torch.nan_to_num(maps.detach().float().cpu(), nan=0, posinf=0, neginf=0)
        for maps in (bases, boundary)
    )
    return bases, boundary
