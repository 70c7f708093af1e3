"""From a file of weights to a network that restores, and the weights that are installed with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import restormixer_arch
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.models.weights import read_weights
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import is_restormixer, options_from_weights

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


def best_tile(weights: str | Path) -> int | None:
    """The side of the tiles that suits installed weights best. None: as large as possible; so for all others."""
    path = Path(weights)
    return TILES.get(path.stem.removeprefix(PREFIX)) if path.parent == SHIPPED else None


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
        network = RestorMixer(**(options_from_weights(state) if options is None else options))
        network.load_state_dict(state)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:  # parts of a network, or a changed one
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{weights}: no RestorMixer can be built from it ({reason})") from error
    return network.fuse()
