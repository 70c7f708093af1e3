"""Load networks from weight files, those of other tools included."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.hub import locate, network_options, read_safetensors
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import STAMP_ENTRY, is_restormixer, stamp_problem

# Where common tools store the weights (best first), and the prefixes they add to tensor names.
PARAM_KEYS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net_g", "net", "generator", "network")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
OWNERS = ("model.", "net_g.", "net.", "generator.", "network.", "netG.", "params.")
COUNTERS = ("total_ops", "total_params")  # which thop leaves in a network


def load_network(
    weights: str | Path, param_key: str | None = None, options: Mapping[str, Any] | None = None
) -> RestorMixer:
    """Build the network of a file of weights, ready to restore: in eval mode, float32, on the CPU, BatchNorm folded.

    Args:
        weights: a file, a folder, or a repository of the Hugging Face Hub, see :func:`restormixer_arch.hub.locate`.
        param_key: entry of the file that holds the weights, such as ``params``, which it must have. None for the first
            of :data:`PARAM_KEYS` that it has, or else the file itself.
        options: the network's arguments; None to read them from the weights.

    Raises:
        UserError: the file is missing, damaged, lacks the entry, or holds the weights of another network.
    """
    path = locate(weights)
    state = read_weights(path, param_key, required=True)
    if not is_restormixer(state):
        raise UserError(f"{weights}: are not the weights of a RestorMixer")
    with explain_unbuildable(weights):
        network = RestorMixer.from_weights(state, options or network_options(RestorMixer, path, state))
    if options and (problem := stamp_problem(network, state)):
        raise UserError(f"{weights}: its weights {problem}, as the given options say")
    return network.float().fuse()  # whatever torch's default number type is


@contextmanager
def explain_unbuildable(weights: str | Path, advice: str = "") -> Iterator[None]:
    """Raise UserError if weights are incomplete or modified, so no RestorMixer can be built from them."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{weights}: no RestorMixer can be built from it ({reason}){advice}") from error


def read_weights(path: str | Path, param_key: str | None = None, *, required: bool = False) -> dict[str, Tensor]:
    """Read a state dict on the CPU from ``.pth`` or ``.safetensors``.

    Only tensors and plain containers are unpickled, so a file from a stranger cannot run code.

    Args:
        path: the file, or what :func:`restormixer_arch.hub.locate` takes.
        param_key: entry of a ``.pth`` that holds the weights, such as ``params`` or ``params_ema``. If it is None or
            not in the file, the first of :data:`PARAM_KEYS` that is there is taken, or else the file itself. BasicSR,
            too, takes ``params`` where the file lacks the entry that ``param_key_g`` of an option file names.
        required: a ``param_key`` that is not in the file is a mistake.

    Returns:
        Tensors by name, with the stamp of the network's options if the file has one; without thop's counters and the
        prefixes of DistributedDataParallel, torch.compile and, around a RestorMixer, a training's class such as
        ``model.``.

    Raises:
        UserError: the file is missing, damaged, or holds no weights, or some that are not finite; or ``param_key`` is
            required and missing.
    """
    path = locate(path)
    return weights_in(read_file(path), path, param_key, required=required)[0]


def read_file(path: Path) -> object:
    """Return what a ``.pth`` or ``.safetensors`` holds, on the CPU. Raises UserError if it cannot be read."""
    return read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path, "PyTorch weights")


def weights_in(
    content: Any, path: Path, param_key: str | None, *, required: bool = False, expected: Collection[str] = ()
) -> tuple[dict[str, Tensor], str | None]:
    """Return the weights of :func:`read_weights` out of what :func:`read_file` has returned for ``path``.

    Args:
        content, path, param_key, required: see there.
        expected: names of the network's tensors, where it is known: a prefix that they have is the network's own.

    Returns:
        The weights, and the name of the entry that they are; None where the file holds nothing but tensors.
    """
    stamp = content.get(STAMP_ENTRY) if isinstance(content, dict) else None
    entries, taken = entries_in(content), []
    while inner := [key for key in (param_key, *PARAM_KEYS) if isinstance(content, dict) and _is_filled(content, key)]:
        content = content[inner[0]]
        taken.append(inner[0])
    if required and param_key is not None and param_key not in taken:
        there = f"expected one of {', '.join(entries)}" if entries else "it has no entries, only weights"
        raise UserError(f"{path}: has no entry {param_key!r}; {there}.{did_you_mean(param_key, entries)}")
    if isinstance(content, dict) and isinstance(stamp, dict):
        content = {**content, **stamp}
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path}: holds no network weights (a dict of tensors was expected).")
    state = {str(name): tensor for name, tensor in content.items() if str(name).rpartition(".")[2] not in COUNTERS}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds values that are not finite (NaN or infinity)")
    return _without_prefixes(state, expected), param_key if param_key in taken else next(iter(taken), None)


def entries_in(content: Any) -> list[str]:
    """Return the names of the entries that may hold weights, of what :func:`read_file` has returned."""
    if not isinstance(content, dict):
        return []
    return [str(key) for key in content if _is_filled(content, key) and key != STAMP_ENTRY]


def _is_filled(content: dict[Any, Any], key: str | None) -> bool:
    return isinstance(content.get(key), dict) and len(content[key]) > 0


def _without_prefixes(state: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    foreign = [prefix for prefix in (*WRAPPERS, *OWNERS) if not any(name.startswith(prefix) for name in expected)]
    wrappers = [prefix for prefix in WRAPPERS * 2 if prefix in foreign]  # either may be inside of the other
    state = _remove_prefixes(state, wrappers)
    if is_restormixer(state):
        return state
    for prefix in OWNERS:
        inner = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
        inner = _remove_prefixes(inner, [prefix, *wrappers])
        if prefix in foreign and is_restormixer(inner):
            return inner
    return state


def _remove_prefixes(state: dict[str, Tensor], prefixes: Iterable[str]) -> dict[str, Tensor]:
    for prefix in prefixes:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_pickle(path: Path, kind: str) -> object:
    """Read what torch has saved, on the CPU; only tensors and plain containers are unpickled.

    Args:
        path: the file.
        kind: what was expected, for messages.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged bytes make the unpickler raise anything
        raise UserError(f"{path}: cannot be read as {kind} ({_reason(path, error)})") from error


def _reason(path: Path, error: Exception) -> str:
    """Why torch cannot read a file. Its own text advises to switch its protection off."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<", b"version https://git-lfs")):
        return "it is a web page or a pointer to a file: download the file itself"
    if "Unsupported global" in str(error) or "GLOBAL" in str(error):
        return "it holds Python objects, which are not loaded since they could run code"
    return "it is damaged, or was not saved with torch.save"
