"""What is replaced in BasicSR's pipelines around their data, for the time of one run.

- ``create_train_val_dataloader``: BasicSR counts the epochs as if the last incomplete batch were used, but the loader
  drops it, so training ended before ``total_iter``; a batch larger than the data set trained nothing at all.
- ``CPUPrefetcher``, ``CUDAPrefetcher``: they stop giving batches once ``total_iter`` iterations are done, or a signal
  has come. BasicSR leaves its inner loop only after counting further, so that the last validation carried a number
  too high. It also started the loader processes of the first epoch twice.
- ``build_dataset``: what a data set refuses is told with the section of the option file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from restormixer_arch.basicsr_adapter.run_hooks import Run
from restormixer_arch.basicsr_adapter.sampler import ResumableSampler
from restormixer_arch.basicsr_adapter.threads import share_cores
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.errors import UserError


def named_build_dataset(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    def build_dataset(dataset_opt: dict[str, Any]) -> Any:
        phase = next(key for key, value in run.opt["datasets"].items() if value is dataset_opt)
        try:
            for key in ("dataroot_lq", "dataroot_gt"):
                if str(dataset_opt.get(key)).endswith(".lmdb"):
                    LmdbImages(dataset_opt[key], key)  # reading beyond the end of one cut short would kill the process
            dataset = original(dataset_opt)
        except (AssertionError, ValueError, OSError) as error:  # how data sets refuse their folders; UserError, too
            raise UserError(f"{run.shown}: datasets.{phase}: {error}") from error
        if len(dataset) == 0:
            raise UserError(f"{run.shown}: datasets.{phase}: has no image ({dataset_opt.get('dataroot_lq')!r})")
        return dataset

    return build_dataset


def exact_loader(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    def create_train_val_dataloader(opt: dict[str, Any], logger: logging.Logger) -> tuple[Any, ...]:
        loader, sampler, val_loaders, _, total_iters = original(opt, logger)
        if len(loader) == 0:
            batch = f"{loader.batch_size}" + (f" in {opt['world_size']} processes" if opt["world_size"] > 1 else "")
            raise UserError(
                f"{run.shown}: datasets.train: {sampler.size} images do not fill a batch of {batch}; "
                "lower batch_size_per_gpu or raise dataset_enlarge_ratio"
            )
        logger.info(f"Batches per epoch: {len(loader)}, an incomplete last one is dropped. Iterations: {total_iters}.")
        share_cores(opt, loader.num_workers)
        run.sampler, run.val_loaders = sampler, val_loaders
        # Only the upper bound of the loop over epochs: the prefetcher ends the training.
        return loader, sampler, val_loaders, total_iters, total_iters

    return create_train_val_dataloader


def resumable_sampler(run: Run) -> Callable[..., ResumableSampler]:
    def sampler(dataset: Any, num_replicas: int, rank: int, ratio: float = 1) -> ResumableSampler:
        return ResumableSampler(dataset, num_replicas, rank, ratio, seed=run.opt["manual_seed"])

    return sampler


def ending_prefetcher(original: type, run: Run) -> type:
    class EndingPrefetcher(original):  # type: ignore[misc, valid-type]
        """BasicSR's prefetcher up to the last iteration of the run, or to a signal."""

        def __init__(self, loader: Any, *options: Any) -> None:
            super().__init__((), *options)  # without a first batch, since reset() comes before it is asked for
            self.ori_loader = loader
            run.prefetcher = self

        def next(self) -> dict[str, torch.Tensor] | None:
            run.between_iterations()
            batch = super().next() if run.iteration < run.total else None
            if batch is not None:
                run.sampler.consumed += self.ori_loader.batch_size * run.opt["world_size"]
            return batch

        def reset(self) -> None:
            if run.iteration < run.total:
                super().reset()

        def end(self) -> None:
            """End the loader processes at once.

            Where an iterator is only let go of, which an exception's traceback and the cycles of references delay, its
            processes outlive the run, and the process that trained waits for each of them 5 seconds when it ends.
            """
            loader = getattr(self, "loader", None)
            inner = getattr(loader, "generator", None)  # what the thread of 'prefetch_mode: cpu' takes batches from
            for iterator in (loader, inner, getattr(self.ori_loader, "_iterator", None)):
                shut_down = getattr(iterator, "_shutdown_workers", None)  # torch has no public way
                if shut_down:
                    shut_down()

    return EndingPrefetcher
