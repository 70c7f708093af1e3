"""``basicsr init``: write an option file for your own data and this machine."""

from __future__ import annotations

from restormixer_arch.cli.parsing import Parser, add_output, check_writable, path_name, task_name
from restormixer_arch.config.rules import name_problem
from restormixer_arch.errors import UserError
from restormixer_arch.output import print_result

DESCRIPTION = (
    "Write a commented option file for a folder of 'basicsr prepare pairs'. Patches, batch and iterations are chosen "
    "by training a few iterations on this machine; the learning rate is scaled with the batch size."
)


def run(arguments: list[str]) -> int:
    """Write the file. Returns the exit code."""
    parser = Parser("init", DESCRIPTION)
    help_text = "folder that 'basicsr prepare pairs' wrote"
    parser.add_argument("--data", type=path_name, required=True, metavar="DIR", help=help_text)
    add_output(parser, name="output", required=True, metavar="FILE", help="option file to write")
    parser.add_argument("--name", help="name of the training (default: that of FILE)")
    help_text = "fine-tune the installed weights of a task, such as derain"
    parser.add_argument("--task", type=task_name, help=help_text)
    parser.add_argument("--network", choices=("s", "base"), default="s", help="size of the network (default: s)")
    parser.add_argument("--hours", type=float, default=1.0, metavar="H", help="hours of training (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    args = parser.parse_args(arguments)
    file, data = args.output, args.data
    if file.exists() and not args.overwrite:
        raise UserError(f"{file}: already exists; choose another --output, or use --overwrite")
    if file.suffix.lower() not in (".yml", ".yaml"):
        raise UserError(f"--output: expected a name that ends in .yml, got {str(args.output)!r}")
    name, option = (file.stem, "--output") if args.name is None else (args.name, "--name")
    if problem := name_problem(name):
        raise UserError(f"{option}: {problem}")
    if not 0 < args.hours < float("inf"):
        raise UserError(f"--hours: expected a positive number, got {args.hours:g}")
    if args.task and args.network != "s":
        raise UserError("--task: installed weights exist for --network s only")
    if not data.is_dir():
        raise UserError(f"--data: {data} is not a folder")
    check_writable("--output", file.parent)
    from restormixer_arch.basicsr_adapter import register
    from restormixer_arch.training.new_options import InitRequest, write_options  # imports torch

    register.load_plugins()
    print_result(write_options(InitRequest(data, file, name, args.task, args.network, args.hours)))
    return 0
