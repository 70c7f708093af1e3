"""Validation and testing: restore, save and measure images in one or several processes.

:func:`validate` needs a model with the interface of BasicSR's SRModel: ``feed_data``, ``test`` and
``get_current_visuals``. If it is a :class:`restormixer_arch.protocol.MeasuresInputs`, the inputs are measured too.

Results are also reported per label, see :mod:`.label_results`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from os import path as osp
from pathlib import Path
from typing import Any, NamedTuple

import torch
from basicsr.models.base_model import BaseModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, tensor2img
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from restormixer_arch.config.rules import better
from restormixer_arch.data.degradations.labels import label_of
from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.data.images.opencv import write_png
from restormixer_arch.data.pairing import result_names
from restormixer_arch.errors import UserError
from restormixer_arch.models.label_results import UNLABELED, LabelResults, report_per_label
from restormixer_arch.models.metrics import enlarge, measure
from restormixer_arch.models.shape_errors import explain_shape_error
from restormixer_arch.output import user_path
from restormixer_arch.protocol import MeasuresInputs

PICTURES = 4  # images per dataset that are shown in TensorBoard
PICTURE_SIDE = 384  # largest side in pixels; larger images are center-cropped


class Measured(NamedTuple):
    """The results of one restored image.

    Attributes:
        index: position in the dataset.
        name: file name of the input.
        label: label of the image.
        values: metric -> value of the restored image.
        inputs: metric -> value of the input.
        finite: whether the output is finite.
    """

    index: int
    name: str
    label: str
    values: dict[str, float]
    inputs: dict[str, float]
    finite: bool


class ValidationStopped(Exception):
    """Raised to abort a validation because training should stop."""


def run_validation(
    model: Any,
    loader: Any,
    current_iter: int | str,
    tb_logger: Any,
    save_img: bool,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Validate any BasicSR model with :func:`validate`, or with the model's own method if it overrides SRModel's.

    Args:
        model, loader, current_iter, tb_logger, save_img: see :func:`validate`.
        stop: called before each image; if it returns True, validation is aborted.

    Returns:
        False if validation was aborted, else True.
    """
    kind = type(model)
    known = getattr(kind, "nondist_validation", None) in (SRModel.nondist_validation, validate)
    run = validate if known and kind.validation is BaseModel.validation else kind.validation
    try:
        run(model, _StoppableLoader(loader, stop) if stop else loader, current_iter, tb_logger, save_img)
    except ValidationStopped:
        return False
    return True


class _StoppableLoader:
    """A loader that raises :class:`ValidationStopped` once ``stop()`` returns True."""

    def __init__(self, loader: Any, stop: Callable[[], bool]) -> None:
        self.loader, self.dataset, self._stop = loader, loader.dataset, stop

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for item in self.loader:
            if self._stop():
                raise ValidationStopped
            yield item


