"""All that a training needs besides the weights to go on as if it had never stopped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import get_dist_info

from restormixer_arch.basicsr_adapter.checkpoints import prune, write_or_refuse
from restormixer_arch.basicsr_adapter.randomness import generator_states
from restormixer_arch.errors import UserError

PLAIN = (bool, int, float, str, bytes, type(None), torch.Tensor)
MOVING = {"lr", "initial_lr", "params"}  # of an optimizer's group: what the schedule and the network set
STRUCTURAL = {"amsgrad"}  # they change what an optimizer remembers


def save_training_state(self: Any, epoch: int, current_iter: int | str) -> None:
    """Save the state of a training; it takes the place of the method of BasicSR's BaseModel.

    Besides BasicSR's own (epoch, iteration, optimizers, schedulers) it holds the random generators of every process,
    the best metrics, the digests of the weights, what the training loop adds (``self.run_state()``) and what the
    model adds (``self.extra_state()``). All processes of a job must call it.

    Raises:
        UserError: it cannot be written.
        TypeError: ``extra_state()`` holds something else than tensors and plain values.
    """
    if not isinstance(current_iter, int) or current_iter < 0:
        return
    generators = _of_all_processes(generator_states())
    if get_dist_info()[0] != 0:
        return
    state = {
        "epoch": epoch,
        "iter": current_iter,
        "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
        "optimizer_types": [type(optimizer).__name__ for optimizer in self.optimizers],
        "warmup_iter": self.opt["train"].get("warmup_iter", -1),
        "generators": generators,
        "best": getattr(self, "best_metric_results", {}),
        "weights": {
            name: value
            for name, value in getattr(self, "written_weights", {}).items()
            if name.endswith(f"_{current_iter}.pth")
        },
        "extra": self.extra_state() if hasattr(self, "extra_state") else {},
    }
    if hasattr(self, "run_state"):
        state.update(self.run_state())
    write_or_refuse(plain(state), Path(self.opt["path"]["training_states"], f"{current_iter}.state"), self.opt)
    self.written_weights = {}
    prune(self.opt, current_iter)


def _of_all_processes(value: Any) -> list[Any]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def plain(value: Any, at: str = "state") -> Any:
    """Return the same out of tensors, numbers, strings, None, dicts, lists and tuples, which load with weights_only.

    Raises:
        TypeError: a part is something else.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain(key, at): plain(part, f"{at}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        kind = list if isinstance(value, list) else tuple
        return kind(plain(part, f"{at}[{number}]") for number, part in enumerate(value))
    raise TypeError(f"{at} is of {type(value).__name__}, which a checkpoint cannot hold")


def resume_training(self: Any, resume_state: dict[str, Any]) -> None:
    """Go on from a state; it takes the place of the method of BasicSR's BaseModel.

    The schedule and the optimizers' options are those of the option file: where they differ from the saved ones, the
    schedule is run anew up to the saved iteration, and the change is logged.

    Raises:
        UserError: the optimizers are others than those of the state.
    """
    _check_optimizers(self, resume_state)
    fresh_groups = [[dict(group) for group in optimizer.param_groups] for optimizer in self.optimizers]
    edits = []
    for optimizer, saved, groups in zip(self.optimizers, resume_state["optimizers"], fresh_groups, strict=True):
        optimizer.load_state_dict(saved)
        for group, fresh in zip(optimizer.param_groups, groups, strict=True):
            edits += _set_options(group, fresh)
    changed = _schedule_edits(self, resume_state, fresh_groups)
    if changed:
        _run_schedule_anew(self, resume_state["iter"], fresh_groups)
    else:
        for scheduler, saved in zip(self.schedulers, resume_state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
    for edit in dict.fromkeys(edits + changed):
        get_root_logger().warning(f"Resuming: the option file has changed, and is followed: {edit}")
    if resume_state.get("best"):
        self.best_metric_results = resume_state["best"]
    if resume_state.get("extra") and hasattr(self, "load_extra_state"):
        self.load_extra_state(resume_state["extra"])


def _check_optimizers(model: Any, state: dict[str, Any]) -> None:
    types = [type(optimizer).__name__ for optimizer in model.optimizers]
    saved_types = state.get("optimizer_types", types)
    if types != saved_types or len(types) != len(state["optimizers"]):
        raise UserError(
            f"train.optim_*.type: the training to resume was made by {', '.join(saved_types)}, "
            f"{', '.join(types)} cannot go on from that"
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
            for key in STRUCTURAL & group.keys() & old.keys():
                if group[key] != old[key]:
                    raise UserError(f"train.optim_*.{key}: was {old[key]}, and cannot be {group[key]} when resuming")


def _set_options(group: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    edits = []
    for key in fresh.keys() - MOVING:
        if key in group and plain(group[key]) != plain(fresh[key]):
            edits.append(f"train.optim_*.{key}: {group[key]} -> {fresh[key]}")
        group[key] = fresh[key]
    return sorted(edits)


def _schedule_edits(model: Any, state: dict[str, Any], groups: list[list[dict[str, Any]]]) -> list[str]:
    """Say what of the schedule differs from the saved one."""
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
    """What of a scheduler's state comes from the option file, sequences made comparable."""
    derived = {"last_epoch", "base_lrs", "cumulative_period", "verbose"}
    kept = {key: value for key, value in state.items() if not key.startswith("_") and key not in derived}
    return {key: list(value) if isinstance(value, tuple) else plain(value) for key, value in kept.items()}


def _run_schedule_anew(model: Any, iteration: int, groups: list[list[dict[str, Any]]]) -> None:
    for optimizer, fresh_groups in zip(model.optimizers, groups, strict=True):
        for group, fresh in zip(optimizer.param_groups, fresh_groups, strict=True):
            group.update({key: fresh[key] for key in ("lr", "initial_lr") if key in fresh})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for number in range(1, iteration + 1):
            model.update_learning_rate(number, warmup_iter=model.opt["train"].get("warmup_iter", -1))
