"""One run of BasicSR's pipelines as it is watched, and the model that is kept for it.

The names of the pipelines that are replaced for the time of a run: here ``build_model``, whose model's steps,
validations and resumption are followed, and in :mod:`.loader_hooks` those around the data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from restormixer_arch.basicsr_adapter.output import note, warn
from restormixer_arch.basicsr_adapter.progress import Progress
from restormixer_arch.basicsr_adapter.randomness import set_generator_states, undisturbed
from restormixer_arch.basicsr_adapter.replacing import replaced
from restormixer_arch.basicsr_adapter.sampler import ResumableSampler
from restormixer_arch.basicsr_adapter.stopping import Stopped, Stopping
from restormixer_arch.basicsr_adapter.threads import share_cores
from restormixer_arch.errors import UserError


class _Left(Exception):
    """A validation was left because the training is to stop."""


@dataclass
class Run:
    """One run of a pipeline, as far as it has come.

    Attributes:
        shown: the option file's name for messages.
        opt: BasicSR's options, once they are made.
        model: the model, once it is built.
        iteration: training iterations done.
        progress: the bar of a training.
        stopping: whether a signal has asked to stop.
        sampler: of the training images, once it is made.
        val_loaders: of the validation images, once they are made.
        prefetcher: what takes the training batches from their loader, once it is made.
        tb_logger: BasicSR's tensorboard logger, or None.
        images: name of a validated or tested data set -> its number of images.
    """

    shown: str
    opt: dict[str, Any] = field(default_factory=dict)
    model: Any = None
    iteration: int = 0
    progress: Progress | None = None
    stopping: Stopping = field(default_factory=Stopping)
    sampler: ResumableSampler | None = None
    val_loaders: list[Any] = field(default_factory=list)
    prefetcher: Any = None
    tb_logger: Any = None
    images: dict[str, int] = field(default_factory=dict)
    _saved: int = 0  # the iteration of the last checkpoint
    _owed: bool = False  # the validations that the killed run owed after its last checkpoint
    _validated: set[tuple[int, int]] = field(default_factory=set)

    @property
    def total(self) -> int:
        return self.opt["train"]["total_iter"]

    def watch(self, model: Any) -> None:
        """Follow any model of BasicSR through the methods that the pipelines call."""
        self.model = model
        model.run_state = self.state
        optimize, validate = model.optimize_parameters, model.validation
        resume, save_state = model.resume_training, model.save_training_state

        def optimize_parameters(current_iter: int) -> None:
            if self.stopping.insisted:  # it was lost in a destructor, such as that of the loader's iterator
                raise KeyboardInterrupt
            if self.progress:
                self.progress.start(self.iteration)
            optimize(current_iter)
            self.iteration = current_iter
            if self.progress:
                self.progress.step(current_iter, getattr(model, "log_dict", {}))

        def validation(dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool = False) -> None:
            self._validate(validate, dataloader, current_iter, tb_logger, save_img)

        def resume_training(resume_state: dict[str, Any]) -> None:
            resume(resume_state)
            self.resume(resume_state)

        def save_training_state(epoch: int, current_iter: int | str) -> None:
            save_state(epoch, current_iter)
            if current_iter == self.iteration:
                self._saved = self.iteration

        model.optimize_parameters = optimize_parameters
        model.validation = validation
        model.resume_training = resume_training
        model.save_training_state = save_training_state

    def end_loaders(self) -> None:
        """End the processes that load training images, also after an error."""
        if self.prefetcher:
            self.prefetcher.end()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the run: where it is in its data, and whether this place is validated."""
        done = all((id(loader), self.iteration) in self._validated for loader in self.val_loaders)
        position = self.sampler.position() if self.sampler else None
        return {"position": position, "manual_seed": self.opt["manual_seed"], "validated": done}

    def resume(self, state: dict[str, Any]) -> None:
        """Go to the place that a checkpoint holds, in the data and in the random numbers."""
        self.iteration = self._saved = state["iter"]
        if self.iteration > self.total:
            raise UserError(
                f"{self.shown}: train.total_iter: is {self.total}, but the training to resume has done "
                f"{self.iteration} iterations; raise it"
            )
        if state.get("position") and self.sampler and not self.sampler.resume(state["position"]):
            warn("the data set has another size than before: its epoch begins anew")
        if state.get("manual_seed", self.opt["manual_seed"]) != self.opt["manual_seed"]:
            note(f"manual_seed was {state['manual_seed']}: from here on, {self.opt['manual_seed']} shuffles and varies")
        generators, rank = state.get("generators", []), self.opt["rank"]
        if rank < len(generators):
            set_generator_states(generators[rank])
        freq = (self.opt.get("val") or {}).get("val_freq")
        self._owed = bool(freq) and self.iteration % freq == 0 and not state.get("validated", True)

    def between_iterations(self) -> None:
        """Do what is due before the next batch is loaded.

        Raises:
            Stopped: a signal has come; the checkpoint is saved.
        """
        self.stopping.running = True
        if self._owed:
            self._owed = False
            for loader in self.val_loaders:
                self.model.validation(loader, self.iteration, self.tb_logger, self.opt["val"]["save_img"])
        number = self.stopping.agreed()
        if not number or self.iteration >= self.total:
            return
        if self._saved != self.iteration:
            self.model.save(self.sampler.epoch, self.iteration)
        raise Stopped(number)

    def _validate(
        self, validate: Callable[..., None], dataloader: Any, current_iter: Any, tb_logger: Any, save_img: bool
    ) -> None:
        self.images[dataloader.dataset.opt["name"]] = len(dataloader.dataset)
        if not self.opt["is_train"]:
            validate(dataloader, current_iter, tb_logger, save_img)
            return
        # BasicSR validates at the end even where it has just done so after the last iteration. A training that is
        # asked to stop leaves its validation to the one that goes on.
        done = (id(dataloader), self.iteration)
        if done in self._validated or (self.stopping.agreed() and self.iteration < self.total):
            return
        stack = ExitStack()
        if not self.opt["dist"] and self.iteration < self.total:  # in a job, the processes could not agree here
            stack.enter_context(replaced(self.model, feed_data=self._leaving(self.model.feed_data)))
        try:
            with stack, undisturbed():
                validate(dataloader, current_iter, tb_logger, save_img)
        except _Left:
            return
        self._validated.add(done)
        self._keep_best(dataloader.dataset.opt["name"], current_iter)

    def _leaving(self, feed_data: Callable[[Any], None]) -> Callable[[Any], None]:
        def feed(data: Any) -> None:
            if self.stopping.signal:
                raise _Left
            feed_data(data)

        return feed

    def _keep_best(self, dataset: str, current_iter: int) -> None:
        """Save the weights under the name of each metric that has never been better."""
        for metric, record in getattr(self.model, "best_metric_results", {}).get(dataset, {}).items():
            record["val"] = float(record["val"])
            if record["iter"] == current_iter:
                self.model.save(-1, f"best_{dataset}_{metric}")


def watched_build(original: Callable[..., Any], run: Run) -> Callable[..., Any]:
    def build_model(opt: dict[str, Any]) -> Any:
        # BasicSR has opened its log by now; what the network has to say goes there, too.
        ours = logging.getLogger("restormixer_arch")
        ours.handlers[:] = logging.getLogger("basicsr").handlers
        ours.setLevel(logging.getLogger("basicsr").level)
        ours.propagate = False
        if not opt["is_train"]:
            share_cores(opt, workers=0)
        model = original(opt)
        run.watch(model)
        return model

    return build_model
