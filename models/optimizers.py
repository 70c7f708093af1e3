"""Optimizers by name: Adam and AdamW of torch, and those of the packages schedulefree and pytorch-optimizer.

Muon (https://kellerjordan.github.io/posts/muon) orthogonalizes the update of each weight matrix and uses AdamW for all
other parameters. :func:`mark_matrices` marks the matrices.

A schedule-free optimizer (arXiv 2405.15682) trains the weights y, while the averaged weights x are tested and saved.
:class:`ScheduleFree` switches between the two.
"""

from __future__ import annotations

import importlib
import inspect
import io
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.basicsr_adapter.signatures import argument_problems
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.models.batch_norm import norms_with_running_statistics, running_statistics
from restormixer_arch.models.checkpoint_values import to_plain_values
from restormixer_arch.protocol import ExemptsFromWeightDecay

FUSED_OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
SCHEDULE_FREE = ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree")  # in the package schedulefree
MIN_MATRIX_SIDE = 8  # minimum rows and columns of a matrix to orthogonalize
MAX_NORM_BATCHES = 8  # largest number of batches for the statistics of the averaged weights
MAX_NORM_BYTES = 32 << 20  # size limit of these batches, which are saved in checkpoints; at least one is kept


def build_optimizer(name: str, params: list[dict[str, Any]], lr: float, **options: Any) -> torch.optim.Optimizer:
    """Build the optimizer of ``train.optim_g``.

    Args:
        name: ``Adam``, ``AdamW``, one of :data:`SCHEDULE_FREE`, or a class of pytorch-optimizer such as ``Lion``.
        params: parameter groups.
        lr: learning rate.
        options: further arguments of the optimizer class.

    Raises:
        UserError: if the name is unknown, its package is not installed, or the optimizer rejects an option.
    """
    kind = _find(name)
    problems = list(argument_problems(kind, {"lr": lr, **options}, ("train", "optim_g"), given=["params"]))
    if problems:
        raise UserError(*map(str, problems))
    try:
        if name not in FUSED_OPTIMIZERS:
            _check_usable(kind, lr, options)
        return _build(kind, params, lr, options)
    except Exception as error:  # noqa: BLE001 - third-party code may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"train.optim_g: {name} cannot be used with these options ({reason})") from error


def _build(kind: Any, params: list[dict[str, Any]], lr: float, options: dict[str, Any]) -> torch.optim.Optimizer:
    if "adamw_lr" in inspect.signature(kind).parameters:
        weight_decay = options.get("weight_decay", 0.0)
        params = mark_matrices(params, weight_decay, options.get("adamw_wd", weight_decay))
        kind = _in_float32_on_cpus(kind)
    return kind(params, lr=lr, **options)


def _in_float32_on_cpus(kind: Any) -> Any:
    """Make Muon multiply in float32 on CPUs, up to eight times as fast as pytorch-optimizer's bfloat16.

    Overrides a private method of the package. The class is returned unchanged if the installed version lacks it.
    """
    try:
        from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5

        given = kind._orthogonalize
    except (ImportError, AttributeError):
        return kind

    def orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        if updates[0].device.type != "cpu" or group.get("ns_method", "newton_schulz") != "newton_schulz":
            return given(group, updates)
        settings = {"num_steps": group["ns_steps"], "weights": group["ns_coeffs"], "dtype": torch.float32}
        return [zero_power_via_newton_schulz_5(update.flatten(1), **settings) for update in updates]

    return type(kind.__name__, (kind,), {"_orthogonalize": staticmethod(orthogonalize)})


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Return groups of trainable parameters: those with weight decay, and those that the network exempts from it."""
    parts = [(f"{name}." if name else "", part) for name, part in network.named_modules()]
    asked = [(prefix, part) for prefix, part in parts if isinstance(part, ExemptsFromWeightDecay)]
    exempt = {prefix + name for prefix, part in asked for name in part.no_weight_decay()}
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name not in exempt]},
        {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; shared tensors are listed once."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def average_tensors(averages: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """Update exponential moving averages in place; integers, such as counts of batches, are copied.

    Args:
        averages: averages by name.
        current: tensors with the same names and shapes.
        decay: weight of the previous average, from 0 to 1.
    """
    floating = [name for name, average in averages.items() if average.is_floating_point()]
    others = [name for name in averages if name not in set(floating)]
    if floating:
        values = [current[name].to(averages[name].dtype) for name in floating]
        torch._foreach_lerp_([averages[name] for name in floating], values, 1 - decay)
    if others:
        torch._foreach_copy_([averages[name] for name in others], [current[name] for name in others])


def mark_matrices(groups: list[dict[str, Any]], weight_decay: float, others_decay: float) -> list[dict[str, Any]]:
    """Split parameter groups for Muon and its variants in pytorch-optimizer, which need ``use_muon`` in each group.

    Matrices are two-dimensional parameters, and weights of convolutions over more than one channel viewed as
    (C', C * k * k), if they have at least :data:`MIN_MATRIX_SIDE` rows and columns. A layer with three output channels
    is therefore excluded. Most two-dimensional parameters are weights of linear layers, but a table such as SwinIR's
    ``relative_position_bias_table`` is a matrix too, unless it has too few columns.

    Args:
        groups: parameter groups with or without ``weight_decay``.
        weight_decay, others_decay: weight decay of matrices and of other parameters in groups that specify none.
    """
    marked: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in groups:
        for use_muon, found in marked.items():
            params = [p for p in group["params"] if _is_matrix(p) == use_muon]
            if params:
                decay = weight_decay if use_muon else others_decay
                found.append({"weight_decay": decay, **group, "params": params, "use_muon": use_muon})
    return marked[True] + marked[False]


def _is_matrix(parameter: Tensor) -> bool:
    if parameter.ndim not in (2, 4) or parameter.shape[1] == 1:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= MIN_MATRIX_SIDE


def _find(name: str) -> type[torch.optim.Optimizer]:
    if name in FUSED_OPTIMIZERS:
        return FUSED_OPTIMIZERS[name]
    package = "schedulefree" if name in SCHEDULE_FREE else "pytorch_optimizer"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        extra = "restormixer[optimizers]" if name in SCHEDULE_FREE else "pytorch-optimizer"
        lacking = f"{name!r} needs {package}, which is not installed. Run: pip install {extra!r}"
        raise UserError(f"train.optim_g.type: {lacking}") from error
    kinds = {key: kind for key, kind in vars(module).items() if _is_optimizer(kind)}
    if name not in kinds:
        hint = did_you_mean(name, [*FUSED_OPTIMIZERS, *SCHEDULE_FREE, *kinds])
        raise UserError(
            f"train.optim_g.type: {name!r} is none of {', '.join(FUSED_OPTIMIZERS)}.{hint} "
            f"Neither is it one of {', '.join(SCHEDULE_FREE)}, or of pytorch-optimizer"
        )
    return kinds[name]


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)


def _check_usable(kind: type[torch.optim.Optimizer], lr: float, options: dict[str, Any]) -> None:
    """Test an optimizer on a small convolution and a bias: take two steps, and save and reload the state after each.

    Some optimizers need a closure, second derivatives or other keys in their groups; others have a state that cannot
    be stored in a checkpoint.

    Raises:
        Exception: of any type, if the optimizer cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        params = [nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.randn(8))]
        groups = [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}]
        optimizer = _build(kind, groups, lr, options)
        if is_schedule_free(optimizer):
            optimizer.train()
        if any("lr" not in group for group in optimizer.param_groups):
            raise TypeError("it has no learning rate, which the schedule sets")
        for _ in range(2):
            for parameter in params:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            optimizer.load_state_dict(_saved_and_read(optimizer.state_dict()))


