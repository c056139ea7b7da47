"""The files that the demo offers: what is shown, in the formats of COCO and LabelMe."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from b2inst.prediction import Prediction


def coco_annotations(shown: Prediction, file_name: str, categories: Mapping[int, str]) -> dict[str, Any]:
    """Describe one image as COCO's annotation files do, so that their tools open it.

    Args:
        shown: instances of the image.
        file_name: of the image.
        categories: names by category id, of all classes of the model.

    Returns:
        `images`, `annotations` and `categories`; annotations have their scores besides.
    """
    height, width = shown.size
    annotations = [
        {"id": number, **record, "area": int(coco_mask.area(record["segmentation"])), "iscrowd": 0}
        for number, record in enumerate(shown.to_coco(image_id=1), 1)
    ]
    return {
        "images": [{"id": 1, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }


def write_files(
    shown: Prediction, file_name: str, categories: Mapping[int, str], scratch: Path
) -> tuple[Path, Path]:  # fmt: skip
    """Write both files into a new folder.

    Args:
        shown, file_name, categories: as in `coco_annotations`.
        scratch: where the folder is made.

    Returns:
        Paths of `<image>_coco.json` and of LabelMe's `<image>.json`.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch))
    stem = Path(file_name).stem
    coco, labelme = folder / f"{stem}_coco.json", folder / f"{stem}.json"
    coco.write_text(json.dumps(coco_annotations(shown, file_name, categories)))
    labelme.write_text(json.dumps(shown.to_labelme(file_name), indent=2))
    return coco, labelme
