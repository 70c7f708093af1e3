"""Run an option file: the common parts of training and testing, and testing itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.utils import get_env_info, get_root_logger, get_time_str
from basicsr.utils.logger import initialized_logger
from basicsr.utils.options import dict2str

from restormixer_arch.basicsr_adapter.signatures import check_names
from restormixer_arch.config.check import Request
from restormixer_arch.folder_lock import FolderLock
from restormixer_arch.models.validation import run_validation
from restormixer_arch.training.distributed import share_cores
from restormixer_arch.training.loader import build_dataset, build_loader
from restormixer_arch.training.options import make_folders, make_opt, put_back
from restormixer_arch.training.reports import LOGGERS


class Run:
    """A training or test run.

    Attributes:
        opt: BasicSR's options; empty before they are created.
        begun: True once the network has processed a training batch, or, in a test, is built.
        model: BasicSR model; None before it is built.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.lock = FolderLock()
        self.opt: dict[str, Any] = {}
        self.model: Any = None
        self.begun = False
        self._made: dict[str, str | None] = {}  # new folders -> renamed folders of an earlier run

    @contextmanager
    def _prepare(self) -> Iterator[ExitStack]:
        """Check the names in the option file; on exit, close logs and leave the job, so another run can follow.

        If the run fails before it has begun, the folders of an earlier run are restored.
        """
        check_names(self.request.options, self.request.shown, self.request.is_train)
        with ExitStack() as stack:
            stack.callback(self.lock.close)
            stack.push(lambda kind, *_: put_back(self._made) if kind and not self.begun else None)
            stack.callback(self._leave)
            yield stack

    def _leave(self) -> None:
        """Close the logs, and leave the process group of a job."""
        for logger in map(logging.getLogger, LOGGERS):
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
                handler.close()
            logger.propagate = True
        initialized_logger.pop("basicsr", None)
        if self.opt.get("dist") and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _lock_folder(self) -> None:
        """Lock the result folder: that of an earlier run before it is renamed, and then the new one."""
        if self.opt["rank"] == 0:
            self.lock.take(self.opt["path"]["log"])

    def _open_log(self, kind: str) -> logging.Logger:
        """Open BasicSR's log, to the screen and to a file. Messages of this package also go there."""
        log_file = os.path.join(self.opt["path"]["log"], f"{kind}_{self.opt['name']}_{get_time_str()}.log")
        logger = get_root_logger(logger_name="basicsr", log_level=logging.INFO, log_file=log_file)
        ours = logging.getLogger("restormixer_arch")
        ours.handlers[:], ours.propagate = logger.handlers, False
        ours.setLevel(logger.level)
        logger.info(get_env_info())
        logger.info(dict2str(self.opt))
        return logger


class Testing(Run):
    """A test run from an option file.

    Attributes:
        images: dataset name -> number of images.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.images: dict[str, int] = {}

    def run(self) -> None:
        """Restore and measure the images of all datasets; afterwards, ``model`` contains the metrics.

        Raises:
            UserError: if the option file or the data has an error that can be detected only now.
        """
        with self._prepare():
            opt = self.opt = make_opt(self.request, os.getcwd())
            torch.backends.cudnn.benchmark = True
            self._lock_folder()
            self._made = make_folders(opt, self.request.path)
            self._lock_folder()
            logger, loaders = self._open_log("test"), []
            for phase, section in sorted(opt["datasets"].items()):
                dataset = build_dataset(phase, section, self.request.shown)
                logger.info(f"Number of test images in {section['name']}: {len(dataset)}")
                loaders.append(build_loader(dataset, section, opt))
            share_cores(opt, workers=0)
            self.model = build_model(opt)
            self.begun = True
            for loader in loaders:
                name = loader.dataset.opt["name"]
                logger.info(f"Testing {name}...")
                run_validation(self.model, loader, opt["name"], None, opt["val"]["save_img"])
                self.images[name] = len(loader.dataset)


def test(request: Request) -> Testing:
    """Test from an option file; see :class:`Testing`."""
    testing = Testing(request)
    testing.run()
    return testing
