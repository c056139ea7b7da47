"""B2Inst: instance segmentation with a boundary basis and boundary-aware mask scores."""

__version__ = "0.1.0"
