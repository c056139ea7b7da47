"""Where the configuration tree is, and whether a file can be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

# Marks a folder as ours; an empty folder left behind by an older install is passed over.
_MARKER = "train.yaml"


def config_dir() -> Path:
    """Find the folder of the Hydra configuration.

    A wheel carries it as `b2inst/conf`; in a checkout (editable install or `PYTHONPATH=src`) it is the `conf/`
    at the top.

    Returns:
        Absolute path of the folder that holds `train.yaml`.

    Raises:
        FileNotFoundError: neither place has it.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "conf", package.parents[1] / "conf")
    for folder in candidates:
        if (folder / _MARKER).is_file():
            return folder
    installed, checkout = candidates
    raise FileNotFoundError(
        f"no {_MARKER} in {installed} (an installed b2inst) nor in {checkout} (a checkout); "
        "install b2inst again or run from a complete checkout"
    )


def unwritable(path: Path) -> str | None:
    """Why a file cannot be written, to be asked before hours of work end in that error.

    Args:
        path: of the file; it and folders on the way may be missing.

    Returns:
        The reason, or None if nothing stands against it.
    """
    if path.is_dir():
        return "is a folder, where a file is to be written"
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.TemporaryFile(dir=there):  # what the permissions say is not all: file systems may be read-only
            return None
    except OSError as error:
        return f"nothing can be written in {there} ({error.strerror})"
