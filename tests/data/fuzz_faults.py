"""A target that does what no reader may; apart from the others, because it is started anew after each fault."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np


def commit(folder: Path, what: str) -> str:
    """Do it."""
    if what == "dies":
        os._exit(7)
    if what == "hangs":
        while True:
            pass
    if what == "grows":
        return "used" if np.ones(3 * 10**7).all() else "refused"  # 240 MB
    if what == "raises":
        raise RecursionError("so deep")
    return "used"