def _saved_and_read(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state after a round trip through a checkpoint."""
    file = io.BytesIO()
    torch.save(to_plain_values(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class ScheduleFree:
    """Switches a network between the weights that are trained and the averaged weights that are tested and saved.

    BatchNorm's running statistics belong to the trained weights. Those of the averaged weights are recomputed from the
    latest batches when the averaged weights are needed.

    Args:
        optimizer: schedule-free optimizer of the network; it is switched to training mode.
        network: network without wrappers.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        self._optimizer, self._network = optimizer, network
        self._norms = norms_with_running_statistics(network)
        self._inputs: deque[Tensor] = deque(maxlen=MAX_NORM_BATCHES if self._norms else 0)
        self._averaged: list[Tensor] | None = None  # statistics of the averaged weights, None if outdated
        optimizer.train()

    def see(self, inputs: Tensor) -> None:
        """Store the inputs of a training step. (B, C, H, W)"""
        self._inputs.append(inputs.detach())
        while len(self._inputs) > 1 and sum(one.nbytes for one in self._inputs) > MAX_NORM_BYTES:
            self._inputs.popleft()
        self._averaged = None

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[None]:
        """Switch the network to the averaged weights; on exit, restore the trained weights exactly."""
        if not self._optimizer.param_groups[0]["train_mode"]:
            yield  # already switched
            return
        trained = self._copies()
        self._optimizer.eval()
        self._set_statistics()
        try:
            yield
        finally:
            self._optimizer.train()
            self._put_back(trained)

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Copy the first process's statistics of the averaged weights to all processes, which must all call it.

        Each process has seen different inputs, and the first process saves the checkpoints.
        """
        with self.averaged():
            for buffer in self._averaged or ():
                torch.distributed.broadcast(buffer, src=0)

    def extra_state(self) -> dict[str, Any]:
        """Return the trained weights, which are saved in addition to the averaged weights, and the latest inputs."""
        weights = {name: tensor.detach().cpu() for name, tensor in tensors_of(self._network).items()}
        return {"weights": weights, "inputs": [inputs.cpu() for inputs in self._inputs]}

    @torch.no_grad()
    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Load the result of :meth:`extra_state`, after the averaged weights and the optimizer state are loaded."""
        self._averaged = [buffer.clone() for buffer in running_statistics(self._norms)]
        self._optimizer.train()
        self._put_back(state["weights"])
        device = next(self._network.parameters()).device
        self._inputs.extend(inputs.to(device) for inputs in state["inputs"])

    def _copies(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in tensors_of(self._network).items()}

    def _put_back(self, saved: dict[str, Tensor]) -> None:
        for name, tensor in tensors_of(self._network).items():
            tensor.copy_(saved[name])

    def _set_statistics(self) -> None:
        """Set BatchNorm's statistics to the mean over the latest batches, unless BatchNorm is frozen."""
        if self._averaged is not None:
            for buffer, value in zip(running_statistics(self._norms), self._averaged, strict=True):
                buffer.copy_(value)
            return
        if self._inputs and any(norm.training for norm in self._norms):
            momenta = [norm.momentum for norm in self._norms]
            for norm in self._norms:
                norm.reset_running_stats()
                norm.momentum = None  # unweighted mean
            on_gpu = self._inputs[0].is_cuda
            with torch.random.fork_rng(devices=[self._inputs[0].device] if on_gpu else []):
                for inputs in self._inputs:
                    self._network.forward(inputs)  # not compiled, since each norm would cause a graph break
            for norm, momentum in zip(self._norms, momenta, strict=True):
                norm.momentum = momentum
        self._averaged = [buffer.clone() for buffer in running_statistics(self._norms)]
