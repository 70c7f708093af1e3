"""RestorMixer under BasicSR's trainer: multi-scale loss, gradient clipping, EMA with buffers, input's own metrics."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.models.labels import LabelledLoader, LabelResults, report_by_label
from restormixer_arch.models.losses import MultiScaleDualDomainLoss
from restormixer_arch.models.restore import restorer_of_options
from restormixer_arch.models.weights import read_weights

DEFAULT_GRAD_CLIP = 0.01  # the value of the network's family (SFNet, IRNeXt, ConvIR)
OPTIMIZERS = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}


@MODEL_REGISTRY.register()
class RestorMixerModel(SRModel):
    """BasicSR's SRModel for networks that return their outputs at several scales while training.

    It works for any network of ARCH_REGISTRY. Options beyond SRModel's, all under ``train``:

    - ``grad_clip``: largest norm of the gradient, 0.01 by default, 0 for no clipping.
    - ``optim_g.type``: ``Adam`` or ``AdamW``. Parameters that the network's ``no_weight_decay()`` names get none.
    - ``ema_decay``: reached by a warm-up, min(decay, (1 + i) / (10 + i)) at iteration i; buffers (BatchNorm
      statistics) are averaged as the weights are.
    - ``pixel_opt.type: MultiScaleDualDomainLoss`` sees all outputs; another loss sees the one at full resolution.

    Under ``val``, ``tile``, ``tile_overlap`` and ``tile_blend`` restore validated and tested pictures tile by tile, and
    ``max_memory`` (such as ``3G``) chooses the tiles' size; the whole picture is then never on the device, see
    :mod:`restormixer_arch.models.tiling`.

    Overridden: init_training_settings, setup_optimizers, get_optimizer, optimize_parameters, model_ema, feed_data,
    test, nondist_validation, get_current_visuals, load_network, print_network.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.results: dict[str, dict[str, float]] = {}  # data set -> metric -> mean of the restored images
        self.input_results: dict[str, dict[str, float]] = {}  # the same of the inputs themselves
        self.label_results: dict[str, LabelResults] = {}  # data set -> its results told by label
        self._input_sums: dict[str, float] | None = None  # while the inputs of a data set are measured
        super().__init__(opt)
        upscale = getattr(self.get_bare_model(self.net_g), "upscale", None)
        if upscale is not None and upscale != opt.get("scale", 1):
            raise UserError(f"scale: must equal network_g.upscale ({upscale}), got {opt.get('scale', 1)}")
        self._validating = False
        tested = getattr(self, "net_g_ema", self.net_g)
        self.restorer = restorer_of_options(self.get_bare_model(tested), opt.get("val") or {})

    def init_training_settings(self) -> None:
        self.grad_clip = self.opt["train"].get("grad_clip", DEFAULT_GRAD_CLIP)
        super().init_training_settings()

    def setup_optimizers(self) -> None:
        options = dict(self.opt["train"]["optim_g"])
        bare = self.get_bare_model(self.net_g)
        exempt = bare.no_weight_decay() if hasattr(bare, "no_weight_decay") else set()
        named = [(name, p) for name, p in bare.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in named if name not in exempt]},
            {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
        ]
        self.optimizer_g = self.get_optimizer(options.pop("type"), [g for g in groups if g["params"]], **options)
        self.optimizers.append(self.optimizer_g)

    def get_optimizer(self, optim_type: str, params: list[dict[str, Any]], lr: float, **kwargs: Any) -> Any:
        if optim_type not in OPTIMIZERS:
            raise UserError(
                f"train.optim_g.type: {optim_type!r} is none of {', '.join(OPTIMIZERS)}."
                f"{did_you_mean(optim_type, OPTIMIZERS)}"
            )
        return OPTIMIZERS[optim_type](params, lr, **kwargs)

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad(set_to_none=True)
        outputs = self.net_g(self.lq)
        self.output = outputs if isinstance(outputs, Tensor) else outputs[-1]
        losses = OrderedDict()
        if self.cri_pix:
            sees_all = isinstance(self.cri_pix, MultiScaleDualDomainLoss)
            losses["l_pix"] = self.cri_pix(outputs if sees_all else self.output, self.gt)
        if self.cri_perceptual:
            for name, loss in zip(("l_percep", "l_style"), self.cri_perceptual(self.output, self.gt), strict=True):
                if loss is not None:
                    losses[name] = loss
        torch.stack(list(losses.values())).sum().backward()
        # A limit of infinity only measures the norm.
        norm = nn.utils.clip_grad_norm_(self.net_g.parameters(), self.grad_clip or float("inf"))
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(losses)
        self.log_dict["grad_norm"] = norm.item()
        if self.ema_decay > 0:
            self.model_ema(decay=min(self.ema_decay, (1 + current_iter) / (10 + current_iter)))

    @torch.no_grad()
    def model_ema(self, decay: float = 0.999) -> None:
        current = self.get_bare_model(self.net_g).state_dict()
        for name, average in self.net_g_ema.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name].to(average.dtype), 1 - decay)
            else:
                average.copy_(current[name])

    def feed_data(self, data: dict[str, Any]) -> None:
        if self._validating and self.restorer:  # the tiles go to the device one by one
            self.lq = data["lq"]
            if "gt" in data:
                self.gt = data["gt"]
        else:
            super().feed_data(data)

    def test(self) -> None:
        if self.restorer is None:
            super().test()
            return
        training = self.net_g.training
        self.restorer.network.eval()
        self.output = self.restorer(self.lq)
        self.net_g.train(training)

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        name, metrics = dataloader.dataset.opt["name"], self.opt["val"].get("metrics") or {}
        if len(dataloader) == 0:
            raise UserError(f"datasets: {name} has no images to validate on")
        measured = name in self.input_results
        self._input_sums = None if measured else dict.fromkeys(metrics, 0.0)
        self._validating = True
        try:
            labelled = LabelledLoader(dataloader, self)
            super().nondist_validation(labelled, current_iter, tb_logger, save_img)
            if not measured:
                self.input_results[name] = {m: s / len(dataloader) for m, s in self._input_sums.items()}
        finally:
            self._input_sums, self._validating = None, False
        if metrics:
            self.results[name] = {metric: float(value) for metric, value in self.metric_results.items()}
            self.label_results[name] = labelled.results
            report_by_label(self, name, labelled.results, current_iter, tb_logger)

    def get_current_visuals(self) -> dict[str, Tensor]:
        visuals = super().get_current_visuals()
        if self._input_sums is not None:
            # The measure of what was gained: the input itself, enlarged where the task is super-resolution.
            lq, size = visuals["lq"], visuals["result"].shape[-2:]
            if lq.shape[-2:] != size:
                lq = F.interpolate(lq, size=size, mode="bicubic", align_corners=False)
            data = {"img": tensor2img([lq])}
            if "gt" in visuals:
                data["img2"] = tensor2img([visuals["gt"]])
            for metric in self._input_sums:
                self._input_sums[metric] += float(calculate_metric(data, self.opt["val"]["metrics"][metric]))
        return visuals

    def gain(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Data set -> metric -> (mean of the inputs, mean of the restored images) of the last validation."""
        return {
            name: {metric: (self.input_results[name][metric], value) for metric, value in metrics.items()}
            for name, metrics in self.results.items()
        }

    def load_network(
        self, net: nn.Module, load_path: str | Path, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load ``.pth`` or ``.safetensors`` weights, this project's or the released code's, on any device."""
        bare = self.get_bare_model(net)
        get_root_logger().info(f"Loading {type(bare).__name__} from {load_path}, parameter key {param_key}.")
        try:
            keys = bare.load_state_dict(read_weights(load_path, param_key), strict=strict)
        except RuntimeError as error:  # what torch raises for missing, unexpected and misshapen tensors
            reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
            raise UserError(f"{load_path}: does not fit the network of network_g: {reasons[:400]}") from error
        if keys.missing_keys or keys.unexpected_keys:
            get_root_logger().warning(
                f"{load_path}: missing keys {keys.missing_keys}, unexpected keys {keys.unexpected_keys}"
            )

    def print_network(self, net: nn.Module) -> None:
        """Log one line instead of the whole tree."""
        bare = self.get_bare_model(net)
        count = sum(p.numel() for p in bare.parameters())
        get_root_logger().info(f"Network: {type(bare).__name__}, {count:,} parameters.")
