"""Full precision for sums and filters, also inside a mixed-precision region."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """Cast everything but float64 to float32.

    Half precision is too coarse for sums over maps: fp16 overflows above 65,504 pixels, that is a 256 x 256 map of
    ones. float64 stays what it is, so that `torch.autograd.gradcheck` can be used.

    Args:
        values: tensor of any shape and dtype.

    Returns:
        The same values as float32, or as float64 where float64 was given.

    Example:
        >>> full_precision(torch.ones(2, dtype=torch.float16)).dtype, full_precision(torch.ones(2).double()).dtype
        (torch.float32, torch.float64)
    """
    return values if values.dtype == torch.float64 else values.float()


def without_autocast(values: Tensor) -> torch.autocast:
    """Context in which operations on the device of `values` keep the precision of their inputs.

    Example:
        >>> x = torch.ones(1, 1)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(x):
        ...     (x @ x).dtype
        torch.float32
    """
    return torch.autocast(values.device.type, enabled=False)