def validate(model: Any, loader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
    """Restore, save and measure the images of a loader.

    Each of n processes handles every n-th image, using the BatchNorm statistics of the first process. Afterwards, all
    processes have the means over all images in ``model.metric_results`` and ``model.best_metric_results``, as in
    BasicSR's SRModel, and the means of each dataset in ``model.last_means``.

    If an output is not finite, all metrics of the dataset are NaN and a warning names the images. BasicSR instead
    writes NaN as black and measures the result.

    Args:
        model: model with the interface of SRModel, whose options contain the metrics under ``val``.
        loader: loader of single images with ``lq_path``.
        current_iter: training iteration, or the name of a test.
        tb_logger: TensorBoard writer for scalars and, during training, images; or None.
        save_img: whether to write the restored images.

    Raises:
        UserError: if the dataset is empty or the network cannot process an image.
    """
    name, metrics = loader.dataset.opt["name"], model.opt["val"].get("metrics") or {}
    if len(loader.dataset) == 0:
        raise UserError(f"datasets: {name} has no images to validate on")
    if model.opt["dist"]:
        _share_statistics(model)
    measured = _restore_and_measure(model, loader, current_iter, tb_logger, save_img)
    if model.opt["dist"]:
        measured = _of_all_processes(measured)
    if metrics:
        _record_means(model, name, measured, metrics, current_iter, tb_logger)
    _warn_of_broken(name, measured)
    inputs = [one.inputs for one in measured]
    if isinstance(model, MeasuresInputs):
        inputs = model.input_values.setdefault(name, inputs)
    if metrics and _place(model)[0] == 0:
        labels = [one.label for one in measured]
        results = LabelResults.of(labels, [one.values for one in measured])
        report_per_label(model, name, results, current_iter, tb_logger, LabelResults.of(labels, inputs))


def _record_means(
    model: Any,
    dataset: str,
    measured: list[Measured],
    metrics: dict[str, dict[str, Any]],
    current_iter: int | str,
    tb_logger: Any,
) -> None:
    """Store the means over a dataset in the model, log them and update the best values."""
    means = {metric: sum(one.values[metric] for one in measured) / len(measured) for metric in metrics}
    for options in metrics.values():
        if better(options) == "lower":
            options["better"] = "lower"  # BasicSR's models default to "higher"
    model.metric_results = means
    vars(model).setdefault("last_means", {})[dataset] = means
    model._initialize_best_metric_results(dataset)
    _add_missing_records(model.best_metric_results[dataset], metrics)
    for metric, value in means.items():
        model._update_best_metric_result(dataset, metric, value, current_iter)
    model._log_validation_metric_values(current_iter, dataset, tb_logger)


def _warn_of_broken(dataset: str, measured: list[Measured]) -> None:
    """Log a warning if outputs are not finite."""
    broken = [one.name for one in measured if not one.finite]
    if broken:
        images = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        get_root_logger().warning(
            f"Validation {dataset}: the output for {len(broken)} of {len(measured)} images is not finite ({images}); "
            "they are saved as black images, and the metrics are NaN"
        )


def last_means(model: Any, dataset: str, current_iter: int | str | None = None) -> dict[str, float]:
    """Return metric -> mean for the last validation of a dataset.

    For a model with its own validation method, these are its ``metric_results`` if they are numbers and
    ``current_iter`` is given, otherwise its best values. The ``metric_results`` of a video model are folder -> tensor
    (frames, metrics).

    Args:
        model: any BasicSR model after a validation.
        dataset: name of the dataset.
        current_iter: iteration of the validation; values of other iterations are omitted. None returns all best values.
    """
    own = vars(model).get("last_means", {})
    if dataset in own:
        return own[dataset]
    results = getattr(model, "metric_results", None) or {}
    if current_iter is not None and results and all(isinstance(value, int | float) for value in results.values()):
        return results
    best = getattr(model, "best_metric_results", {}).get(dataset, {})
    return {
        metric: float(record["val"])
        for metric, record in best.items()
        if record["iter"] != -1 and current_iter in (None, record["iter"])
    }


@torch.no_grad()
def _share_statistics(model: Any) -> None:
    """Copy the buffers of the first process, which are the ones that are saved, to all processes.

    Without SyncBatchNorm, that is on the CPU, each process has statistics of its own part of the last batch. On any
    device, each process has its own batches for the statistics of a schedule-free optimizer's averaged weights.
    """
    for network in (getattr(model, name, None) for name in ("net_g", "net_g_ema")):
        for buffer in network.buffers() if network is not None else ():
            torch.distributed.broadcast(buffer, src=0)
    if getattr(model, "schedule_free", None):
        model.schedule_free.share_statistics()


def _add_missing_records(records: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> None:
    """Create records for metrics that are new in a resumed training run, or whose ``better`` has changed."""
    for metric, options in metrics.items():
        way = options.get("better", "higher")
        if records.get(metric, {}).get("better") != way:
            records[metric] = {"better": way, "val": -math.inf if way == "higher" else math.inf, "iter": -1}


def _place(model: Any) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if not model.opt["dist"]:
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _restore_and_measure(
    model: Any, loader: Any, current_iter: int | str, tb_logger: Any, save_img: bool
) -> list[Measured]:
    """Restore, save and measure this process's share of the images."""
    dataset, options = loader.dataset, model.opt["val"]
    name, metrics = dataset.opt["name"], options.get("metrics") or {}
    rank, world_size = _place(model)
    if world_size > 1:
        share = range(rank, len(dataset), world_size)
        loader = DataLoader(dataset, batch_size=1, sampler=share, num_workers=0, generator=loader.generator)
    extended = isinstance(model, MeasuresInputs)
    input_metrics = metrics if extended and name not in model.input_values else {}
    pictures = PICTURES if extended and tb_logger and model.opt["is_train"] else 0
    names = _result_names(dataset)
    measured = []
    bar = tqdm(total=len(loader), unit="image", disable=rank > 0 or not options.get("pbar", False))
    if extended:
        model.validating = True
    wrapped = getattr(model, "net_g", None)
    if wrapped is not None:  # DistributedDataParallel would wait for processes that have no image
        model.net_g = model.get_bare_model(wrapped)
    try:
        for number, item in enumerate(loader):
            path = item["lq_path"][0]
            known = names.get(path) or without_suffix(Path(path).name)
            stem = item["result_name"][0] if "result_name" in item else known
            with explain_shape_error(f"restore {stem!r} of {name}", item):
                visuals = _restore(model, item)
            image = tensor2img([visuals["result"]])
            if save_img:
                write_png(Path(_image_path(model, name, stem, current_iter)), image)
            finite = bool(torch.isfinite(visuals["result"]).all())
            truth = tensor2img([visuals["gt"]]) if metrics and "gt" in visuals else None
            values = measure(metrics, image, truth, stem, name) if finite else dict.fromkeys(metrics, math.nan)
            before = tensor2img([_enlarged_input(visuals)]) if input_metrics else image
            inputs = measure(input_metrics, before, truth, stem, name)
            if number < pictures:
                _show(tb_logger, f"{name}/{stem}", visuals, current_iter)
            label = _label(item, dataset.opt.get("dataroot_lq"))
            measured.append(Measured(rank + number * world_size, Path(path).name, label, values, inputs, finite))
            bar.update(1)
            bar.set_description(f"Test {stem}")
    finally:
        bar.close()
        if wrapped is not None:
            model.net_g = wrapped
        if extended:
            model.validating = False
    return measured


def _result_names(dataset: Any) -> dict[str, str]:
    """Return image path -> name of its result for a BasicSR dataset that lists its images."""
    paths = [path for path in getattr(dataset, "paths", []) if isinstance(path, str)]
    return dict(zip(paths, result_names(paths, user_path(dataset.opt.get("dataroot_lq") or "")), strict=True))


def _restore(model: Any, item: dict[str, Any]) -> dict[str, Tensor]:
    """Return the model's visuals of an item, (1, C, H, W) on the CPU, and free the model's tensors."""
    model.feed_data(item)
    model.test()
    visuals = model.get_current_visuals()
    for name in ("lq", "output", "gt"):
        if name in vars(model):
            delattr(model, name)
    torch.cuda.empty_cache()
    return visuals


def _enlarged_input(visuals: dict[str, Tensor]) -> Tensor:
    """Return the input, upsampled to the size of the result in super-resolution."""
    return enlarge(visuals["lq"], visuals["result"].shape[-2:])


def _image_path(model: Any, dataset: str, stem: str, current_iter: int | str) -> str:
    """Return SRModel's path of a restored image; with several datasets in training, in a folder per dataset."""
    root = model.opt["path"]["visualization"]
    if model.opt["is_train"]:
        sets = [phase for phase in model.opt.get("datasets", {}) if phase != "train"]
        folder = osp.join(root, dataset) if len(sets) > 1 else root  # two datasets may have images with the same name
        return osp.join(folder, stem, f"{stem}_{current_iter}.png")
    return osp.join(root, dataset, f"{stem}_{model.opt['val'].get('suffix') or model.opt['name']}.png")


def _show(tb_logger: Any, title: str, visuals: dict[str, Tensor], current_iter: int | str) -> None:
    """Add the input, the restored image and the ground truth side by side to TensorBoard."""
    pictures = [_enlarged_input(visuals), visuals["result"], *([visuals["gt"]] if "gt" in visuals else [])]
    height, width = pictures[0].shape[-2:]
    top, left = max(0, height - PICTURE_SIDE) // 2, max(0, width - PICTURE_SIDE) // 2
    parts = [picture[0, :, top : top + PICTURE_SIDE, left : left + PICTURE_SIDE] for picture in pictures]
    tb_logger.add_image(title, torch.cat(parts, dim=-1).nan_to_num(0.0).clamp(0, 1), current_iter)


def _label(item: dict[str, Any], root: str | None) -> str:
    """Return the label of an item, ignoring folders above the dataset."""
    if "label" in item:
        return item["label"][0]
    path = item["lq_path"][0]
    if root is not None and Path(path).is_relative_to(user_path(root)):
        path = Path(path).relative_to(user_path(root)).as_posix()
    return label_of(path) or UNLABELED


def _of_all_processes(measured: list[Measured]) -> list[Measured]:
    """Return the results of all processes, in the order of the dataset."""
    # As pickled objects: tensors would have to be on the device for NCCL and MPS, and MPS lacks float64.
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, measured)
    return sorted((one for share in shares for one in share), key=lambda one: one.index)
