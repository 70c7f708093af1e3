"""``basicsr train``: train by an option file, with BasicSR's training pipeline."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from restormixer_arch.basicsr_adapter.option_check import read_request
from restormixer_arch.basicsr_adapter.output import complain, say
from restormixer_arch.cli.parsing import option_file_parser

if TYPE_CHECKING:
    from restormixer_arch.basicsr_adapter.run_hooks import Run


def run(arguments: list[str]) -> int:
    """Train; the option file is checked before torch and basicsr are imported. Returns the exit code."""
    args = option_file_parser("train", "Train a network by an option file.").parse_args(arguments)
    request = read_request(
        args.opt,
        is_train=True,
        force_yml=args.force_yml,
        launcher=args.launcher,
        auto_resume=args.auto_resume,
        debug=args.debug,
    )
    from restormixer_arch.basicsr_adapter import plugins

    plugins.load()
    from restormixer_arch.basicsr_adapter.pipeline import run_training
    from restormixer_arch.basicsr_adapter.run_hooks import Run
    from restormixer_arch.cli.results import training_lines

    training = Run(request.shown)
    try:
        run_training(request, training)
    except KeyboardInterrupt:
        complain(interruption(training, arguments))
        return 130
    for line in training_lines(training):
        say(line)
    return 0


def interruption(training: Run, arguments: list[str]) -> str:
    """Say in one line how far the training came, what was saved last, and how to go on."""
    from restormixer_arch.basicsr_adapter.resume import saved_states

    if not training.opt:
        return "stopped before the training began"
    came = f"stopped after iteration {training.iteration} of {training.total}"
    states = saved_states(training.opt["path"]["training_states"])
    if not states:
        return f"{came}; nothing was saved yet"
    resume = arguments if "--auto_resume" in arguments else [*arguments, "--auto_resume"]
    command = shlex.join(["basicsr", "train", *resume])
    return f"{came}; saved last: {os.path.relpath(states[0])}; go on with: {command}"
