"""Save checkpoints atomically: each file is written next to its final path, synced to disk and renamed.

A checkpoint is ``models/net_*_<iteration>.pth`` and then ``training_states/<iteration>.state``. The state is written
last and contains the digests of the weights, so if it is complete, so is the checkpoint. It also contains the states
of all random generators of the processes.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils.dist_util import get_dist_info

from restormixer_arch.errors import UserError
from restormixer_arch.models.checkpoint_values import to_plain_values
from restormixer_arch.output import rename
from restormixer_arch.protocol import KeepsState
from restormixer_arch.restormixer_arch import RestorMixer
from restormixer_arch.weight_options import STAMP_ENTRY, stamp_of

TEMPORARY_SUFFIX = ".tmp"
WEIGHTS = re.compile(r"net_\w+?_(\d+)\.pth")


def saved_states(folder: str | Path) -> list[Path]:
    """Return the ``<iteration>.state`` files of a folder, the newest first."""
    states = [path for path in Path(folder).glob("*.state") if path.stem.isdecimal()]
    return sorted(states, key=lambda path: int(path.stem), reverse=True)


def write(content: Any, path: Path) -> str:
    """Write an object with ``torch.save``, atomically, and return the SHA-256 of the file.

    Raises:
        OSError: if the file cannot be written; an existing file at ``path`` is kept.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Sync a rename to disk; not every system can open a folder, and not every file system can sync one."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def write_checkpoint_file(content: Any, path: Path, opt: dict[str, Any]) -> str:
    """Write a part of a checkpoint and return its digest.

    Raises:
        UserError: if it cannot be written; the message states which checkpoint remains.
    """
    try:
        return write(content, path)
    except OSError as error:
        states = saved_states(opt["path"]["training_states"])
        left = f"{states[0]} and its weights are intact" if states else "there is no earlier one"
        reason = error.strerror or type(error).__name__
        raise UserError(f"{path}: the checkpoint cannot be saved ({reason}); {left}") from error


def replace_saving(model: Any, run_state: Callable[[], dict[str, Any]]) -> None:
    """Replace ``save_network`` and ``save_training_state`` of a BasicSR model with those of CheckpointWriter.

    Args:
        model, run_state: see :class:`CheckpointWriter`.
    """
    writer = CheckpointWriter(model, run_state)
    model.save_network, model.save_training_state = writer.save_network, writer.save_training_state


class CheckpointWriter:
    """A writer that saves the weights and training states of a model atomically.

    Args:
        model: any BasicSR model; its ``extra_state()`` is also saved if it has one, see
            :class:`restormixer_arch.protocol.KeepsState`.
        run_state: function that returns the entries that the training loop adds to a state.
    """

    def __init__(self, model: Any, run_state: Callable[[], dict[str, Any]]) -> None:
        self.model, self.run_state = model, run_state
        self._digests: dict[str, str] = {}  # digests of the weights saved since the last state
        self._options = [options_of(optimizer) for optimizer in model.optimizers]  # before a step changes them

    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = "params") -> None:
        """Save weights.

        Args:
            net: a network, or a list of networks for one file.
            net_label: start of the file name, such as ``net_g``.
            current_iter: end of the file name; -1 means ``latest``.
            param_key: key of each network in the file.

        Raises:
            UserError: if the file cannot be written.
        """
        if get_dist_info()[0] != 0:
            return
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        bare = [self.model.get_bare_model(one) for one in nets]
        weights = {key: _weights(one) for one, key in zip(bare, keys, strict=True)}
        if isinstance(bare[0], RestorMixer):
            weights[STAMP_ENTRY] = stamp_of(bare[0])
        name = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
        path = Path(self.model.opt["path"]["models"], name)
        self._digests[name] = write_checkpoint_file(weights, path, self.model.opt)

    def save_training_state(self, epoch: int, current_iter: int | str) -> None:
        """Save the training state; do nothing if ``current_iter`` is not an iteration.

        Besides BasicSR's entries (epoch, iteration, optimizers, schedulers), it contains the random generators of every
        process, the best metrics, the digests of the weights, and what the training loop and the model add. All
        processes of a job must call this method.

        Raises:
            UserError: if the state cannot be written.
            TypeError: if ``extra_state()`` contains anything but tensors and plain values.
        """
        if not isinstance(current_iter, int) or current_iter < 0:
            return
        generators = _of_all_processes(generator_states())
        if get_dist_info()[0] != 0:
            return
        model = self.model
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [optimizer.state_dict() for optimizer in model.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in model.schedulers],
            "optimizer_options": self._options,
            "optimizer_types": [type(optimizer).__name__ for optimizer in model.optimizers],
            "warmup_iter": model.opt["train"].get("warmup_iter", -1),
            "generators": generators,
            "best": getattr(model, "best_metric_results", {}),
            "weights": {n: digest for n, digest in self._digests.items() if n.endswith(f"_{current_iter}.pth")},
            "extra": model.extra_state() if isinstance(model, KeepsState) else {},
            **self.run_state(),
        }
        write_checkpoint_file(
            to_plain_values(state), Path(model.opt["path"]["training_states"], f"{current_iter}.state"), model.opt
        )
        self._digests = {}
        prune(model.opt, current_iter)


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of each parameter group of an optimizer."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _weights(net: torch.nn.Module) -> OrderedDict[str, torch.Tensor]:
    """Return the weights of a bare network on the CPU, under the names they have without torch.compile."""
    state = net.state_dict()
    weights = OrderedDict((name.replace("_orig_mod.", ""), value.detach().cpu()) for name, value in state.items())
    if hasattr(state, "_metadata"):
        weights._metadata = state._metadata
    return weights


def _of_all_processes(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def prune(opt: dict[str, Any], iteration: int) -> None:
    """Remove all but the newest ``logger.keep_last`` checkpoints up to ``iteration``; without that option, none.

    The best and the latest weights have names without an iteration and are kept.
    """
    keep = opt.get("logger", {}).get("keep_last")
    if not keep:
        return
    states = [path for path in saved_states(opt["path"]["training_states"]) if int(path.stem) <= iteration]
    if not states:
        return
    kept = {int(path.stem) for path in states[:keep]}
    for path in states[keep:]:
        path.unlink(missing_ok=True)
    for path in Path(opt["path"]["models"]).glob("net_*.pth"):
        found = None if "_best_" in path.name else WEIGHTS.fullmatch(path.name)  # best_val_psnr_4 has no iteration
        if found and int(found[1]) <= iteration and int(found[1]) not in kept:
            path.unlink(missing_ok=True)


def remove_unfinished(opt: dict[str, Any]) -> None:
    """Remove the unfinished files of a killed run."""
    for key in ("models", "training_states"):
        for path in Path(opt["path"][key]).glob(f"*{TEMPORARY_SUFFIX}"):
            if path.name.removesuffix(TEMPORARY_SUFFIX).endswith((".pth", ".state")):
                path.unlink(missing_ok=True)


def generator_states() -> dict[str, Any]:
    """Return the states of the random generators of Python, NumPy and torch as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    """Restore the states from :func:`generator_states`; skip that of a device that is not available."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def keep_generator_states() -> Iterator[None]:
    """Restore the states of all random generators on exit."""
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)
