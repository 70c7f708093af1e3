"""Validation shared out over the processes of a job, with the means of one process."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.data import DataLoader

from restormixer_arch.basicsr_adapter.replacing import replaced


def dist_validation(self: Any, dataloader: DataLoader, current_iter: Any, tb_logger: Any, save_img: bool) -> None:
    """Validate every n-th image in each of n processes; it takes the place of the method of BasicSR's SRModel.

    An image is saved by the process that restored it. Afterwards all processes hold the same means in
    ``self.metric_results``, and in what the model names in ``self.validation_means()``: dicts of data set -> metric ->
    mean. A model with ``validation_shared(name, current_iter, tb_logger)`` joins there what else it has measured.
    """
    name, metrics = dataloader.dataset.opt["name"], self.opt["val"].get("metrics") or {}
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    share = range(rank, len(dataloader.dataset), world_size)
    if share:
        own = DataLoader(dataloader.dataset, batch_size=1, sampler=share, num_workers=0, generator=dataloader.generator)
        with ExitStack() as stack:
            stack.enter_context(replaced(self, _update_best_metric_result=_wait, _log_validation_metric_values=_wait))
            if rank:
                stack.enter_context(_without_bar(self.opt["val"]))
            self.nondist_validation(own, current_iter, None, save_img)
    if not metrics:
        torch.distributed.barrier()  # nobody goes on while images are still being saved
        return
    self.metric_results = _mean_over_processes(self.metric_results if share else {}, metrics, len(share))
    for means in self.validation_means() if hasattr(self, "validation_means") else ():
        means[name] = _mean_over_processes(means.get(name, {}), metrics, len(share))
    self._initialize_best_metric_results(name)
    for metric, value in self.metric_results.items():
        self._update_best_metric_result(name, metric, value, current_iter)
    self._log_validation_metric_values(current_iter, name, tb_logger)
    if hasattr(self, "validation_shared"):
        self.validation_shared(name, current_iter, tb_logger)


def _wait(*values: Any) -> None:
    """Stand in for what has to wait until the means are those of all images."""


def _without_bar(options: dict[str, Any]) -> Any:
    stack = ExitStack()
    stack.callback(options.update, pbar=options.get("pbar", False))
    options["pbar"] = False
    return stack


def _mean_over_processes(means: dict[str, float], metrics: Any, count: int) -> dict[str, float]:
    """Return metric -> mean over the images of all processes, from the mean over ``count`` images of this one."""
    sums = [float(means[metric]) * count if count else 0.0 for metric in metrics]
    # float64 as bytes of the CPU: nccl and MPS would need another device, and MPS has no float64
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, (sums, count))
    total = sum(images for _, images in shares)
    return {metric: sum(values[at] for values, _ in shares) / total for at, metric in enumerate(metrics)}
