"""Run BasicSR's own training and test pipelines on a checked option file."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import basicsr.test
import basicsr.train
import basicsr.utils.logger
import torch

from restormixer_arch.basicsr_adapter.loader_hooks import (
    ending_prefetcher,
    exact_loader,
    named_build_dataset,
    resumable_sampler,
)
from restormixer_arch.basicsr_adapter.output import is_first_process
from restormixer_arch.basicsr_adapter.pipeline_options import pipeline_options
from restormixer_arch.basicsr_adapter.progress import Progress
from restormixer_arch.basicsr_adapter.replacing import replaced
from restormixer_arch.basicsr_adapter.reports import Reports
from restormixer_arch.basicsr_adapter.run_hooks import Run, watched_build
from restormixer_arch.basicsr_adapter.sampler import seeded_dataloader
from restormixer_arch.basicsr_adapter.stopping import noticing_signals
from restormixer_arch.basicsr_adapter.threads import opencv_alone
from restormixer_arch.config.check import Request
from restormixer_arch.config.signatures import check_names


def run_training(request: Request, run: Run) -> None:
    """Train; ``run`` is kept up to date, so that the caller can tell how far it came if it is interrupted.

    Raises:
        UserError: a mistake in the option file or the data that shows only now; a checkpoint that cannot be saved.
        Stopped: a signal has ended it.
    """
    check_names(request.options, request.shown, request.is_train)
    train, prefetch = basicsr.train, ending_prefetcher
    shown = None if is_first_process() else False
    with ExitStack() as stack:
        stack.enter_context(_logging(run))
        stack.enter_context(opencv_alone())
        stack.enter_context(noticing_signals(run.stopping))
        stack.callback(run.end_loaders)
        reports = stack.enter_context(Reports(run))
        run.progress = stack.enter_context(Progress(request.options["train"]["total_iter"], shown=shown))
        stack.enter_context(
            replaced(
                train,
                parse_options=_parse_options(request, run),
                load_resume_state=_load_resume_state(train.load_resume_state, request),
                init_tb_loggers=_init_tb_loggers(train.init_tb_loggers, run),
                build_dataset=named_build_dataset(train.build_dataset, run),
                build_dataloader=seeded_dataloader(train.build_dataloader),
                EnlargedSampler=resumable_sampler(run),
                create_train_val_dataloader=exact_loader(train.create_train_val_dataloader, run),
                build_model=reports.build(watched_build(train.build_model, run)),
                MessageLogger=reports.begin(train.MessageLogger),
                CPUPrefetcher=prefetch(train.CPUPrefetcher, run),
                CUDAPrefetcher=prefetch(train.CUDAPrefetcher, run),
            )
        )
        train.train_pipeline(os.getcwd())


def run_test(request: Request, run: Run) -> None:
    """Test; afterwards ``run.model`` holds what was measured.

    Raises:
        UserError: a mistake in the option file or the data that shows only now.
    """
    check_names(request.options, request.shown, request.is_train)
    test = basicsr.test
    with (
        _logging(run),
        replaced(
            test,
            parse_options=_parse_options(request, run),
            build_dataset=named_build_dataset(test.build_dataset, run),
            build_model=watched_build(test.build_model, run),
        ),
    ):
        test.test_pipeline(os.getcwd())


def _parse_options(request: Request, run: Run) -> Callable[..., tuple[dict[str, Any], Namespace]]:
    def parse_options(root_path: str, is_train: bool = True) -> tuple[dict[str, Any], Namespace]:
        run.opt, args = pipeline_options(request, root_path)
        run.stopping.launched = run.opt["dist"]
        return run.opt, args

    return parse_options


def _load_resume_state(original: Callable[..., Any], request: Request) -> Callable[..., Any]:
    def load_resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
        state = original(opt)
        if state is not None and request.options.get("manual_seed") is None:
            opt["manual_seed"] = state.get("manual_seed", opt["manual_seed"])  # the one drawn at the first start
        return state

    return load_resume_state


def _init_tb_loggers(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    def init_tb_loggers(opt: dict[str, Any]) -> Any:
        run.tb_logger = original(opt)
        return run.tb_logger

    return init_tb_loggers


@contextmanager
def _logging(run: Run) -> Iterator[None]:
    """Leave no log file open and no process group alive after the run, so that another can follow in this process."""
    try:
        yield
    finally:
        for logger in (logging.getLogger("restormixer_arch"), logging.getLogger("basicsr")):
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
                handler.close()
            logger.propagate = True
        basicsr.utils.logger.initialized_logger.pop("basicsr", None)
        if run.opt.get("dist") and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
