"""``basicsr train``: train a network from an option file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from restormixer_arch.cli.parsing import option_file_parser
from restormixer_arch.config.check import read_request
from restormixer_arch.errors import UserError
from restormixer_arch.output import print_error, print_result, shell_join, shown_path

if TYPE_CHECKING:
    from restormixer_arch.training.trainer import Training

LOST_LOADER = re.compile(r"DataLoader worker (?:\(pid(?:\(s\))? [\d, ]+\) )?(.*?)\.?\s*(?:It is possible .*)?$", re.M)


def run(arguments: list[str]) -> int:
    """Run the training; the option file is checked before torch and basicsr are imported.

    Returns:
        Exit code: 0, or 128 plus the number of the signal that stopped the training.
    """
    parser = option_file_parser("train", "Train a network from an option file.")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check options, data and memory, and show how long it will take",
    )
    args = parser.parse_args(arguments)
    request = read_request(
        args.opt,
        is_train=True,
        force_yml=args.force_yml,
        launcher=args.launcher,
        auto_resume=args.auto_resume,
        debug=args.debug,
    )
    from restormixer_arch.basicsr_adapter import register

    register.load_plugins()
    if args.dry_run:
        from restormixer_arch.training.dry_run import dry_run

        for line in dry_run(request):
            print_result(line)
        return 0
    from restormixer_arch.training.distributed import lost_peer
    from restormixer_arch.training.interrupt import Stopped
    from restormixer_arch.training.results import training_lines
    from restormixer_arch.training.trainer import Training

    training = Training(request)
    try:
        training.run()
    except Stopped as stopped:
        print_once(training, interruption_message(training, arguments, f"{stopped}: "))
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print_error(interruption_message(training, arguments))
        return 130
    except RuntimeError as error:
        if training.opt.get("dist") and lost_peer(error):
            raise UserError(
                f"{place(training)}: another process of the job has ended (see its message), or has not responded for "
                "dist_params.timeout_minutes"
            ) from error
        lost = LOST_LOADER.search(str(error))
        if lost is None:
            raise
        fix = "if the memory ran out, lower datasets.train.num_worker_per_gpu or batch_size_per_gpu"
        if "shared memory" in str(error) or "Bus error" in str(error):
            fix = "shared memory ran out: in a container start it with more (docker run --shm-size=2g), or lower "
            fix += "datasets.train.num_worker_per_gpu or batch_size_per_gpu"
        raise UserError(f"a loader process {lost[1]}; {fix}; {interruption_message(training, arguments)}") from error
    for line in training_lines(training):
        print_result(line)
    return 0


def print_once(training: Training, line: str) -> None:
    """Print a line to stderr in the first process of a job only."""
    if training.opt.get("rank", 0) == 0:
        print_error(line)


def place(training: Training) -> str:
    """Return the name of this process within its job, such as ``process 0 of 2``."""
    return f"process {training.opt['rank']} of {training.opt['world_size']}"


def interruption_message(training: Training, arguments: list[str], cause: str = "") -> str:
    """Return a line that states the last iteration, the last checkpoint and how to resume."""
    from restormixer_arch.training.checkpoint import saved_states

    if not training.opt:
        return f"{cause}stopped before the training began"
    came = f"{cause}stopped after iteration {training.iteration} of {training.total}"
    states = saved_states(training.opt["path"]["training_states"])
    if not states:
        return f"{came}; nothing was saved yet"
    resume = arguments if "--auto_resume" in arguments else [*arguments, "--auto_resume"]
    command = shell_join(["basicsr", "train", *resume])
    way = "resume (with the same launcher) with" if training.opt["dist"] else "resume with"
    return f"{came}; last checkpoint: {shown_path(states[0])}; {way}: {command}"
