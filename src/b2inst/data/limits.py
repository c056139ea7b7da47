"""How large things in a data set may be, so that no file, however small, takes all memory or time.

Each limit is far from what real sets hold, and below what OpenCV, NumPy and pycocotools bear.
"""

from __future__ import annotations

MAX_SIDE = 2**20
"""Most pixels of a side of an image: OpenCV decodes no more."""

MAX_PIXELS = 178_956_970
"""Most pixels of an image: Pillow takes a file with more for a decompression bomb. As RGB these are 0.5 GB."""

MAX_EXTENT = 10
"""How far polygons may reach from the origin, in longer sides of their image."""

MAX_OUTLINE = 1_000
"""Greatest length of the outlines of an object together, in longer sides of its image."""

MAX_STEPS = 2**21
"""Greatest length of these outlines in pixels: pycocotools holds about 120 bytes for each of them."""

MAX_OBJECTS = 2**16 - 1
"""Most annotations of an image: index maps count them in 16 bits."""

MAX_NAME = 1024
"""Most bytes of a file name in UTF-8; the names of a file are held at the length of the longest."""

MAX_ID = 2**63 - 1
"""The greatest id, and with a minus the least."""
