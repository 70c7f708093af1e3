"""What is replaced in BasicSR's pipelines for the time of one run, so that it can be watched and ends where it should.

- ``create_train_val_dataloader``: BasicSR counts the epochs as if the last incomplete batch were used, but the loader
  drops it, so training ended before ``total_iter``; a batch larger than the data set trained nothing at all.
- ``CPUPrefetcher``, ``CUDAPrefetcher``: they stop giving batches once ``total_iter`` iterations are done. BasicSR
  leaves its inner loop only after counting further, so that the last validation carried a number too high.
- ``build_model``: the model is kept, and its steps and validations are counted.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from restormixer_arch.basicsr_adapter.progress import Progress
from restormixer_arch.errors import UserError


@dataclass
class Run:
    """One run of a pipeline, as far as it has come.

    Attributes:
        shown: the option file's name for messages.
        opt: BasicSR's options, once they are made.
        model: the model, once it is built.
        iteration: training iterations done.
        progress: the bar of a training.
        interrupted: Ctrl-C was pressed.
        images: name of a validated or tested data set -> its number of images.
    """

    shown: str
    opt: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    iteration: int = 0
    progress: Progress | None = None
    interrupted: bool = False
    images: dict[str, int] = field(default_factory=dict)
    _validated: set[tuple[int, int]] = field(default_factory=set)

    @property
    def total(self) -> int:
        return self.opt["train"]["total_iter"]

    def watch(self, model: Any) -> None:
        """Count the steps of any model of BasicSR through the methods that the training loop calls."""
        self.model = model
        optimize, validate, resume = model.optimize_parameters, model.validation, model.resume_training

        def optimize_parameters(current_iter: int) -> None:
            if self.interrupted:  # it was lost in a destructor, such as that of the loader's iterator
                raise KeyboardInterrupt
            if self.progress:
                self.progress.start(self.iteration)
            optimize(current_iter)
            self.iteration = current_iter
            if self.progress:
                self.progress.step(current_iter, getattr(model, "log_dict", {}))

        def validation(dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool = False) -> None:
            # BasicSR validates at the end even where it has just done so after the last iteration.
            done = (id(dataloader), self.iteration)
            if not self.opt["is_train"] or done not in self._validated:
                validate(dataloader, current_iter, tb_logger, save_img)
                self._validated.add(done)
                self.images[dataloader.dataset.opt["name"]] = len(dataloader.dataset)

        def resume_training(resume_state: dict[str, Any]) -> None:
            resume(resume_state)
            self.iteration = resume_state["iter"]

        model.optimize_parameters = optimize_parameters
        model.validation = validation
        model.resume_training = resume_training


@contextmanager
def noticing_interrupts(run: Run) -> Iterator[None]:
    """Remember Ctrl-C in ``run`` besides raising KeyboardInterrupt, which Python drops within a destructor."""

    def notice(number: int, frame: FrameType | None) -> None:
        run.interrupted = True
        signal.default_int_handler(number, frame)

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # signals belong to somebody else, or are ignored, as under nohup
        return
    signal.signal(signal.SIGINT, notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def replaced(module: Any, **names: Any) -> Iterator[None]:
    """Set attributes of a module and put the old ones back at the end."""
    before = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def watched_build(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    def build_model(opt: dict[str, Any]) -> Any:
        # BasicSR has opened its log by now; what the network has to say goes there, too.
        ours = logging.getLogger("restormixer_arch")
        ours.handlers[:] = logging.getLogger("basicsr").handlers
        ours.setLevel(logging.getLogger("basicsr").level)
        ours.propagate = False
        model = original(opt)
        run.watch(model)
        return model

    return build_model


def named_build_dataset(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    def build_dataset(dataset_opt: dict[str, Any]) -> Any:
        phase = next(key for key, value in run.opt["datasets"].items() if value is dataset_opt)
        try:
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
            raise UserError(
                f"{run.shown}: datasets.train: {len(sampler)} images do not fill a batch of {loader.batch_size}; "
                "lower batch_size_per_gpu or raise dataset_enlarge_ratio"
            )
        logger.info(f"Batches per epoch: {len(loader)}, an incomplete last one is dropped. Iterations: {total_iters}.")
        # Only the upper bound of the loop over epochs: the prefetcher ends the training.
        return loader, sampler, val_loaders, total_iters, total_iters

    return create_train_val_dataloader


def ending_prefetcher(original: type, run: Run) -> type:
    class EndingPrefetcher(original):  # type: ignore[misc, valid-type]
        """BasicSR's prefetcher up to the last iteration of the run."""

        def next(self) -> dict[str, torch.Tensor] | None:
            return super().next() if run.iteration < run.total else None

        def reset(self) -> None:
            if run.iteration < run.total:
                super().reset()

    return EndingPrefetcher
