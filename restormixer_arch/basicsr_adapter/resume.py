"""Find and load the state from which a training goes on, on any device."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import check_resume

from restormixer_arch.basicsr_adapter.locations import missing
from restormixer_arch.basicsr_adapter.output import note, warn
from restormixer_arch.errors import UserError


def saved_states(folder: str | Path) -> list[Path]:
    """Return the ``<iteration>.state`` files of a folder, the newest first."""
    states = [path for path in Path(folder).glob("*.state") if path.stem.isdigit()]
    return sorted(states, key=lambda path: int(path.stem), reverse=True)


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Return the training state to resume from, or None to start afresh.

    With ``auto_resume`` it is the newest readable one of this experiment, else the one that ``path.resume_state``
    names. As in BasicSR, ``path.pretrain_network_*`` is then set to the weights saved with it.

    Raises:
        UserError: the state that was named, or all of the experiment's, are damaged, or the weights are not there.
    """
    candidates = saved_states(opt["path"]["training_states"]) if opt["auto_resume"] else []
    if opt["path"].get("resume_state"):
        candidates.append(Path(opt["path"]["resume_state"]))
    if not candidates:
        if opt["auto_resume"]:
            note(f"nothing to resume in {os.path.relpath(opt['path']['training_states'])}, starting afresh")
        return None
    path, state = _first_readable(candidates)
    opt["path"]["resume_state"] = str(path)
    for key in ("models", "training_states", "visualization"):  # a new experiment may go on from another's state
        os.makedirs(opt["path"][key], exist_ok=True)
    check_resume(opt, state["iter"])
    for key, value in opt["path"].items():
        if key.startswith("pretrain_network") and value is not None and not os.path.exists(value):
            beside = path.parent.with_name("models") / os.path.basename(value)  # another experiment's state
            if not beside.exists():
                raise UserError(f"{path}: the weights saved with it are needed, but {value} {missing(value)}")
            opt["path"][key] = str(beside)
    return state


def _first_readable(candidates: list[Path]) -> tuple[Path, dict[str, Any]]:
    """A run that was killed while saving leaves a damaged newest state; the one before it is as good a start."""
    for path in candidates[:-1]:
        try:
            return path, read_state(path)
        except UserError as error:
            warn(f"{error}; trying the one before")
    return candidates[-1], read_state(candidates[-1])


def read_state(path: Path) -> dict[str, Any]:
    """Read a training state to the CPU; only tensors and plain containers are unpickled.

    Raises:
        UserError: it is damaged or no training state.
    """
    torch.serialization.add_safe_globals([Counter])  # the milestones of BasicSR's MultiStepRestartLR
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: cannot be read as a training state ({reason or type(error).__name__})") from error
    if not isinstance(state, dict) or not {"epoch", "iter", "optimizers", "schedulers"} <= state.keys():
        raise UserError(f"{path}: is no training state of BasicSR")
    return state
