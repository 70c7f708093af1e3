"""Read network weights from a file, whatever tool of the field wrote it."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from restormixer_arch.errors import UserError, did_you_mean

PARAM_KEYS = ("params_ema", "params", "state_dict")  # where tools of the field put the weights, best first


def read_weights(path: str | Path, param_key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict on the CPU from ``.pth`` or ``.safetensors``.

    Only tensors and plain containers are unpickled, so a file from a stranger cannot run code.

    Args:
        path: the file.
        param_key: entry of a ``.pth`` that holds the weights, such as ``params`` or ``params_ema``. None, or an
            entry that the file does not have, takes the best one of :data:`PARAM_KEYS` that is there, or else the
            file itself.

    Returns:
        Tensors by name, DistributedDataParallel's ``module.`` removed.

    Raises:
        UserError: the file is missing, damaged, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file of weights.{did_you_mean(path.name, near)}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in (param_key, *PARAM_KEYS):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: holds no network weights (a dict of tensors was expected).")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as PyTorch weights ({reason})") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
