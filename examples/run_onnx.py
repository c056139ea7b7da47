"""Find instances in a photo with an exported model; needs onnxruntime, numpy and opencv-python, and not b2inst.

python -m b2inst.export ckpt=best.ckpt output=model.onnx
python examples/run_onnx.py model.onnx photo.jpg found.png
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def find(model: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """Boxes (D, 4), scores (D,), labels (D,), class_names and masks (D, H, W) bool of an (H, W, 3) uint8 RGB image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    seen = image
    for step in about["preprocessing"]["resize"]:
        height, width = seen.shape[:2]
        scale = step["factor"] if "factor" in step else step["short"] / min(height, width)
        scale = min(scale, step["max_long"] / max(height, width)) if step["max_long"] else scale
        size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        shrinks = step["antialias"] and (size[0] < width or size[1] < height)
        seen = cv2.resize(seen, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    height, width = seen.shape[:2]
    below, right = (-side % about["preprocessing"]["size_divisor"] for side in (height, width))
    pixels = np.pad(seen, ((0, below), (0, right), (0, 0))).transpose(2, 0, 1)[None]
    inputs = {"images": np.ascontiguousarray(pixels), "sizes": np.array([[height, width]])}
    boxes, scores, labels, masks, _ = session.run(["boxes", "scores", "labels", "masks", "image_index"], inputs)
    good = scores >= about["score_threshold"]
    boxes = boxes[good] * (np.array(image.shape[1::-1] * 2) / (width, height, width, height))
    pasted = np.zeros((len(boxes), *image.shape[:2]), bool)
    for mask, logits, box in zip(pasted, masks[good], boxes, strict=True):
        mask[:] = paste(logits, box, *image.shape[:2])
    names = np.array([about["class_names"][label] for label in labels[good]])
    return {
        "boxes": boxes,
        "scores": scores[good],
        "labels": labels[good],
        "class_names": names,
        "masks": pasted.reshape(-1, *image.shape[:2]),
    }


def paste(logits: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool mask: the probabilities (R, R) of a box, interpolated at the centers of the pixels."""
    (x0, y0, x1, y1), side = box, len(logits)
    x = ((np.arange(width) + 0.5 - x0) / (x1 - x0) * side - 0.5).astype(np.float32)
    y = ((np.arange(height) + 0.5 - y0) / (y1 - y0) * side - 0.5).astype(np.float32)
    probs = 1 / (1 + np.exp(-logits))
    return cv2.remap(probs, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) >= 0.5


if __name__ == "__main__":
    photo = cv2.cvtColor(cv2.imread(sys.argv[2]), cv2.COLOR_BGR2RGB)
    found = find(sys.argv[1], photo)
    for name, score, box, mask in zip(*(found[k] for k in ("class_names", "scores", "boxes", "masks")), strict=True):
        print(f"{name} {score:.2f} {box.round(1).tolist()} {int(mask.sum())} pixels")
        photo[mask] = photo[mask] // 2 + np.random.default_rng(int(mask.sum())).integers(0, 128, 3, np.uint8)
    cv2.imwrite(sys.argv[3], cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
