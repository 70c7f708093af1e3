"""Conversion of checkpoint contents to tensors and plain values, which load without running pickled code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter)


def to_plain_values(value: Any, at: str = "state") -> Any:
    """Convert a value to tensors, numbers, strings, bytes, None, dicts, lists and tuples, which load with weights_only.

    Args:
        value: value to convert, such as a nested state dict.
        at: location of the value, for the error message.

    Raises:
        TypeError: if a part has another type, including subclasses of the plain types, such as enums.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in PLAIN:
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {to_plain_values(key, at): to_plain_values(part, f"{at}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        kind = list if isinstance(value, list) else tuple
        return kind(to_plain_values(part, f"{at}[{number}]") for number, part in enumerate(value))
    raise TypeError(f"{at} is of {type(value).__name__}, which a checkpoint cannot hold")
