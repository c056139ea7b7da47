"""Where the configuration tree is."""

from __future__ import annotations

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
