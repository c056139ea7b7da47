"""B2Inst: instance segmentation with a boundary basis and boundary-aware mask scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from b2inst.prediction import Prediction
    from b2inst.predictor import B2Inst

__version__ = "0.1.0"
__all__ = ["B2Inst", "Prediction"]

_HOMES = {"B2Inst": "b2inst.predictor", "Prediction": "b2inst.prediction"}


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch when it is first asked for: `import b2inst` alone stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'b2inst' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
