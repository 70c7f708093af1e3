"""What to say where the network of the option file cannot take the images of the datasets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from restormixer_arch.errors import UserError
from restormixer_arch.memory import is_out_of_memory

ABOUT_SHAPES = re.compile(r"size|shape|dimension|dims?\b|channel|length|stride", re.IGNORECASE)
# In a RuntimeError of torch that has another cause all the same: an ended loader, or a failure of the device.
OTHER_CAUSES = ("DataLoader worker", "CUDA", "CUBLAS", "cuDNN", "NCCL")


@contextmanager
def explain_shape_error(
    doing: str, images: Mapping[str, Any], unless: Callable[[BaseException], bool] = lambda error: False
) -> Iterator[None]:
    """Turn torch's error about shapes that do not go together into one line.

    Args:
        doing: what the network cannot do, such as ``be trained on this batch``.
        images: what it was given; the sizes of ``lq`` and ``gt``, (..., H, W), are shown.
        unless: errors of another cause, which are left as they are, as those of memory, of loaders and of the device.

    Raises:
        UserError: a RuntimeError that speaks of shapes was raised.
    """
    try:
        yield
    except RuntimeError as error:
        other = any(cause in str(error) for cause in OTHER_CAUSES) or not ABOUT_SHAPES.search(str(error))
        if other or is_out_of_memory(error) or unless(error):
            raise
        given = {name: images.get(name) for name in ("lq", "gt")}
        sizes = [f"{name} {x.shape[-2]}x{x.shape[-1]}" for name, x in given.items() if isinstance(x, Tensor)]
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"network_g: cannot {doing} ({', '.join(sizes)}): {reason}") from error
