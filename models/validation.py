"""Validation and testing of a model: images restored, saved and measured, in one process or shared between several.

:func:`validate` needs of a model what BasicSR's SRModel has: ``feed_data``, ``test`` and ``get_current_visuals``. The
inputs themselves are measured for a model with the attributes of :class:`restormixer_arch.protocol.MeasuresInputs`.

Results are also reported per label, as all-in-one restoration does. An image's label is its item's ``label``, or part
of its name: a folder (``low_haze/0001.png``) or the end or beginning of the stem (``0001_low_haze``), see
:func:`restormixer_arch.data.degradations.labels.label_of`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from os import path as osp
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from restormixer_arch.config.rules import better
from restormixer_arch.data.degradations.labels import CDD11, label_of
from restormixer_arch.data.images.opencv import write_png
from restormixer_arch.errors import UserError
from restormixer_arch.models.metrics import measure
from restormixer_arch.protocol import MeasuresInputs

MEAN = "mean"
OTHER = "other"  # of images whose name holds no label
PICTURES = 4  # of each data set that tensorboard gets
PICTURE_SIDE = 384  # pixels at most; of a larger picture its middle is shown


class Measured(NamedTuple):
    """One restored image: position in the data set, name, label, metric -> value, the same of the input."""

    index: int
    name: str
    label: str
    values: dict[str, float]
    inputs: dict[str, float]
    finite: bool


class Left(Exception):
    """A validation was left because the training is to stop."""


def run_validation(
    model: Any,
    loader: Any,
    current_iter: int | str,
    tb_logger: Any,
    save_img: bool,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Validate any model of BasicSR: by :func:`validate`, unless the model has a validation of its own.

    Args:
        model, loader, current_iter, tb_logger, save_img: see :func:`validate`.
        stop: asked before each image; if it returns True, the validation is left.

    Returns:
        False if it was left.
    """
    kind = type(model)
    known = getattr(kind, "nondist_validation", None) in (SRModel.nondist_validation, validate)
    run = validate if known and kind.validation is BaseModel.validation else kind.validation
    try:
        run(model, _StoppableLoader(loader, stop) if stop else loader, current_iter, tb_logger, save_img)
    except Left:
        return False
    return True


class _StoppableLoader:
    """A validation's loader that is left where ``stop()`` is true."""

    def __init__(self, loader: Any, stop: Callable[[], bool]) -> None:
        self.loader, self.dataset, self._stop = loader, loader.dataset, stop

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for item in self.loader:
            if self._stop():
                raise Left
            yield item


