"""Load networks from weight files, including those of other tools."""

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

# Entries in which common tools store the weights (best first), and the prefixes they add to tensor names.
PARAM_KEYS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "net_g", "net", "generator", "network")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # added by DistributedDataParallel and torch.compile
CLASS_PREFIXES = ("model.", "net_g.", "net.", "generator.", "network.", "netG.", "params.")
THOP_COUNTERS = ("total_ops", "total_params")  # left in a network by thop


def load_network(
    weights: str | Path, param_key: str | None = None, options: Mapping[str, Any] | None = None
) -> RestorMixer:
    """Build the network of a weight file, ready for inference: in eval mode, float32, on the CPU, BatchNorm folded.

    Args:
        weights: a file, a folder, or a repository of the Hugging Face Hub, see :func:`restormixer_arch.hub.locate`.
        param_key: entry of the file that holds the weights, such as ``params``, which must exist. None for the first
            of :data:`PARAM_KEYS` that exists, or else the file itself.
        options: arguments of the network; None to read them from the weights.

    Raises:
        UserError: if the file is missing, is damaged, lacks the entry, or holds the weights of another network.
    """
    path = locate(weights)
    state = read_weights(path, param_key, required=True)
    if not is_restormixer(state):
        raise UserError(f"{weights}: are not the weights of a RestorMixer")
    with explain_unbuildable(weights), torch.device("cpu"):  # independent of torch's default device
        network = RestorMixer.from_weights(state, options or network_options(RestorMixer, path, state))
    if options and (problem := stamp_problem(network, state)):
        raise UserError(f"{weights}: its weights {problem}, as the given options say")
    return network.float().fuse()  # independent of torch's default dtype


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

    Only tensors and plain containers are unpickled, so an untrusted file cannot run code.

    Args:
        path: weight file, or anything that :func:`restormixer_arch.hub.locate` accepts.
        param_key: entry of a ``.pth`` file that holds the weights, such as ``params`` or ``params_ema``. If it is None
            or missing, the first of :data:`PARAM_KEYS` that exists is used, or else the file itself. BasicSR also uses
            ``params`` if the file lacks the entry that ``param_key_g`` of an option file names.
        required: whether a ``param_key`` that is missing in the file is an error.

    Returns:
        Tensors by name, with the stamp of the network's options if the file has one; without thop's counters and the
        prefixes of DistributedDataParallel, torch.compile and, for a RestorMixer, of training classes, such as
        ``model.``.

    Raises:
        UserError: if the file is missing or damaged, holds no weights or weights that are not finite, or lacks a
            required ``param_key``.
    """
    path = locate(path)
    return weights_in(read_file(path), path, param_key, required=required)[0]


def read_file(path: Path) -> object:
    """Return the content of a ``.pth`` or ``.safetensors`` file on the CPU. Raises UserError if it cannot be read."""
    return read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_pickle(path, "PyTorch weights")


def weights_in(
    content: Any, path: Path, param_key: str | None, *, required: bool = False, expected: Collection[str] = ()
) -> tuple[dict[str, Tensor], str | None]:
    """Return the weights, as :func:`read_weights` does, from the content that :func:`read_file` returned for ``path``.

    Args:
        content, path, param_key, required: see these functions.
        expected: names of the network's tensors, if known; prefixes that they have are not removed.

    Returns:
        The weights, and the name of the entry that holds them; None if the file holds only tensors.
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
    state = {str(name): tensor for name, tensor in content.items() if str(name).rpartition(".")[2] not in THOP_COUNTERS}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds values that are not finite (NaN or infinity)")
    return _strip_prefixes(state, expected), param_key if param_key in taken else next(iter(taken), None)


def entries_in(content: Any) -> list[str]:
    """Return the names of the entries that may hold weights in the content that :func:`read_file` returned."""
    if not isinstance(content, dict):
        return []
    return [str(key) for key in content if _is_filled(content, key) and key != STAMP_ENTRY]


def _is_filled(content: dict[Any, Any], key: str | None) -> bool:
    return isinstance(content.get(key), dict) and len(content[key]) > 0


def _strip_prefixes(state: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    prefixes = (*WRAPPER_PREFIXES, *CLASS_PREFIXES)
    foreign = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in expected)]
    wrappers = [prefix for prefix in WRAPPER_PREFIXES * 2 if prefix in foreign]  # either may enclose the other
    state = _remove_prefixes(state, wrappers)
    if is_restormixer(state):
        return state
    for prefix in CLASS_PREFIXES:
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
    """Read a file saved by torch, on the CPU; only tensors and plain containers are unpickled.

    Args:
        path: file to read.
        kind: expected kind of content, for messages.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - damaged bytes make the unpickler raise anything
        raise UserError(f"{path}: cannot be read as {kind} ({_reason(path, error)})") from error


def _reason(path: Path, error: Exception) -> str:
    """Return why torch cannot read a file; torch's own message advises to disable its protection."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<", b"version https://git-lfs")):
        return "it is a web page or a pointer to a file: download the file itself"
    if "Unsupported global" in str(error) or "GLOBAL" in str(error):
        return "it holds Python objects, which are not loaded since they could run code"
    return "it is damaged, or was not saved with torch.save"
