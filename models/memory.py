"""Gradient checkpointing for any network, and advice when memory runs out during training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from restormixer_arch.errors import UserError
from restormixer_arch.memory import is_out_of_memory
from restormixer_arch.protocol import Checkpointable


def set_checkpointing(network: nn.Module) -> int:
    """Store only the inputs of a network's blocks for the backward pass, which then recomputes their activations.

    If the network, or a module inside it, has a method ``set_checkpointing``, this method is called. Otherwise the
    outermost repeated blocks are checkpointed: members of an ``nn.ModuleList`` or ``nn.Sequential`` with two or more
    members of the same class, apart from torch's own layers. Blocks with BatchNorm are skipped, since recomputing them
    would update the running statistics twice per batch.

    Returns:
        Number of checkpointed blocks.

    Raises:
        UserError: if the network has no such block.
    """
    own = next((part for part in network.modules() if isinstance(part, Checkpointable)), None)
    if own is not None:
        count = own.set_checkpointing(True)
    else:
        blocks = list(_repeated_blocks(network))
        for block in blocks:
            block.forward = partial(_checkpointed, block.forward)
        count = len(blocks)
    if not count:
        raise UserError(f"train.checkpointing: {type(network).__name__} has no blocks that it can be applied to")
    return count


def _repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        repeated: set[type] = set()
        if isinstance(child, nn.ModuleList | nn.Sequential):
            counts = Counter(type(member) for member in child if any(True for _ in member.parameters()))
            repeated = {kind for kind, count in counts.items() if count > 1 and kind.__module__[:9] != "torch.nn."}
        inner = [member for member in child.children() if type(member) in repeated]
        usable = [m for m in inner if not any(isinstance(part, _NormBase) for part in m.modules())]
        if usable:
            yield from usable
        else:
            yield from _repeated_blocks(child)


def _checkpointed(forward: Any, *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


class OutOfMemory(UserError):
    """An error due to lack of memory."""


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error into a one-line message.

    Args:
        what: where it happened, such as ``at iteration 10``.
        advice: recommended changes.

    Raises:
        OutOfMemory: if memory runs out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory {what}: {advice}") from error


def training_advice(opt: dict[str, Any]) -> str:
    """Return a message with the option keys that reduce training memory and their values, most effective first."""
    data, train = opt.get("datasets", {}).get("train", {}), opt["train"]
    lower = [f"datasets.train.{key} (now {data[key]})" for key in ("batch_size_per_gpu", "gt_size") if key in data]
    if train.get("progressive"):
        lower.append("train.progressive.gt_sizes and batch_sizes")
    unused = []
    if not train.get("checkpointing"):
        unused.append("train.checkpointing: true")
    if train.get("amp") in (None, False, "off"):
        unused.append("train.amp: bf16")
    unused.append(f"train.accumulate (now {train.get('accumulate', 1)}) higher, and a batch smaller by the same factor")
    return f"lower {' or '.join(lower) or 'the batch'}, or set {', '.join(unused)}"
