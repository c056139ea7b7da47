"""Annotations and results like those of COCO, made by code."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from b2inst.ops.masks import edges_to_rle, run_edges

HEIGHT, WIDTH, CLASSES = 480, 640, 80


def coco_like(images: int, detections: int = 100, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations of about 7 objects of 3 classes an image, some crowds, and results that hit and miss them.

    Args:
        images: how many.
        detections: per image; a third are shifted objects, a third are elsewhere but of a class of the image.
        seed: of the random numbers.

    Returns:
        The annotations and the results, both in COCO's format.
    """
    rng = np.random.default_rng(seed)
    truth = {
        "info": {},
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH, "file_name": f"{i}.jpg"} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        classes = rng.integers(1, CLASSES + 1, 3)
        objects = [(_outline(rng), int(rng.choice(classes))) for _ in range(int(rng.poisson(7)))]
        for outline, category in objects:
            rle = polygon_rle(outline)
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": category,
                 "segmentation": rle, "bbox": rle_tools.toBbox(rle).tolist(), "area": float(rle_tools.area(rle)),
                 "iscrowd": int(rng.random() < 0.02)}
            )  # fmt: skip
        results += [_detection(rng, image["id"], objects, classes) for _ in range(detections)]
    return truth, results


def polygon_rle(outline: np.ndarray) -> dict[str, Any]:
    """RLE of a polygon, (points, 2) XY in pixels, cut at the image."""
    low = np.floor(outline.min(axis=0)).astype(int).clip(0, [WIDTH - 1, HEIGHT - 1])
    high = np.ceil(outline.max(axis=0)).astype(int).clip(low, [WIDTH - 1, HEIGHT - 1]) + 1
    crop = np.zeros((high - low)[::-1], np.uint8)
    cv2.fillPoly(crop, [np.round(outline - low).astype(np.int32)], 1)
    return edges_to_rle(run_edges(crop.T.astype(bool), low[1], low[0], HEIGHT), HEIGHT, WIDTH)


def _outline(rng: np.random.Generator) -> np.ndarray:
    """A star-shaped polygon of 40 points with a wavy radius."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    waves = sum(rng.uniform(0, 0.3) / k * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5, 8))
    radius = np.exp(rng.uniform(np.log(6), np.log(140)))
    center = rng.uniform([0, 0], [WIDTH, HEIGHT])
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    return center + (radius * (1 + waves))[:, None] * np.stack([np.cos(angle) * stretch, np.sin(angle)], axis=1)


def _detection(rng: np.random.Generator, image_id: int, objects: list, classes: np.ndarray) -> dict[str, Any]:
    draw = rng.random()
    if objects and draw < 1 / 3:
        outline, category = objects[rng.integers(len(objects))]
        size = np.ptp(outline, axis=0).mean()
        outline = outline + rng.normal(0, 0.05 * size, 2) + rng.normal(0, 0.01 * size, outline.shape)
        score = rng.beta(4, 2)
    else:
        outline, score = _outline(rng), rng.beta(1, 4)
        category = int(rng.choice(classes) if draw < 2 / 3 else rng.integers(1, CLASSES + 1))
    rle = polygon_rle(outline)
    # two decimals: ties as half-precision scores have them
    return {"image_id": image_id, "category_id": category, "score": round(float(score), 2), "segmentation": rle,
            "bbox": rle_tools.toBbox(rle).tolist()}  # fmt: skip
