"""Train from an option file: build, resume, iterate, log, validate, save and stop.

The loop uses BasicSR's registries, builders, loggers and model interface, so every model, network, loss and dataset of
BasicSR and its plug-ins works as in BasicSR's own loop.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from basicsr.models import build_model
from basicsr.models.base_model import BaseModel
from basicsr.train import init_tb_loggers
from basicsr.utils import AvgTimer, MessageLogger

from restormixer_arch.config.check import Request
from restormixer_arch.config.yaml_file import copy_option_file
from restormixer_arch.errors import UserError
from restormixer_arch.models.optimizers import average_tensors
from restormixer_arch.models.shape_errors import explain_shape_error
from restormixer_arch.models.validation import last_means, run_validation
from restormixer_arch.output import is_first_process, note, warn
from restormixer_arch.protocol import MeasuresInputs
from restormixer_arch.training.checkpoint import keep_generator_states, replace_saving, set_generator_states
from restormixer_arch.training.distributed import lost_peer, opencv_single_threaded, share_cores
from restormixer_arch.training.interrupt import CHECKPOINT, LAST_VALIDATION, Interrupt, Stopped, handle_signals
from restormixer_arch.training.loader import Batches, build_training_loader, build_validation_loaders
from restormixer_arch.training.options import make_folders, make_opt
from restormixer_arch.training.reports import Progress, Reports, as_markdown
from restormixer_arch.training.resume import (
    archive_newer,
    continues_own_run,
    load_resume_state,
    resume_training,
    update_learning_rate,
)
from restormixer_arch.training.run import Run

UNUSED_PARAMETERS = "Expected to have finished reduction in the prior iteration"  # error of DistributedDataParallel


class Training(Run):
    """A training run from an option file. If it is interrupted, the attributes show its progress.

    Args:
        request: checked option file and command-line switches.
        on_iteration: function called with the number of iterations done, before the first one and after each.
        kept: False for a few iterations in a temporary folder: the run is not validated at the end, and stops
            immediately on a signal.

    Attributes:
        iteration: number of iterations done.
        val_loaders: data loaders of the validation images.
    """

    def __init__(self, request: Request, on_iteration: Callable[[int], object] = bool, *, kept: bool = True) -> None:
        super().__init__(request)
        self.on_iteration, self.kept = on_iteration, kept
        self.iteration = 0
        self.val_loaders: list[Any] = []
        self.interrupt = Interrupt()
        self.batches: Batches | None = None
        self.reports: Reports | None = None  # only in the first process of a job
        self._saved_at = 0  # the iteration of the last checkpoint
        self._loss_sums: dict[str, list[float]] = {}  # losses saved in the checkpoint to resume from
        self._validated_at: list[int] = []  # last validated iteration of each of val_loaders

    @property
    def total(self) -> int:
        return self.opt["train"]["total_iter"]

    def run(self) -> None:
        """Train from the beginning or from a checkpoint to the last iteration.

        Raises:
            UserError: if the option file or the data has an error that can be detected only now, or a checkpoint
                cannot be saved.
            Stopped: if a signal has stopped the run.
        """
        with self._prepare() as stack:
            stack.enter_context(opencv_single_threaded())
            stack.enter_context(handle_signals(self.interrupt))
            stack.callback(self._end)
            state = self._build()
            if state:
                self._resume(state)
            self._open_reports(stack)
            begin = time.time()
            self.interrupt.running = self.kept
            if state and self._validation_is_due() and not state.get("validated", True):
                self.validate()  # the run was stopped before this validation
            self._iterate()
            consumed = datetime.timedelta(seconds=int(time.time() - begin))
            self.logger.info(f"End of training. Time consumed: {consumed}")
            self.logger.info("Save the latest model.")
            self.model.save(epoch=-1, current_iter=-1)  # -1 means latest
            if self.opt.get("val") is not None and self.kept:
                self.validate()
            if self.tb_logger:
                self.tb_logger.close()

    # --- build and resume --------------------------------------------------------------------------------------------

    def _build(self) -> dict[str, Any] | None:
        """Build options, log, data and model; return the state to resume from, or None."""
        root = os.getcwd()
        opt = self.opt = make_opt(self.request, root)
        opt["root_path"] = root
        self.interrupt.has_launcher = opt["dist"]
        torch.backends.cudnn.benchmark = True
        self._lock_folder()
        state = load_resume_state(opt)
        if state is None or not continues_own_run(opt):
            self._made = make_folders(opt, self.request.path)
        if state and self.request.options.get("manual_seed") is None:
            opt["manual_seed"] = state.get("manual_seed", opt["manual_seed"])  # the seed drawn at the first start
        self._lock_folder()
        folder = Path(opt["path"]["experiments_root"])
        if opt["rank"] == 0 and self.request.path.resolve().parent != folder.resolve():
            copy_option_file(self.request.path, self.request.overrides, folder)
        self.logger = self._open_log("train")
        self.tb_logger = init_tb_loggers(opt)
        loader, self.sampler = build_training_loader(opt, self.request.shown)
        self.batches = Batches(loader, opt)
        self.val_loaders = build_validation_loaders(opt, self.request.shown)
        self._validated_at = [-1] * len(self.val_loaders)
        share_cores(opt, loader.num_workers)
        self.model = build_model(opt)
        replace_saving(self.model, self._state)
        if state is None and not opt["path"].get("pretrain_network_g"):
            self._average_buffers(decay=0)  # the averages start from the network's
        return state

    def _resume(self, state: dict[str, Any]) -> None:
        """Restore the model, the position in the data, and the random generators."""
        resume_training(self.model, state)
        self.logger.info(f"Resuming training from epoch: {state['epoch']}, iter: {state['iter']}.")
        self.iteration = self._saved_at = state["iter"]
        self._loss_sums = state.get("loss_sums") or {}
        if self.iteration > self.total:
            raise UserError(
                f"{self.request.shown}: train.total_iter: is {self.total}, but the training to resume has done "
                f"{self.iteration} iterations; raise it"
            )
        if self.opt["rank"] == 0 and continues_own_run(self.opt):
            archive_newer(self.opt, self.iteration)
        self.sampler.set_epoch(state["epoch"])
        if state.get("position") and not self.sampler.resume(state["position"]):
            warn("the dataset size has changed; the epoch starts again")
        seed = self.opt["manual_seed"]
        if state.get("manual_seed", seed) != seed:
            note(f"manual_seed was {state['manual_seed']}: from now on, {seed} is used for shuffling and augmentation")
        generators, rank = state.get("generators", []), self.opt["rank"]
        if rank < len(generators):
            set_generator_states(generators[rank])

    def _open_reports(self, stack: ExitStack) -> None:
        """Open the log of the losses, the tables and the progress bar, at the iteration to start from."""
        self.message_logger = MessageLogger(self.opt, self.iteration, self.tb_logger)
        if self.opt["rank"] == 0:
            self.reports = Reports(self.opt, self.iteration)
            self.reports.sums = self._loss_sums
            if self.tb_logger:
                self.tb_logger.add_text("options", as_markdown(self.opt), self.iteration)
        shown = None if is_first_process() else False
        self.progress = stack.enter_context(Progress(self.total, shown=shown))
        self.logger.info(f"Start training from epoch: {self.sampler.epoch}, iter: {self.iteration}")

    def _state(self) -> dict[str, Any]:
        """Return the entries of the training loop for a checkpoint."""
        return {
            "position": self.sampler.position(),
            "manual_seed": self.opt["manual_seed"],
            "validated": all(iteration == self.iteration for iteration in self._validated_at),
            "loss_sums": self.reports.sums_as_numbers() if self.reports else {},
        }

    # --- iterate -----------------------------------------------------------------------------------------------------

    def _iterate(self) -> None:
        """Train up to the last iteration.

        Raises:
            Stopped: if a signal was received; the checkpoint is saved.
        """
        self.data_timer, self.iter_timer = AvgTimer(), AvgTimer()
        self.on_iteration(self.iteration)
        epoch = self.sampler.epoch
        while self.iteration < self.total:
            self.sampler.set_epoch(epoch)
            with closing(self.batches.epoch()) as batches:
                while self.iteration < self.total:
                    self._stop_if_asked()
                    batch = next(batches, None)
                    if batch is None:
                        break
                    self.data_timer.record()
                    self._step(batch)
                    self.iter_timer.record()
                    self._log()
                    if self.iteration % self.opt["logger"]["save_checkpoint_freq"] == 0:
                        self.logger.info("Saving models and training states.")
                        self.save()
                    if self._validation_is_due():
                        self.validate()
                    self.on_iteration(self.iteration)
                    self.data_timer.start()
                    self.iter_timer.start()
            epoch += 1

    def _step(self, batch: dict[str, Any]) -> None:
        """Train on one batch."""
        model, iteration = self.model, self.iteration + 1
        self.sampler.consumed += self.batches.loader.batch_size * self.opt["world_size"]
        update_learning_rate(model, iteration)
        model.feed_data(batch)
        if self.interrupt.quits_at_once:  # its exception was lost in a destructor, such as that of a loader's iterator
            raise KeyboardInterrupt
        self.progress.start(self.iteration)
        try:
            with nullcontext() if self.begun else explain_shape_error("be trained on this batch", batch, lost_peer):
                model.optimize_parameters(iteration)
        except RuntimeError as error:
            if UNUSED_PARAMETERS not in str(error):
                raise
            text = "find_unused_parameters: the network has parameters without a gradient; set it to true"
            raise UserError(f"{self.request.shown}: {text}") from error
        self._average_buffers(getattr(model, "ema_decay", 0))
        self.iteration, self.begun = iteration, True

    def _average_buffers(self, decay: float) -> None:
        """Average buffers, such as BatchNorm statistics, like the weights; BasicSR's models average only weights."""
        model = self.model
        if getattr(type(model), "model_ema", None) is BaseModel.model_ema and hasattr(model, "net_g_ema"):
            trained = dict(model.get_bare_model(model.net_g).named_buffers())
            averages = {  # a cache may exist in one of them, or depend on the size of the last image
                name: average
                for name, average in model.net_g_ema.named_buffers()
                if name in trained and trained[name].shape == average.shape
            }
            average_tensors(averages, trained, decay)

    def _log(self) -> None:
        """Report the losses of this iteration."""
        iteration, freq = self.iteration, self.opt["logger"]["print_freq"]
        losses, rates = self.model.get_current_log(), self.model.get_current_learning_rate()
        self.progress.learning_rate = rates[0]
        self.progress.step(iteration, losses)
        if self.reports:
            self.reports.add_losses(losses)
            if iteration % freq == 0 or iteration == self.total:
                self.reports.write_losses(iteration, rates[0])
        if iteration == 1:
            self.message_logger.reset_start_time()  # for a better estimate of the time left
        if iteration % freq == 0:
            times = {"time": self.iter_timer.get_avg_time(), "data_time": self.data_timer.get_avg_time()}
            self.message_logger({"epoch": self.sampler.epoch, "iter": iteration, "lrs": rates, **times, **losses})

    def save(self) -> None:
        """Save a checkpoint of this iteration."""
        self.model.save(self.sampler.epoch, self.iteration)
        self._saved_at = self.iteration

    def _stop_if_asked(self) -> None:
        number = self.interrupt.agree_on_signal()
        if number:
            if self._saved_at != self.iteration:
                self.save()
            raise Stopped(number)

    def _end(self) -> None:
        """Stop the loader processes and draw the curves, also after an error."""
        if self.batches:
            self.batches.close()
        if self.reports:
            self.reports.draw()

    # --- validate ----------------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        freq = (self.opt.get("val") or {}).get("val_freq")
        return bool(freq) and self.iteration % freq == 0

    def validate(self) -> None:
        """Validate on every dataset that is not yet validated at this iteration.

        If a signal requests a stop before the last iteration, the rest is left to the run that resumes this one.
        """
        last = self.iteration >= self.total
        self.interrupt.hint = LAST_VALIDATION if last else CHECKPOINT
        # In a job, the processes cannot agree on a signal during a validation.
        stop = None if last or self.opt["dist"] else lambda: bool(self.interrupt.signal)
        for number, loader in enumerate(self.val_loaders):
            if self._validated_at[number] == self.iteration or (self.interrupt.agree_on_signal() and not last):
                continue
            with keep_generator_states():
                save_img = self.opt["val"]["save_img"]
                if not run_validation(self.model, loader, self.iteration, self.tb_logger, save_img, stop):
                    return
            self._validated_at[number] = self.iteration
            self._report_validation(loader.dataset.opt["name"])

    def _report_validation(self, dataset: str) -> None:
        """Report the metrics, and save the weights under the name of each metric that has reached its best value."""
        metrics = last_means(self.model, dataset, self.iteration)
        if metrics and self.reports:
            measured = self.model.gain().get(dataset, {}) if isinstance(self.model, MeasuresInputs) else {}
            inputs = {metric: before for metric, (before, _) in measured.items()}
            self.reports.write_validation(self.iteration, dataset, metrics, inputs)
            psnr = next((name for name in metrics if "psnr" in name.lower()), None)
            if psnr:
                self.progress.psnr = metrics[psnr]
        for metric, record in getattr(self.model, "best_metric_results", {}).get(dataset, {}).items():
            record["val"] = float(record["val"])
            if record["iter"] == self.iteration:
                self.model.save(-1, f"best_{dataset}_{metric}")
