"""Make a small fixture of a large one: `python scripts/make_parity_fixture.py FROM_PREFIX TO_PREFIX`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from parity.fixture import shrink


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="prefix of the large fixture's .npz and .json")
    parser.add_argument("target", type=Path, help="prefix of the small one")
    args = parser.parse_args()
    with np.load(f"{args.source}.npz") as arrays:
        np.savez_compressed(f"{args.target}.npz", **shrink(dict(arrays)))
    shutil.copyfile(f"{args.source}.json", f"{args.target}.json")


if __name__ == "__main__":
    main()
