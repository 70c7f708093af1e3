"""Find and load the checkpoint from which a training goes on, on any device."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume

from restormixer_arch.basicsr_adapter.checkpoints import digest, prune, remove_unfinished, saved_states
from restormixer_arch.basicsr_adapter.output import note, warn
from restormixer_arch.errors import UserError, not_found

UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Return the training state to resume from, or None to start afresh.

    With ``auto_resume`` it is the newest whole checkpoint of this experiment, else the one that ``path.resume_state``
    names. As in BasicSR, ``path.pretrain_network_*`` is then set to the weights saved with it. In a job of several
    processes the first one chooses.

    Raises:
        UserError: the checkpoint that was named, or all of the experiment's, are damaged or lack their weights.
    """
    found = _of_first_process(lambda: _choose(opt), opt)
    if found is None:
        return None
    path, weights = found
    state = read_state(path)
    opt["path"]["resume_state"] = str(path)
    for key in ("models", "training_states", "visualization"):  # a new experiment may go on from another's state
        os.makedirs(opt["path"][key], exist_ok=True)
    check_resume(opt, state["iter"])
    opt["path"].update({f"pretrain_{network}": str(place) for network, place in weights.items()})
    return state


def _of_first_process(choose: Any, opt: dict[str, Any]) -> Any:
    if not opt.get("dist"):
        return choose()
    chosen = [choose() if opt["rank"] == 0 else None]
    torch.distributed.broadcast_object_list(chosen, src=0)
    return chosen[0]


def _choose(opt: dict[str, Any]) -> tuple[Path, dict[str, Path]] | None:
    """A run that was killed, or a disk that failed, leaves a damaged newest checkpoint; the one before is as good."""
    candidates = []
    if opt["auto_resume"]:
        remove_unfinished(opt)
        candidates = saved_states(opt["path"]["training_states"])
    if opt["path"].get("resume_state"):
        candidates.append(Path(opt["path"]["resume_state"]))
    if opt["auto_resume"] and not candidates:
        note(f"nothing to resume in {os.path.relpath(opt['path']['training_states'])}, starting afresh")
    for path in candidates:
        try:
            state = read_state(path)
            weights = find_weights(opt, path, state)
        except UserError as error:
            if path is candidates[-1]:
                raise
            warn(f"{error}; trying the one before")
            continue
        if opt["auto_resume"]:
            prune(opt, state["iter"])  # the disk may be full
        return path, weights
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state to the CPU; only tensors and plain containers are unpickled.

    Raises:
        UserError: it is damaged or no training state.
    """
    torch.serialization.add_safe_globals([Counter])  # the milestones of BasicSR's MultiStepRestartLR
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as a training state ({reason or type(error).__name__})") from error
    if not isinstance(state, dict) or not {"epoch", "iter", "optimizers", "schedulers"} <= state.keys():
        raise UserError(f"{path}: is no training state of BasicSR")
    return state


def find_weights(opt: dict[str, Any], path: Path, state: dict[str, Any]) -> dict[str, Path]:
    """Return network -> the weights saved with a state, looked for beside it and then in this experiment.

    Raises:
        UserError: they are not there, cannot be read, or are not those that were saved with the state.
    """
    ignored = opt["path"].get("ignore_resume_networks") or []
    found = {}
    for network in (key for key in opt if key.startswith("network_") and key not in ignored):
        name = f"net_{network.removeprefix('network_')}_{state['iter']}.pth"
        own = Path(opt["path"]["models"], name)
        places = [path.absolute().parent.with_name("models") / name, path.absolute().with_name(name), own]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"{path}: the weights saved with it are needed, but {own} {not_found(own)}")
        _check_weights(place, path, state.get("weights", {}).get(name))
        found[network] = place
    return found


def _check_weights(weights: Path, state: Path, expected: str | None) -> None:
    try:
        if expected is None:  # a state of BasicSR itself
            torch.load(weights, map_location="cpu", weights_only=True)
        same = expected is None or digest(weights) == expected
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{weights}: cannot be read as weights ({reason or type(error).__name__})") from error
    if not same:
        raise UserError(f"{weights}: is damaged, or not the one that was saved with {state.name}")
