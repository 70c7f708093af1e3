"""From a file of weights to a network that restores, and the weights that are installed with the package."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import restormixer_arch
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.models.weights import read_weights
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import is_restormixer, options_from_weights

SHIPPED = Path(restormixer_arch.__path__[0]) / "weights"
PREFIX = "restormixer_s_"
DEFAULT_TASK = "derain"


def shipped_weights(task: str) -> Path:
    """The installed weights of a task.

    Raises:
        UserError: there are none; the tasks that there are weights for are listed.
    """
    path = SHIPPED / f"{PREFIX}{task}.safetensors"
    if path.is_file():
        return path
    tasks = sorted(file.stem.removeprefix(PREFIX) for file in SHIPPED.glob(f"{PREFIX}*.safetensors"))
    there = f"installed are: {', '.join(tasks)}" if tasks else "this installation has no weights at all"
    raise UserError(f"--task: no weights for {task!r}; {there}.{did_you_mean(task, tasks)} Name a file by --weights")


def load_network(weights: str | Path) -> nn.Module:
    """The network of a file of weights, ready to restore: in eval mode, on the CPU, BatchNorm folded.

    It has ``upscale`` and ``in_channels``, as :func:`~restormixer_arch.models.restore.restored` wants it.

    Raises:
        UserError: the file is missing, damaged, or holds the weights of another network.
    """
    state = read_weights(weights)
    if not is_restormixer(state):
        raise UserError(f"{weights}: are not the weights of a RestorMixer")
    try:
        network = RestorMixer(**options_from_weights(state))
        network.load_state_dict(state)
    except (ValueError, KeyError, IndexError, RuntimeError) as error:  # parts of a network, or a changed one
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{weights}: no RestorMixer can be built from it ({reason})") from error
    return network.fuse()
