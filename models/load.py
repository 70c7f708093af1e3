"""From a file of weights to a network that restores, and the weights that are installed with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import restormixer_arch
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.models.restore import Restorer
from restormixer_arch.models.tiling import DEFAULT_OVERLAP
from restormixer_arch.models.weights import read_weights
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import is_restormixer

SHIPPED = Path(restormixer_arch.__path__[0]) / "weights"
PREFIX = "restormixer_s_"
DEFAULT_TASK = "derain"
TILES = {"derain": 384}  # sides of tiles that installed weights restore better than whole pictures, see the model card


def shipped_tasks() -> list[str]:
    """The tasks that there are installed weights for, in alphabetical order."""
    return sorted(file.stem.removeprefix(PREFIX) for file in SHIPPED.glob(f"{PREFIX}*.safetensors"))


def shipped_weights(task: str) -> Path:
    """The installed weights of a task.

    Raises:
        UserError: there are none; the tasks that there are weights for are listed.
    """
    path = SHIPPED / f"{PREFIX}{task}.safetensors"
    if path.is_file():
        return path
    tasks = shipped_tasks()
    there = f"installed are: {', '.join(tasks)}" if tasks else "this installation has no weights at all"
    raise UserError(f"--task: no weights for {task!r}; {there}.{did_you_mean(task, tasks)} Name a file by --weights")


def load_restorer(
    weights: str | Path,
    device: torch.device,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    max_memory: int | None = None,
    **settings: Any,
) -> Restorer:
    """The network of a file of weights on a device, and how it is applied.

    Args:
        weights: the file.
        device: see :func:`~restormixer_arch.models.restore.pick_device`.
        tile, overlap, max_memory: see :class:`~restormixer_arch.models.restore.Restorer`. Where none of them is given
            installed weights have the tiles that suit them best.
        settings: the others of that class.

    Raises:
        UserError: weights or settings do not do.
    """
    path = Path(weights)
    if tile is None and overlap is None and max_memory is None and path.parent == SHIPPED:
        tile = TILES.get(path.stem.removeprefix(PREFIX))
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    return Restorer(load_network(path).to(device), tile=tile, overlap=overlap, max_memory=max_memory, **settings)


def load_network(
    weights: str | Path, param_key: str | None = None, options: Mapping[str, Any] | None = None
) -> RestorMixer:
    """The network of a file of weights, ready to restore: in eval mode, on the CPU, BatchNorm folded.

    It has ``upscale`` and ``in_channels``, as :func:`~restormixer_arch.models.restore.restored` wants it.

    Args:
        weights: the file.
        param_key: see :func:`~restormixer_arch.models.weights.read_weights`.
        options: the network's arguments; None: those that the weights tell.

    Raises:
        UserError: the file is missing, damaged, or holds the weights of another network.
    """
    state = read_weights(weights, param_key)
    if not is_restormixer(state):
        raise UserError(f"{weights}: are not the weights of a RestorMixer")
    try:
        network = RestorMixer.from_weights(state, options)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:  # parts of a network, or a changed one
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{weights}: no RestorMixer can be built from it ({reason})") from error
    return network.fuse()
