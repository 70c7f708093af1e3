"""Messages for errors that occur if the network cannot process the images of a dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from restormixer_arch.errors import UserError, exception_text
from restormixer_arch.memory import is_out_of_memory

ABOUT_SHAPES = re.compile(r"size|shape|dimension|dims?\b|channel|length|stride", re.IGNORECASE)
# An error that contains one of these has another cause: a loader process that ended, or a device failure.
OTHER_CAUSES = ("DataLoader worker", "CUDA", "CUBLAS", "cuDNN", "NCCL")


@contextmanager
def explain_shape_error(
    doing: str, images: Mapping[str, Any], unless: Callable[[BaseException], bool] = lambda error: False
) -> Iterator[None]:
    """Turn torch's error about incompatible shapes into a one-line message.

    Args:
        doing: what the network cannot do, such as ``be trained on this batch``.
        images: images that the network received; the message includes the shapes of ``lq`` and ``gt``, (C, H, W).
        unless: function that returns whether an error has another cause. Such errors are re-raised unchanged, as are
            errors of memory, loaders and the device.

    Raises:
        UserError: if a RuntimeError or ValueError about shapes is raised.
    """
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError) as error:
        other = any(cause in str(error) for cause in OTHER_CAUSES) or not ABOUT_SHAPES.search(str(error))
        if other or is_out_of_memory(error) or unless(error):
            raise
        given = {name: images.get(name) for name in ("lq", "gt")}
        sizes = [f"{name} {'x'.join(map(str, x.shape[-3:]))}" for name, x in given.items() if isinstance(x, Tensor)]
        reason = exception_text(error, with_type=False) or type(error).__name__
        raise UserError(f"network_g: cannot {doing} ({', '.join(sizes)}): {reason}") from error