def validate(model: Any, loader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
    """Restore, save and measure the images of a loader.

    Each process of a job takes every n-th image, and saves and measures it; afterwards all have the means over all
    images in ``model.metric_results`` and ``model.best_metric_results``, as BasicSR's SRModel does.

    Where an output is not finite, all metrics of the data set are NaN, and a warning names the images; BasicSR writes
    NaN as black and measures that.

    Args:
        model: a model with the interface of SRModel; ``val`` of its options holds the metrics.
        loader: yields single images, with ``lq_path``.
        current_iter: of the training, or the name of a test.
        tb_logger: takes scalars and, while training, pictures; or None.
        save_img: write the restored images.

    Raises:
        UserError: there are no images.
    """
    name, metrics = loader.dataset.opt["name"], model.opt["val"].get("metrics") or {}
    count = len(loader.dataset)
    if count == 0:
        raise UserError(f"datasets: {name} has no images to validate on")
    measured = _restore_and_measure(model, loader, current_iter, tb_logger, save_img)
    if model.opt["dist"]:
        measured = _of_all_processes(measured)
    if metrics:
        means = {metric: sum(one.values[metric] for one in measured) / count for metric in metrics}
        for options in metrics.values():
            if better(options) == "lower":
                options["better"] = "lower"  # BasicSR's models take higher where nothing is said
        model.metric_results = means
        model._initialize_best_metric_results(name)
        _add_missing_records(model.best_metric_results[name], metrics)
        for metric, value in means.items():
            model._update_best_metric_result(name, metric, value, current_iter)
        model._log_validation_metric_values(current_iter, name, tb_logger)
    broken = [one.name for one in measured if not one.finite]
    if broken:
        images = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        get_root_logger().warning(
            f"Validation {name}: the output for {len(broken)} of {count} images is not finite ({images}); "
            "they are written as black, and the metrics are NaN"
        )
    inputs = [one.inputs for one in measured]
    if isinstance(model, MeasuresInputs):
        inputs = model.input_values.setdefault(name, inputs)
        if metrics:
            model.results[name] = means
    if metrics and _place(model)[0] == 0:
        labels = [one.label for one in measured]
        results = LabelResults.of(labels, [one.values for one in measured])
        report_by_label(model, name, results, current_iter, tb_logger, LabelResults.of(labels, inputs))


def _add_missing_records(records: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> None:
    """Begin the records of metrics that a resumed training measures for the first time, or takes the other way."""
    for metric, options in metrics.items():
        way = options.get("better", "higher")
        if records.get(metric, {}).get("better") != way:
            records[metric] = {"better": way, "val": -math.inf if way == "higher" else math.inf, "iter": -1}


def _place(model: Any) -> tuple[int, int]:
    """Return the number of this process in its job, and the number of processes."""
    if not model.opt["dist"]:
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _restore_and_measure(
    model: Any, loader: Any, current_iter: int | str, tb_logger: Any, save_img: bool
) -> list[Measured]:
    """Restore, save and measure the images of this process."""
    dataset, options = loader.dataset, model.opt["val"]
    name, metrics = dataset.opt["name"], options.get("metrics") or {}
    rank, world_size = _place(model)
    if world_size > 1:
        share = range(rank, len(dataset), world_size)
        loader = DataLoader(dataset, batch_size=1, sampler=share, num_workers=0, generator=loader.generator)
    extended = isinstance(model, MeasuresInputs)
    input_metrics = metrics if extended and name not in model.input_values else {}
    pictures = PICTURES if extended and tb_logger and model.opt["is_train"] else 0
    stems = Counter(Path(path).stem for path in getattr(dataset, "paths", []) if isinstance(path, str))
    doubles = {stem for stem, count in stems.items() if count > 1}
    measured = []
    bar = tqdm(total=len(loader), unit="image", disable=rank > 0 or not options.get("pbar", False))
    if extended:
        model.validating = True
    try:
        for number, item in enumerate(loader):
            path = item["lq_path"][0]
            stem = item["result_name"][0] if "result_name" in item else _result_name(path, doubles)
            visuals = _restore(model, item)
            image = tensor2img([visuals["result"]])
            if save_img:
                write_png(Path(_image_path(model, name, stem, current_iter)), image)
            finite = bool(torch.isfinite(visuals["result"]).all())
            truth = tensor2img([visuals["gt"]]) if metrics and "gt" in visuals else None
            values = measure(metrics, image, truth, stem) if finite else dict.fromkeys(metrics, math.nan)
            before = tensor2img([_enlarged_input(visuals)]) if input_metrics else image
            inputs = measure(input_metrics, before, truth, stem)
            if number < pictures:
                _show(tb_logger, f"{name}/{stem}", visuals, current_iter)
            label = _label(item, dataset.opt.get("dataroot_lq"))
            measured.append(Measured(rank + number * world_size, Path(path).name, label, values, inputs, finite))
            bar.update(1)
            bar.set_description(f"Test {stem}")
    finally:
        bar.close()
        if extended:
            model.validating = False
    return measured


def _result_name(path: str, doubles: Collection[str]) -> str:
    """Return what names a result: the image's name, with its extension where two images differ in that alone."""
    stem, suffix = osp.splitext(osp.basename(path))
    return f"{stem}_{suffix[1:]}" if stem in doubles else stem


def _restore(model: Any, item: dict[str, Any]) -> dict[str, Tensor]:
    """Return the model's visuals of an item, (1, C, H, W) on the CPU, and let its tensors go."""
    model.feed_data(item)
    model.test()
    visuals = model.get_current_visuals()
    for name in ("lq", "output", "gt"):
        if name in vars(model):
            delattr(model, name)
    torch.cuda.empty_cache()
    return visuals


def _enlarged_input(visuals: dict[str, Tensor]) -> Tensor:
    """The input itself, enlarged where the task is super-resolution."""
    lq, size = visuals["lq"], visuals["result"].shape[-2:]
    return lq if lq.shape[-2:] == size else F.interpolate(lq, size=size, mode="bicubic", align_corners=False)


def _image_path(model: Any, dataset: str, stem: str, current_iter: int | str) -> str:
    """Where SRModel writes a restored image; in a training with several sets, below the name of its set."""
    root = model.opt["path"]["visualization"]
    if model.opt["is_train"]:
        sets = [phase for phase in model.opt.get("datasets", {}) if phase != "train"]
        folder = osp.join(root, dataset) if len(sets) > 1 else root  # two sets may have images of one name
        return osp.join(folder, stem, f"{stem}_{current_iter}.png")
    return osp.join(root, dataset, f"{stem}_{model.opt['val'].get('suffix') or model.opt['name']}.png")


def _show(tb_logger: Any, title: str, visuals: dict[str, Tensor], current_iter: int | str) -> None:
    """Show input, restored image and truth side by side."""
    pictures = [_enlarged_input(visuals), visuals["result"], *([visuals["gt"]] if "gt" in visuals else [])]
    height, width = pictures[0].shape[-2:]
    top, left = max(0, height - PICTURE_SIDE) // 2, max(0, width - PICTURE_SIDE) // 2
    parts = [picture[0, :, top : top + PICTURE_SIDE, left : left + PICTURE_SIDE] for picture in pictures]
    tb_logger.add_image(title, torch.cat(parts, dim=-1).nan_to_num(0.0).clamp(0, 1), current_iter)


def _label(item: dict[str, Any], root: str | None) -> str:
    """Return the label of an item; the folders above the data set say nothing about an image."""
    if "label" in item:
        return item["label"][0]
    path = item["lq_path"][0]
    if root is not None and Path(path).is_relative_to(root):
        path = Path(path).relative_to(root).as_posix()
    return label_of(path) or OTHER


def _of_all_processes(measured: list[Measured]) -> list[Measured]:
    """Return the results of all processes, in the order of the data set."""
    # As bytes of the CPU: nccl and MPS would need tensors on another device, and MPS has no float64.
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, measured)
    return sorted((one for share in shares for one in share), key=lambda one: one.index)


# --- per label -------------------------------------------------------------------------------------------------------


@dataclass
class LabelResults:
    """Values of single images: label -> metric -> a value for each image."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Iterable[str], values: Iterable[dict[str, float]]) -> LabelResults:
        """Return the results of images, given the label and the values of each."""
        results = cls()
        for label, metrics in zip(labels, values, strict=True):
            for metric, value in metrics.items():
                results.add(label, metric, value)
        return results

    def add(self, label: str, metric: str, value: float) -> None:
        self.values.setdefault(label, {}).setdefault(metric, []).append(value)

    @property
    def labels(self) -> list[str]:
        """The labels met: CDD-11's in its own order, then the others by name."""
        rank = {label: place for place, label in enumerate(CDD11)}
        return sorted(self.values, key=lambda label: (rank.get(label, len(rank)), label))

    def means(self) -> dict[str, dict[str, float]]:
        """Return label -> metric -> mean over the images of that label."""
        return {
            label: {metric: math.fsum(values) / len(values) for metric, values in self.values[label].items()}
            for label in self.labels
        }

    def means_of_labels(self) -> dict[str, float]:
        """Return metric -> mean of the labels' means, each label counting alike."""
        means = self.means()
        metrics = dict.fromkeys(metric for of_label in means.values() for metric in of_label)
        return {metric: math.fsum(of_label[metric] for of_label in means.values()) / len(means) for metric in metrics}

    def markdown(self, inputs: LabelResults | None = None) -> str:
        """Return a table with a row for each metric, a column for each label, and the mean of the labels.

        Args:
            inputs: results of the inputs themselves, which get a row ``<metric>_input`` above that of the restored.
        """
        means, overall = self.means(), self.means_of_labels()
        counts = [len(next(iter(self.values[label].values()))) for label in means]
        lines = [
            f"| metric | {' | '.join([*means, MEAN])} |",
            f"| --- |{' ---: |' * (len(means) + 1)}",
            f"| images | {' | '.join(map(str, [*counts, sum(counts)]))} |",
        ]
        before = inputs.means() if inputs else {}
        for metric, mean in overall.items():
            if before:
                lines.append(_line(f"{metric}_input", metric, before, inputs.means_of_labels()[metric]))
            lines.append(_line(metric, metric, means, mean))
        return "\n".join(lines) + "\n"


def report_by_label(
    model: Any,
    dataset: str,
    results: LabelResults,
    current_iter: Any,
    tb_logger: Any,
    inputs: LabelResults | None = None,
) -> None:
    """Log a table of the results and, where given, of the inputs; write it as Markdown; add scalars of the results.

    The scalars are ``metrics/<data set>/<label>/<metric>``.
    The file is ``<data set>_labels.md`` in the run's folder; each validation replaces it. For a set with fewer than
    two labels nothing is done.
    """
    if len(set(results.values) - {OTHER}) < 2:
        return
    table = results.markdown(inputs)
    get_root_logger().info(f"Validation {dataset} by label, {len(results.values)} labels\n{table}")
    if tb_logger:
        for label, metrics in results.means().items():
            for metric, value in metrics.items():
                tb_logger.add_scalar(f"metrics/{dataset}/{label}/{metric}", value, current_iter)
    title = f"# {dataset} by label\n\n"
    when = f"After {current_iter} iterations.\n\n" if model.opt["is_train"] else ""
    path = Path(model.opt["path"]["log"], f"{dataset}_labels.md")
    path.write_text(title + when + table, encoding="utf-8")


def _line(title: str, metric: str, means: dict[str, dict[str, float]], mean: float) -> str:
    cells = [_shown(metric, value) for value in (*(of_label[metric] for of_label in means.values()), mean)]
    return f"| {title} | {' | '.join(cells)} |"


def _shown(metric: str, value: float) -> str:
    return f"{value:.2f}" if "psnr" in metric.lower() else f"{value:.4f}"
