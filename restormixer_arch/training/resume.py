"""Resume a training run: find the newest complete checkpoint, and load it into the model, on any device."""

from __future__ import annotations

import inspect
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger, get_time_str

from restormixer_arch.errors import UserError, not_found
from restormixer_arch.inference.weights import read_pickle
from restormixer_arch.models.checkpoint_values import to_plain_values
from restormixer_arch.output import note, shown_path, warn
from restormixer_arch.protocol import KeepsState
from restormixer_arch.training.checkpoint import digest, options_of, prune, remove_unfinished, saved_states
from restormixer_arch.training.reports import LOSSES, VALIDATIONS

SCHEDULED_KEYS = {"lr", "initial_lr", "params"}  # keys of a parameter group that the schedule and the network set
FIXED_OPTIONS = {"amsgrad"}  # options that determine which state an optimizer keeps


def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    """Return the training state to resume from, or None to start from the beginning.

    With ``auto_resume``, it is the newest complete checkpoint of this experiment, or else that of
    ``path.resume_state``. As in BasicSR, ``path.pretrain_network_*`` is then set to the weights saved with it. In a job
    of several processes, the first one chooses.

    Raises:
        UserError: if all of these checkpoints are damaged or lack their weights.
    """
    chosen = [_choose(opt) if opt.get("rank", 0) == 0 else None]
    if opt.get("dist"):
        torch.distributed.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return None
    path, weights = chosen[0]
    state = read_state(path)
    opt["path"]["resume_state"] = str(path)
    if continues_own_run(opt):
        for key in ("models", "training_states", "visualization"):
            os.makedirs(opt["path"][key], exist_ok=True)
    for network, place in weights.items():
        # Use the trained weights whatever key the option file sets; BasicSR itself replaces only params_ema.
        keys = {f"pretrain_{network}": str(place), f"param_key_{network.removeprefix('network_')}": "params"}
        opt["path"].update(keys)
    return state


def continues_own_run(opt: dict[str, Any], state: Path | None = None) -> bool:
    """Return whether the state to resume from is one of this experiment, whose files this run then continues.

    Args:
        opt: options.
        state: path of the state, or None for ``path.resume_state``.
    """
    state = state or Path(opt["path"]["resume_state"])
    return Path(opt["path"]["training_states"]).resolve() in state.resolve().parents


def archive_newer(opt: dict[str, Any], iteration: int) -> None:
    """Keep files newer than the state to resume from in a separate folder, since this run writes the same names.

    Checkpoints and the latest weights are moved; the best weights and the tables of losses and metrics, which this run
    continues, are copied.

    Args:
        opt: options, with the path of the state.
        iteration: iteration of the state.
    """
    states, models = Path(opt["path"]["training_states"]), Path(opt["path"]["models"])
    state = Path(opt["path"]["resume_state"])
    newer = [path for path in saved_states(states) if int(path.stem) > iteration]
    since = (newer[-1] if newer else state).stat().st_mtime
    latest = [path for path in models.glob("net_*_latest.pth") if path.stat().st_mtime >= since]
    if not newer and (opt["auto_resume"] or not latest):
        return
    aside = states / f"newer_{get_time_str()}"
    aside.mkdir()
    for path in (*models.glob("net_*_best_*.pth"), models.parent / LOSSES, models.parent / VALIDATIONS):
        if path.is_file():
            shutil.copy2(path, aside / path.name)
    weights = [path for one in newer for path in models.glob(f"net_*_{one.stem}.pth") if "_best_" not in path.name]
    for path in (*latest, *weights, *newer):
        path.rename(aside / path.name)
    note(f"checkpoints newer than iteration {iteration} were moved to {shown_path(aside)}")


