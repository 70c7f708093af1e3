"""Validation that measures the inputs as well, shows pictures, and takes no broken output for a black picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from torch import Tensor

from restormixer_arch.errors import UserError
from restormixer_arch.inference.restorer import Restorer
from restormixer_arch.models.guard import is_finite
from restormixer_arch.models.labels import LabelledLoader, LabelResults, joined_results, report_by_label
from restormixer_arch.models.memory import explained

PICTURES = 4  # of each data set that tensorboard gets
PICTURE_SIDE = 384  # pixels at most; a larger picture shows its middle


class MeasuredValidation(SRModel):
    """The validation of RestorMixerModel.

    - ``results`` and ``input_results`` hold the metrics of the restored images and of the inputs themselves.
    - Where an output is not finite, all metrics of the data set are NaN, and a warning names the images; BasicSR
      writes NaN as black and measures that.
    - With tensorboard, the first pictures are shown as input, restored and truth side by side.

    Overridden: feed_data, test, nondist_validation, get_current_visuals.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.results: dict[str, dict[str, float]] = {}  # data set -> metric -> mean of the restored images
        self.input_results: dict[str, dict[str, float]] = {}  # the same of the inputs themselves
        self.label_results: dict[str, LabelResults] = {}  # data set -> its results told by label
        self.label_inputs: dict[str, LabelResults] = {}  # the same of the inputs themselves
        self.input_values: dict[str, float] = {}  # metrics of the image at hand's input, where they are measured
        self.output_is_finite = True
        self.tb_logger: Any = None  # where pictures go if validation itself is given no logger
        self._input_sums: dict[str, float] | None = None  # while the inputs of a data set are measured
        self._paths: list[str] = []  # of the images of the batch
        self._broken: list[str] = []  # images of this validation whose output is not finite
        self._show: tuple[Any, str, int] | None = None  # logger, data set and iteration while pictures are shown
        self._shown = 0
        self._validating = False
        self.restorer: Restorer | None = None  # restores tile by tile, if the options ask for it
        super().__init__(opt)

    def feed_data(self, data: dict[str, Any]) -> None:
        if self._validating and self.restorer:  # the tiles go to the device one by one
            self.lq = data["lq"]
            if "gt" in data:
                self.gt = data["gt"]
        else:
            super().feed_data(data)
        self._paths = [str(path) for path in data.get("lq_path", [])]

    @torch.no_grad()
    def test(self) -> None:
        """Restore ``lq`` in float32, on this process alone and without a compiled network, since sizes differ."""
        network = self.net_g_ema if hasattr(self, "net_g_ema") else self.get_bare_model(self.net_g)
        training = network.training
        network.eval()
        height, width = self.lq.shape[-2:]
        advice = "set val.tile or val.max_memory"
        try:
            with explained(f"restoring an image of {height} x {width}", advice):
                self.output = self.restorer(self.lq) if self.restorer else network.forward(self.lq)
        finally:
            network.train(training)
        self.output_is_finite = is_finite(self.output)
        if not self.output_is_finite:
            self._broken.append(Path(self._paths[0]).name if self._paths else "?")

    def nondist_validation(self, dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
        name, metrics = dataloader.dataset.opt["name"], self.opt["val"].get("metrics") or {}
        if len(dataloader) == 0:
            raise UserError(f"datasets: {name} has no images to validate on")
        measured = name in self.input_results
        self._input_sums = None if measured else dict.fromkeys(metrics, 0.0)
        tb_logger = tb_logger or self.tb_logger
        self._show = (tb_logger, name, current_iter) if tb_logger and self.is_train else None
        self._shown, self._broken, self._validating = 0, [], True
        try:
            labelled = LabelledLoader(dataloader, self)
            super().nondist_validation(labelled, current_iter, tb_logger, save_img)
            if not measured:
                self.input_results[name] = {m: s / len(dataloader) for m, s in self._input_sums.items()}
                self.label_inputs[name] = labelled.inputs
        finally:
            self._input_sums = self._show = None
            self._validating = False
            self.input_values = {}
        if self._broken:
            self._tell_broken(name, len(dataloader))
        if metrics:
            self.results[name] = {metric: float(value) for metric, value in self.metric_results.items()}
            self.label_results[name] = labelled.results
            if not self.opt["dist"]:
                report_by_label(self, name, labelled.results, current_iter, tb_logger, self.label_inputs.get(name))

    def _tell_broken(self, name: str, count: int) -> None:
        images = ", ".join(self._broken[:3]) + (", ..." if len(self._broken) > 3 else "")
        get_root_logger().warning(
            f"Validation {name}: the output for {len(self._broken)} of {count} images is not finite ({images}); "
            "they are written as black, and the metrics are NaN"
        )

    def get_current_visuals(self) -> dict[str, Tensor]:
        visuals = super().get_current_visuals()
        if self._input_sums is None and self._show is None:
            return visuals
        # The measure of what was gained: the input itself, enlarged where the task is super-resolution.
        lq, size = visuals["lq"], visuals["result"].shape[-2:]
        if lq.shape[-2:] != size:
            lq = F.interpolate(lq, size=size, mode="bicubic", align_corners=False)
        if self._input_sums is not None:
            data = {"img": tensor2img([lq])}
            if "gt" in visuals:
                data["img2"] = tensor2img([visuals["gt"]])
            for metric in self._input_sums:
                value = float(calculate_metric(data, self.opt["val"]["metrics"][metric]))
                self._input_sums[metric] += value
                self.input_values[metric] = value
        if self._show is not None and self._shown < PICTURES:
            self._shown += 1
            self._add_picture([lq, visuals["result"], *([visuals["gt"]] if "gt" in visuals else [])])
        return visuals

    def _add_picture(self, pictures: list[Tensor]) -> None:
        """Show pictures (1, C, H, W) side by side under the image's name."""
        logger, dataset, iteration = self._show
        height, width = pictures[0].shape[-2:]
        top, left = max(0, height - PICTURE_SIDE) // 2, max(0, width - PICTURE_SIDE) // 2
        parts = [p[0, :, top : top + PICTURE_SIDE, left : left + PICTURE_SIDE] for p in pictures]
        row = torch.cat(parts, dim=-1).nan_to_num(0.0).clamp(0, 1)
        name = Path(self._paths[0]).stem if self._paths else str(self._shown)
        logger.add_image(f"{dataset}/{name}", row, iteration)

    def validation_means(self) -> tuple[dict[str, dict[str, float]], ...]:
        """The means over the images of a validation; where several processes share it, over those of all."""
        return self.results, self.input_results

    def validation_shared(self, name: str, current_iter: Any, tb_logger: Any) -> None:
        """Join the results by label of all processes, which validated a share each and all call this."""
        shares: list[Any] = [None] * torch.distributed.get_world_size()
        mine = (self.label_results.get(name), self.label_inputs.get(name))
        torch.distributed.all_gather_object(shares, mine)
        results, inputs = (joined_results(part) for part in zip(*shares, strict=True))
        self.label_results[name] = results
        if self.opt["rank"] == 0:
            report_by_label(self, name, results, current_iter, tb_logger, inputs)

    def gain(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Data set -> metric -> (mean of the inputs, mean of the restored images) of the last validation."""
        return {
            name: {metric: (self.input_results[name][metric], value) for metric, value in metrics.items()}
            for name, metrics in self.results.items()
        }
