"""The entries of AdelaiDet's BlendMask R-50, from their folded list."""

from __future__ import annotations

import re
from pathlib import Path


def expected_entries() -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every entry by its key; a line is `count  prefix.{name,name}  (shape) (shape)`."""
    entries = {}
    for line in Path(__file__).with_name("blendmask_r50_keys.txt").read_text().splitlines():
        count, folded, shapes = line.split("  ")
        prefix, _, names = folded.removesuffix("}").partition("{")
        keys = [prefix + name for name in names.split(",")]
        sizes = [tuple(int(n) for n in re.findall(r"\d+", shape)) for shape in re.findall(r"\([\d,]*\)", shapes)]
        sizes = sizes if len(sizes) == len(keys) else [sizes[0]] * len(keys)
        for key, size in zip(keys, sizes, strict=True):
            counter = key.endswith("num_batches_tracked")
            entries[key] = ((), "int64") if counter else (size, "float32")
        assert len(keys) == int(count), line
    return entries
