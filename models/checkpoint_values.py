"""What a checkpoint can hold: tensors and plain values, which load without unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, bytes, type(None), Tensor, nn.Parameter)


def to_plain_values(value: Any, at: str = "state") -> Any:
    """Return the same made of tensors, numbers, strings, None, dicts, lists and tuples, which load with weights_only.

    Raises:
        TypeError: a part is something else, also if its class is derived from one of these, as that of an enum is.
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
