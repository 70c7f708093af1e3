"""What a training leaves to look at: its losses and validations as CSV, and both as curves in a PNG.

``losses.csv``, ``validations.csv`` and ``learning_curve.png`` lie in the experiment's folder. A training that is
resumed goes on with them from its checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from basicsr.utils import get_root_logger
from basicsr.utils.options import dict2str

from restormixer_arch.basicsr_adapter.csv_table import Table
from restormixer_arch.basicsr_adapter.curves import draw_curves
from restormixer_arch.basicsr_adapter.run_hooks import Run

LOSSES, VALIDATIONS, CURVES = "losses.csv", "validations.csv", "learning_curve.png"


class Reports:
    """The reports of one training, written by the first process only; the curve is drawn when the run ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.losses: Table | None = None
        self.validations: Table | None = None
        self._sums: dict[str, list[float]] = {}  # of the losses since the last row

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.losses and self.validations and (self.losses.rows or self.validations.rows):
            path = self._folder() / CURVES
            try:
                draw_curves(self.losses.rows, self.validations.rows, path, self.run.opt["name"])
            except OSError as failure:  # a full disk, which must not hide how the training ended
                get_root_logger().warning(f"{path}: cannot be written ({failure})")

    def build(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return BasicSR's ``build_model`` with a model whose steps and validations are reported."""

        def build_model(opt: dict[str, Any]) -> Any:
            model = original(opt)
            if opt["rank"] == 0:
                self._follow(model)
            return model

        return build_model

    def begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return BasicSR's ``MessageLogger``, which is made when the iteration to start from is known."""

        def make(opt: dict[str, Any], start_iter: int = 1, tb_logger: Any = None) -> Any:
            if opt["rank"] == 0:
                self.losses = Table(self._folder() / LOSSES, start_iter)
                self.validations = Table(self._folder() / VALIDATIONS, start_iter)
                self.run.model.tb_logger = tb_logger
                if tb_logger:
                    tb_logger.add_text("options", as_markdown(opt), start_iter)
            return original(opt, start_iter, tb_logger)

        return make

    def _folder(self) -> Path:
        return Path(self.run.opt["path"]["log"])

    def _follow(self, model: Any) -> None:
        optimize, validate = model.optimize_parameters, model.validation

        def optimize_parameters(current_iter: int) -> None:
            if self.run.progress:
                self.run.progress.learning_rate = model.get_current_learning_rate()[0]
            optimize(current_iter)
            self._step(model, current_iter)

        def validation(dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool = False) -> None:
            before = getattr(model, "metric_results", None)
            validate(dataloader, current_iter, tb_logger, save_img)
            after = getattr(model, "metric_results", None)
            if after and after is not before:  # else it was left out, or nothing is measured
                self._validated(model, dataloader.dataset.opt["name"], self.run.iteration)

        model.optimize_parameters, model.validation = optimize_parameters, validation

    def _step(self, model: Any, iteration: int) -> None:
        for name, value in getattr(model, "log_dict", {}).items():
            self._sums.setdefault(name, []).append(value)
        opt = self.run.opt
        if self.losses and (iteration % opt["logger"]["print_freq"] == 0 or iteration == opt["train"]["total_iter"]):
            row = {"iteration": iteration, "lr": model.get_current_learning_rate()[0]}
            row |= {name: _mean(values) for name, values in self._sums.items()}
            self.losses.add(row)
            self._sums = {}

    def _validated(self, model: Any, dataset: str, iteration: int) -> None:
        inputs = getattr(model, "input_results", {}).get(dataset, {})
        row: dict[str, Any] = {"iteration": iteration, "dataset": dataset}
        for metric, value in model.metric_results.items():
            row |= {f"{metric}_input": inputs[metric]} if metric in inputs else {}
            row[metric] = float(value)
        if self.validations:
            self.validations.add(row)
        if self.run.progress:
            psnr = next((name for name in model.metric_results if "psnr" in name.lower()), None)
            if psnr:
                self.run.progress.psnr = float(model.metric_results[psnr])


def as_markdown(opt: dict[str, Any]) -> str:
    """Return options as tensorboard shows text: Markdown, in which four blanks keep lines as they are."""
    return "".join(f"    {line}\n" for line in dict2str(opt).splitlines())


def _mean(values: list[float]) -> float:
    """The mean of the finite values: the step of the others was skipped."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
