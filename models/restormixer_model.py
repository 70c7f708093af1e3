"""BasicSR model with multi-scale loss, mixed precision, gradient accumulation and clipping, and EMA with buffers."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from restormixer_arch.basicsr_adapter.padded import Padded, required_multiple, restore_padded
from restormixer_arch.errors import UserError
from restormixer_arch.inference.restorer import Restorer, restorer_of_options
from restormixer_arch.models import guard, memory
from restormixer_arch.models.batch_norm import NormStatistics, last_unfrozen_iteration
from restormixer_arch.models.losses import MultiScaleDualDomainLoss
from restormixer_arch.models.metrics import load_metric_networks
from restormixer_arch.models.mixing import cut_blur, mix_pairs
from restormixer_arch.models.optimizers import (
    FUSED_OPTIMIZERS,
    ScheduleFree,
    average_tensors,
    build_optimizer,
    is_schedule_free,
    parameter_groups,
    tensors_of,
)
from restormixer_arch.models.precision import Precision, cudnn_benchmark_disabled, read_amp, set_tf32
from restormixer_arch.models.validation import validate
from restormixer_arch.output import note
from restormixer_arch.protocol import DeeplySupervised

if TYPE_CHECKING:
    from restormixer_arch.models.progressive import ProgressivePatches

DEFAULT_GRAD_CLIP = 0.01  # value of related networks (SFNet, IRNeXt, ConvIR)
COMPILE_BACKEND = "inductor"


@MODEL_REGISTRY.register()
class RestorMixerModel(SRModel):
    """BasicSR's SRModel, extended for networks that return outputs at several scales during training.

    It supports every network in ARCH_REGISTRY. Options in addition to SRModel's, all under ``train``:

    - ``grad_clip``: largest gradient norm; 0.01 by default, 0 disables clipping.
    - ``optim_g.type``: ``Adam``, ``AdamW`` or an optimizer of another package, see :mod:`.optimizers`. Parameters in
      the network's ``no_weight_decay()`` get no weight decay. With a schedule-free optimizer, the averaged weights are
      tested and saved.
    - ``ema_decay``: decay of the EMA weights with a warm-up, min(decay, (1 + i) / (10 + i)) at step i. Buffers
      (BatchNorm statistics) are averaged in the same way as the weights.
    - ``pixel_opt.type``: ``MultiScaleDualDomainLoss`` uses all outputs, any other loss the one at full resolution.
    - ``amp``: ``bf16``, ``fp16`` (CUDA only) or ``off``, and ``tf32``, see :mod:`.precision`.
    - ``accumulate``: n. An iteration is still one batch of the loader, also for ``total_iter`` and the schedule. The
      weights are updated after every n-th and after the last iteration, with the mean gradient since the last update.
    - ``checkpointing``: store fewer activations and recompute the others, see :func:`.memory.set_checkpointing`.
    - ``compile``: use ``torch.compile`` for the forward and backward pass of training.
    - ``progressive``: stages with increasing patch size, see :mod:`.progressive`.
    - ``freeze_norms_after``: fraction of training, 0 to 1, after which BatchNorm uses fixed running statistics, those
      of the EMA weights if there are any, see :class:`.batch_norm.NormStatistics`. Never by default.
    - ``mixup``: the alpha of :func:`.mixing.mix_pairs`; ``cutblur``: the probability of :func:`.mixing.cut_blur`.
    - ``max_skipped``: a step with a non-finite loss or gradient is skipped; more than this number in a row (10 by
      default) stop the training. Overflows that the loss scale of float16 explains do not count. On a GPU, training
      does not wait for the loss: skipped steps are counted one iteration later, see :mod:`.guard`, and logged values
      are tensors.

    Under ``val``, ``tile``, ``tile_overlap`` and ``tile_blend`` enable tiling in validation and testing, and
    ``max_memory`` (such as ``3G``) chooses the tile size. The complete image is then never on the device, see
    :mod:`restormixer_arch.inference.tiles`.

    Validation also measures the inputs (:class:`restormixer_arch.protocol.MeasuresInputs`). Checkpoints also contain
    the loss scale, counts of skipped steps and accumulated gradients (:class:`restormixer_arch.protocol.KeepsState`).

    Overridden: model_to_device, init_training_settings, setup_optimizers, get_optimizer, feed_data,
    optimize_parameters, model_ema, test, nondist_validation, dist_validation, save, print_network.
    """

    nondist_validation = dist_validation = validate  # distributes the images over all processes

    def __init__(self, opt: dict[str, Any]) -> None:
        self.last_means: dict[str, dict[str, float]] = {}
        self.input_values: dict[str, list[dict[str, float]]] = {}
        self.validating = False
        self.schedule_free: ScheduleFree | None = None
        self.restorer: Restorer | None = None  # restores tile by tile; None without tiling
        self._paths: list[str] = []  # paths of the images in the batch
        super().__init__(opt)
        tested, scale = self._tested_network(), opt.get("scale", 1)
        self._multiple = required_multiple(tested)  # the sides of the network's inputs must be multiples of it
        gray = any(isinstance(of, dict) and of.get("color") == "y" for of in (opt.get("datasets") or {}).values())
        padded = Padded(tested, self._multiple, scale, 1 if gray else 3)
        if padded.upscale != scale:
            raise UserError(f"scale: must equal network_g.upscale ({padded.upscale}), got {scale}")
        self.restorer = restorer_of_options(padded, opt.get("val") or {})
        load_metric_networks((opt.get("val") or {}).get("metrics") or {})

    def _tested_network(self) -> nn.Module:
        """Return the network with EMA weights if it exists, else the trained network without its wrapper."""
        return self.net_g_ema if hasattr(self, "net_g_ema") else self.get_bare_model(self.net_g)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        if self.opt["num_gpu"] > 1 and not self.opt["dist"]:
            if self.is_train:
                raise UserError(
                    f"num_gpu: {self.opt['num_gpu']} needs a process for each GPU; start with torchrun "
                    f"--nproc_per_node={self.opt['num_gpu']} $(which basicsr) train ... --launcher pytorch, or set "
                    "num_gpu: 1"
                )
            return net.to(self.device)
        if self.is_train and isinstance(net, DeeplySupervised) and not _sees_all_outputs(self.opt["train"]):
            net.set_deep_supervision(False)  # no loss uses these outputs
        if self.opt["dist"]:
            net = self._with_common_statistics(net)
        return super().model_to_device(net)

    def _with_common_statistics(self, net: nn.Module) -> nn.Module:
        """Compute BatchNorm statistics over the batches of all processes, which torch supports on GPUs only."""
        if self.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(net)
        if self.is_train and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules()):
            note(
                f"{type(net).__name__} has BatchNorm: on the CPU, each process uses the statistics of its own part of "
                "the batch; on GPUs, the statistics of the whole batch are used"
            )
        return net

    def init_training_settings(self) -> None:
        options, network = self.opt["train"], self.get_bare_model(self.net_g)
        self.grad_clip = options.get("grad_clip", DEFAULT_GRAD_CLIP)
        self._advice = memory.training_advice(self.opt)
        self.accumulate = options.get("accumulate", 1)
        self._accumulated = 0  # number of batches whose gradients are accumulated for the next step
        self._grad_norm: float | Tensor | None = None
        if self.device.type == "cuda":
            get_root_logger().info(set_tf32(options.get("tf32")))
        self.precision = Precision(read_amp(options, self.device), self.device)
        self.precision.prepare(network)
        limit = options.get("max_skipped", guard.DEFAULT_MAX_SKIPPED)
        self.guard = guard.Guard(limit, get_root_logger(), self.precision.overflowing_scale)
        self._statistics = NormStatistics(network)
        self.last_unfrozen_iteration = last_unfrozen_iteration(options.get("freeze_norms_after"), options["total_iter"])
        self._seed = f"{self.opt.get('manual_seed')} {self.opt.get('rank', 0)}"
        self.progressive = self._progressive(options.get("progressive"))
        self.mixup, self.cutblur = options.get("mixup"), options.get("cutblur")
        if options.get("checkpointing"):
            count = memory.set_checkpointing(network)
            get_root_logger().info(f"Gradient checkpointing of {count} blocks.")
        if options.get("compile"):
            network.compile(backend=COMPILE_BACKEND, dynamic=False)  # in place; dynamic shapes take minutes
        super().init_training_settings()

    def _progressive(self, table: dict[str, Any] | None) -> ProgressivePatches | None:
        if not table:
            return None
        from restormixer_arch.models.progressive import ProgressivePatches

        return ProgressivePatches(**table, scale=self.opt.get("scale", 1), seed=self._seed)

    def setup_optimizers(self) -> None:
        options = dict(self.opt["train"]["optim_g"])
        bare = self.get_bare_model(self.net_g)
        self.optimizer_g = self.get_optimizer(options.pop("type"), parameter_groups(bare), **options)
        self.optimizers.append(self.optimizer_g)
        self.schedule_free = ScheduleFree(self.optimizer_g, bare) if is_schedule_free(self.optimizer_g) else None
        if self.schedule_free and self.ema_decay > 0:
            raise UserError("train.ema_decay: must be 0 with a schedule-free optimizer, which averages the weights")

    def get_optimizer(self, optim_type: str, params: list[dict[str, Any]], lr: float, **kwargs: Any) -> Any:
        if optim_type in FUSED_OPTIMIZERS and not kwargs.get("foreach") and not kwargs.get("differentiable"):
            # See _waits; on a CPU, 6 times as fast for 285 small tensors. Not every version of torch has it elsewhere.
            kwargs.setdefault("fused", self.device.type in ("cuda", "cpu"))
        return build_optimizer(optim_type, params, lr, **kwargs)

    def feed_data(self, data: dict[str, Any]) -> None:
        if self.validating and self.restorer:  # tiles are moved to the device one by one
            self.lq = data["lq"]
            if "gt" in data:
                self.gt = data["gt"]
        else:
            super().feed_data(data)
        self._paths = [str(path) for path in data.get("lq_path", [])]

    def optimize_parameters(self, current_iter: int) -> None:
        with memory.explain_out_of_memory(f"at iteration {current_iter}", self._advice):
            if self.progressive:
                self.lq, self.gt = self.progressive.select(self.lq, self.gt, current_iter)
                self._paths = self._paths[: len(self.lq)]
            if self.cutblur:
                self.lq = cut_blur(self.lq, self.gt, self.cutblur, f"{self._seed} {current_iter}")
            if self.mixup:
                self.lq, self.gt = mix_pairs(self.lq, self.gt, self.mixup, f"{self._seed} {current_iter}")
            if self._accumulated == 0:
                self.optimizer_g.zero_grad(set_to_none=True)
            losses = self._accumulate_gradients(current_iter)
            due = current_iter % self.accumulate == 0 or current_iter == self.opt["train"]["total_iter"]
            if due and self._accumulated:
                self._step(current_iter)
        self.log_dict = self.reduce_loss_dict(losses) if self._waits else self._queued_losses(losses)
        if self._grad_norm is not None:
            self.log_dict["grad_norm"] = self._grad_norm
        if self.guard.total:
            self.log_dict["skipped"] = self.guard.total

    @property
    def _waits(self) -> bool:
        """Whether the loss is read before the backward pass, and the gradient norm before the step.

        On a GPU this is unnecessary, since a fused optimizer can skip a step itself. With ``accumulate`` it is needed
        to keep the gradients of a bad batch out of the accumulated ones.
        """
        fused = all(group.get("fused") for group in self.optimizer_g.param_groups)
        return self.device.type != "cuda" or self.accumulate > 1 or not fused

    @torch.no_grad()
    def _queued_losses(self, losses: dict[str, Tensor]) -> dict[str, Any]:
        """Return the losses, averaged over all processes, without waiting for the GPU."""
        values = torch.stack(list(losses.values()))
        if self.opt["dist"]:
            torch.distributed.all_reduce(values)
            values /= self.opt["world_size"]
        return dict(zip(losses, values, strict=True))

    def _accumulate_gradients(self, current_iter: int) -> dict[str, Tensor]:
        """Add the gradients of a batch to the accumulated ones if its loss is finite, and return the losses."""
        if current_iter > self.last_unfrozen_iteration:
            self._statistics.freeze(getattr(self, "net_g_ema", None))
        self._statistics.keep()
        with self.precision.autocast():
            outputs = self.net_g(self.lq)
        outputs = [outputs.float()] if isinstance(outputs, Tensor) else [output.float() for output in outputs]
        self.output = outputs[-1].detach()  # a skipped step must not keep its graph
        losses = self._losses(outputs)
        total = torch.stack(list(losses.values())).sum()
        self._finite_loss = self._in_all_processes(torch.isfinite(total))
        network, pictures = self.get_bare_model(self.net_g), {"lq": self.lq, "gt": self.gt}
        losses_alone = {name: loss.detach() for name, loss in losses.items()}
        outputs = [output.detach() for output in outputs]
        self._describe_loss = partial(guard.describe_non_finite, network, pictures, outputs, losses_alone, self._paths)
        if self._waits and not self._finite_loss:
            self._statistics.restore()
            self.guard.skip(current_iter, self._describe_loss())
        else:
            if self.schedule_free:  # not fused, so the loss is known to be finite
                self.schedule_free.see(self.lq)
            self.precision.backward(total)
            self._accumulated += 1
            if not self._waits:
                self._statistics.restore(unless=self._finite_loss)
        return losses_alone

    def _losses(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        losses = OrderedDict()
        if self.cri_pix:
            sees_all = isinstance(self.cri_pix, MultiScaleDualDomainLoss)
            losses["l_pix"] = self.cri_pix(outputs if sees_all else outputs[-1], self.gt)
        if self.cri_perceptual:
            for name, loss in zip(("l_percep", "l_style"), self.cri_perceptual(outputs[-1], self.gt), strict=True):
                if loss is not None:
                    losses[name] = loss
        return losses

    def _step(self, current_iter: int) -> None:
        """Update the weights with the mean of the accumulated gradients if it is finite."""
        self.precision.unscale(self.optimizer_g)
        gradients = guard.gradients(self.net_g)
        if self._accumulated > 1:
            torch._foreach_div_(gradients, self._accumulated)
        self._accumulated = 0
        norms = guard.norms_of(gradients)
        norm = torch.linalg.vector_norm(norms)
        finite = torch.isfinite(norm)  # the same in all processes, which average their gradients
        named = self.get_bare_model(self.net_g).named_parameters()
        names = [name for name, parameter in named if parameter.grad is not None]
        describe_gradient = partial(guard.describe_non_finite_gradient, names, norms)
        if self._waits:
            self._grad_norm = norm.item()
            if not finite:
                self.precision.skip()
                self.guard.count_overflow(current_iter, describe_gradient)
                return
        else:
            self._grad_norm = norm
            flags = guard.Flags(torch.stack([self._finite_loss, finite]))
            step = guard.Step(current_iter, flags, self._describe_loss, describe_gradient)
            finite &= self._finite_loss
        if self.grad_clip:
            guard.clip(gradients, norm, self.grad_clip)
        self.precision.step(self.optimizer_g, None if self._waits else finite)
        if self.ema_decay > 0:  # if a GPU skipped the step, the same weights are averaged again
            steps = -(-current_iter // self.accumulate)
            self.model_ema(decay=min(self.ema_decay, (1 + steps) / (10 + steps)))
        if self._waits:
            self.guard.passed()
        else:
            self.guard.queue(step)
            if current_iter == self.opt["train"]["total_iter"]:
                self.guard.count_queued()

    def _in_all_processes(self, flag: Tensor) -> Tensor:
        """Return whether a flag is true in all processes, which must agree on whether to run the backward pass."""
        if self.opt["dist"]:
            flag = flag.float()
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
        return flag.bool()

    @torch.no_grad()
    def test(self) -> None:
        """Restore ``lq`` in float32, in this process only and without ``torch.compile``, since image sizes differ."""
        network = self._tested_network()
        training, (height, width) = network.training, self.lq.shape[-2:]
        lack = memory.explain_out_of_memory(
            f"restoring an image of {height} x {width}", "set val.tile or val.max_memory"
        )
        with self._averaged_weights(), lack:
            network.eval()
            try:
                if self.restorer:
                    self.output = self.restorer(self.lq)
                else:
                    with cudnn_benchmark_disabled():
                        self.output = restore_padded(network.forward, self.lq, self._multiple)
            finally:
                network.train(training)

    def _averaged_weights(self) -> AbstractContextManager[None]:
        return self.schedule_free.averaged() if self.schedule_free else nullcontext()

    def gain(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Return dataset -> metric -> (mean of the inputs, mean of the restored images) for the last validation."""
        return {
            name: {metric: (_mean(self.input_values[name], metric), value) for metric, value in metrics.items()}
            for name, metrics in self.last_means.items()
        }

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides weights, optimizer and schedule, as tensors and plain values."""
        self.guard.count_queued()
        waiting = {}
        if self._accumulated:
            named = self.get_bare_model(self.net_g).named_parameters()
            scale = self.precision.loss_scale  # the loss scale may differ or be disabled after resuming
            waiting = {name: (p.grad / scale).cpu() for name, p in named if p.grad is not None}
        return {
            "scaler": self.precision.extra_state(),
            "guard": self.guard.extra_state(),
            "gathered": self._accumulated,
            "gradients": waiting,
            "grad_norm": None if self._grad_norm is None else float(self._grad_norm),
            "trained": self.schedule_free.extra_state() if self.schedule_free else {},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Load the result of :meth:`extra_state`, including accumulated gradients."""
        self.precision.load_extra_state(state["scaler"])
        self.guard.load_extra_state(state["guard"])
        self._accumulated = state["gathered"]
        self._grad_norm = state.get("grad_norm")
        for name, parameter in self.get_bare_model(self.net_g).named_parameters():
            if name in state["gradients"]:
                parameter.grad = state["gradients"][name].to(parameter.device) * self.precision.loss_scale
        if self.schedule_free:
            self.schedule_free.load_extra_state(state["trained"])

    def save(self, epoch: int, current_iter: int | str) -> None:
        if not self.schedule_free:
            super().save(epoch, current_iter)
            return
        with self._averaged_weights():
            self.save_network(self.net_g, "net_g", current_iter)
        self.save_training_state(epoch, current_iter)

    def model_ema(self, decay: float = 0.999) -> None:
        average_tensors(tensors_of(self.net_g_ema), tensors_of(self.get_bare_model(self.net_g)), decay)

    def print_network(self, net: nn.Module) -> None:
        """Log one line instead of all layers."""
        bare = self.get_bare_model(net)
        count = sum(p.numel() for p in bare.parameters())
        get_root_logger().info(f"Network: {type(bare).__name__}, {count:,} parameters.")


def _sees_all_outputs(train: dict[str, Any]) -> bool:
    """Return whether a loss of ``train`` uses the outputs at lower resolutions."""
    return (train.get("pixel_opt") or {}).get("type") == MultiScaleDualDomainLoss.__name__


def _mean(values: list[dict[str, float]], metric: str) -> float:
    return sum(of_image[metric] for of_image in values) / len(values)