def _choose(opt: dict[str, Any]) -> tuple[Path, dict[str, Path]] | None:
    """Return the path of a training state and its weights by network, or None.

    If a killed run or a disk failure has damaged the newest checkpoint, the previous one is used.
    """
    candidates = []
    if opt["auto_resume"]:
        remove_unfinished(opt)
        candidates = saved_states(opt["path"]["training_states"])
    if opt["path"].get("resume_state"):
        candidates.append(Path(opt["path"]["resume_state"]))
    if opt["auto_resume"] and not candidates:
        note(f"nothing to resume in {shown_path(opt['path']['training_states'])}, starting from the beginning")
    for path in candidates:
        try:
            state = read_state(path)
            weights = find_weights(opt, path, state)
        except UserError as error:
            if path is candidates[-1]:
                raise
            warn(f"{error}; trying the previous checkpoint")
            continue
        if opt["auto_resume"]:
            prune(opt, state["iter"])  # frees space, since the disk may be full
        return path, weights
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Load a training state to the CPU; only tensors and plain containers are unpickled.

    Raises:
        UserError: if the file is damaged or is not a training state.
    """
    torch.serialization.add_safe_globals([Counter])  # the milestones of BasicSR's MultiStepRestartLR
    state = read_pickle(path, "a training state")
    if not isinstance(state, dict) or not {"epoch", "iter", "optimizers", "schedulers"} <= state.keys():
        raise UserError(f"{path}: is not a training state of BasicSR")
    return state


def find_weights(opt: dict[str, Any], path: Path, state: dict[str, Any]) -> dict[str, Path]:
    """Return network -> file of the weights saved with a state, searched next to it.

    Those of a state of this experiment are also searched among its weights.

    Raises:
        UserError: if they are missing, cannot be read, or are not those that were saved with the state.
    """
    ignored = opt["path"].get("ignore_resume_networks") or []
    found = {}
    for network in (key for key in opt if key.startswith("network_") and key not in ignored):
        name = f"net_{network.removeprefix('network_')}_{state['iter']}.pth"
        beside = path.absolute().parent.with_name("models") / name
        own = Path(opt["path"]["models"], name) if continues_own_run(opt, path) else beside
        place = next((place for place in (beside, path.absolute().with_name(name), own) if place.exists()), None)
        if place is None:
            raise UserError(f"{path}: the weights saved with it are needed, but {own} {not_found(own)}")
        _check_weights(place, path, state.get("weights", {}).get(name))
        found[network] = place
    return found


def _check_weights(weights: Path, state: Path, expected: str | None) -> None:
    if expected is None:  # a state written by BasicSR itself
        read_pickle(weights, "weights")
        return
    try:
        same = digest(weights) == expected
    except OSError as error:
        raise UserError(f"{weights}: cannot be read as weights ({error.strerror})") from error
    if not same:
        raise UserError(f"{weights}: is damaged, or not the one that was saved with {state.name}")


def resume_training(model: Any, resume_state: dict[str, Any]) -> None:
    """Restore a model's optimizers, schedules, best metrics and extra state.

    The schedule and the optimizer options are those of the option file: if they differ from the saved ones, the
    schedule is run again up to the saved iteration, and the change is logged. A model with its own
    ``resume_training()`` restores its optimizers and schedules itself.

    Raises:
        UserError: if the state belongs to other optimizers.
    """
    if type(model).resume_training is BaseModel.resume_training:
        _resume_optimizers(model, resume_state)
    else:
        model.resume_training(resume_state)
    if resume_state.get("best"):
        model.best_metric_results = resume_state["best"]
    if resume_state.get("extra") and isinstance(model, KeepsState):
        model.load_extra_state(resume_state["extra"])


def _resume_optimizers(model: Any, resume_state: dict[str, Any]) -> None:
    _check_optimizers(model, resume_state)
    fresh_groups = [options_of(optimizer) for optimizer in model.optimizers]
    saved = resume_state["optimizers"]
    old_groups = resume_state.get("optimizer_options") or [state["param_groups"] for state in saved]
    edits = []
    for optimizer, state, groups, olds in zip(model.optimizers, saved, fresh_groups, old_groups, strict=True):
        optimizer.load_state_dict(state)
        for group, fresh, old in zip(optimizer.param_groups, groups, olds, strict=True):
            edits += _set_options(optimizer, group, fresh, old)
        _move_steps(optimizer)
    changed = _schedule_edits(model, resume_state, fresh_groups)
    if changed:
        _run_schedule_again(model, resume_state["iter"], fresh_groups)
    else:
        for scheduler, saved in zip(model.schedulers, resume_state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
    for edit in dict.fromkeys(edits + changed):
        get_root_logger().warning(f"Resuming with a changed option file: {edit}")


def _move_steps(optimizer: torch.optim.Optimizer) -> None:
    """Move step counts to the device of fused parameters; load_state_dict does so only if they were saved as fused."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") or group.get("capturable") else ():
            state = optimizer.state.get(parameter, {})  # a parameter without a gradient has none
            if state.get("step") is not None:
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).to(parameter.device)


def _check_optimizers(model: Any, state: dict[str, Any]) -> None:
    types = [type(optimizer).__name__ for optimizer in model.optimizers]
    saved_types = state.get("optimizer_types", types)
    if len(types) != len(state["optimizers"]):
        raise UserError(
            f"model_type: the training to resume has {_counted(state['optimizers'], saved_types)}, this model "
            f"{_counted(types, types)}: they are of different models"
        )
    if types != saved_types:
        raise UserError(
            f"train.optim_*.type: the training to resume was made by {', '.join(saved_types)}, "
            f"{', '.join(types)} cannot resume from that"
        )
    for optimizer, saved in zip(model.optimizers, state["optimizers"], strict=True):
        sizes = [
            [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved["param_groups"])
        ]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"network_*: the training to resume has parameter groups of {sizes[1]} tensors, this one of {sizes[0]}"
            )
        for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            for key in FIXED_OPTIONS & group.keys() & old.keys():
                if group[key] != old[key]:
                    raise UserError(f"train.optim_*.{key}: cannot change from {old[key]} to {group[key]} when resuming")


def _counted(optimizers: list[Any], types: list[str]) -> str:
    """Return text with the number of optimizers, and their types if known."""
    named = f" ({', '.join(types)})" if len(types) == len(optimizers) else ""
    return f"{len(optimizers)} optimizer{'s' * (len(optimizers) != 1)}{named}"


def _set_options(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], fresh: dict[str, Any], old: dict[str, Any]
) -> list[str]:
    """Set the options of a group that differ from the old ones to those of the option file; return the changes.

    Others are kept: some optimizers change an option while training, and other entries of a group are also state.
    """
    edits, arguments = [], inspect.signature(type(optimizer)).parameters
    # adamw_* are Muon's options for parameters that are not matrices
    options = {key for key in fresh if key in arguments or f"adamw_{key}" in arguments}
    for key in options - SCHEDULED_KEYS:
        if key not in old:
            group[key] = fresh[key]
        elif to_plain_values(old[key]) != to_plain_values(fresh[key]):
            edits.append(f"train.optim_*.{key}: {old[key]} -> {fresh[key]}")
            group[key] = fresh[key]
    return sorted(edits)


def _schedule_edits(model: Any, state: dict[str, Any], groups: list[list[dict[str, Any]]]) -> list[str]:
    """Return lines that describe how the schedule differs from the saved one."""
    edits = []
    for optimizer, saved_groups in zip(model.optimizers, groups, strict=True):
        for group, fresh in zip(optimizer.param_groups, saved_groups, strict=True):
            if group.get("initial_lr") != fresh.get("initial_lr"):
                edits.append(f"train.optim_*.lr: {group.get('initial_lr')} -> {fresh.get('initial_lr')}")
    if len(model.schedulers) != len(state["schedulers"]):
        edits.append(f"train.scheduler: {len(state['schedulers'])} -> {len(model.schedulers)} schedules")
    for scheduler, saved in zip(model.schedulers, state["schedulers"], strict=False):
        now, old = _schedule(scheduler.state_dict()), _schedule(saved)
        for key in now.keys() | old.keys():
            if now.get(key) != old.get(key):
                edits.append(f"train.scheduler.{key}: {old.get(key)} -> {now.get(key)}")
    warmup = model.opt["train"].get("warmup_iter", -1)
    if state.get("warmup_iter", warmup) != warmup:
        edits.append(f"train.warmup_iter: {state['warmup_iter']} -> {warmup}")
    return list(dict.fromkeys(sorted(edits)))


def _schedule(state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a scheduler's state that comes from the option file, with comparable sequences."""
    derived = {"last_epoch", "base_lrs", "cumulative_period", "verbose"}
    kept = {key: value for key, value in state.items() if not key.startswith("_") and key not in derived}
    return {key: list(value) if isinstance(value, tuple) else to_plain_values(value) for key, value in kept.items()}


def _run_schedule_again(model: Any, iteration: int, groups: list[list[dict[str, Any]]]) -> None:
    for optimizer, fresh_groups in zip(model.optimizers, groups, strict=True):
        for group, fresh in zip(optimizer.param_groups, fresh_groups, strict=True):
            group.update({key: fresh[key] for key in ("lr", "initial_lr") if key in fresh})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for number in range(1, iteration + 1):
            update_learning_rate(model, number)


def update_learning_rate(model: Any, iteration: int) -> None:
    """Set the learning rates of an iteration (from 1): those of the schedule, or of the warm-up until ``warmup_iter``.

    MultiStepLR multiplies the previous rate, which must be that of the schedule. In BasicSR, it is that of the warm-up,
    so the rate is too low for the rest of the training run, and milestones within the warm-up are lost.
    """
    for scheduler in model.schedulers:
        for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
    model.update_learning_rate(iteration, warmup_iter=model.opt["train"].get("warmup_iter", -1))
