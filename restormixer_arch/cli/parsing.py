"""Provide the argument parsing that the subcommands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from restormixer_arch.data.images import parse_pixels
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.memory import parse_bytes
from restormixer_arch.output import set_shared_job, user_path

MIN_MEMORY = 10**6  # bytes; below this, the unit was probably forgotten
# Help texts of BasicSR's own switches in each command.
RESUMING = {
    "train": "resume from the newest checkpoint",
    "test": "no effect; accepted for compatibility with BasicSR's test script",
}
DEBUGGING = {
    "train": "name the run debug_NAME, log every iteration, validate and save every 8 iterations, no TensorBoard",
    "test": "write to results/debug_NAME",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError for invalid arguments and suggests a close match for unknown switches.

    Attributes:
        shared_job: whether the command may run in several processes, of which only the first one prints.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"basicsr {command}", description=description, allow_abbrev=False)
        self.shared_job = False

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as argparse does, and apply ``shared_job`` to the output of this process."""
        set_shared_job(self.shared_job)
        return super().parse_args(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        hint, (_, _, unknown) = "", message.partition("unrecognized arguments: ")
        if unknown:
            switches = [switch for action in self._actions for switch in action.option_strings]
            hint = "." + did_you_mean(unknown.split()[0].partition("=")[0], switches) if switches else ""
        raise UserError(f"{self.prog}: {message}{hint or '.'} See '{self.prog} --help'")


def option_file_parser(command: str, description: str) -> Parser:
    """Return a parser for the arguments of BasicSR's own train and test scripts.

    Args:
        command: ``train`` or ``test``.
        description: description of the command in its help.
    """
    parser = Parser(command, description)
    add_option_file(parser, RESUMING[command])
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument("--debug", action="store_true", help=DEBUGGING[command])
    parser.add_argument(
        "--local-rank", "--local_rank", type=int, default=0, metavar="N", help="set by torch's launcher; ignored"
    )
    return parser


def add_option_file(parser: Parser, resuming: str, *, required: bool = True) -> None:
    """Add ``-opt``, ``--force_yml`` to override its values, and ``--auto_resume`` with the help text ``resuming``."""
    parser.shared_job = True
    parser.add_argument("-opt", "--opt", required=required, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--auto_resume", action="store_true", help=resuming)
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override values of the file, such as train:ema_decay=0.99 (values as in YAML)",
    )


def add_output(parser: Parser, *, name: str = "out", **settings: Any) -> None:
    """Add the output switch, which every command calls ``-o``, ``--out`` and ``--output``.

    Args:
        parser: parser of the command.
        name: long name that messages show first and that the parsed value has, ``out`` or ``output``.
        settings: further arguments of ``add_argument``.
    """
    other = "output" if name == "out" else "out"
    parser.add_argument("-o", f"--{name}", f"--{other}", type=path_name, **settings)


def check_new_file(switch: str, path: Path) -> None:
    """Raise UserError if the file given by ``switch`` exists already, or its folder is missing or not writable."""
    if path.exists():
        raise UserError(f"{switch}: {str(path)!r} already exists; remove it first or choose another file")
    if not path.parent.is_dir():
        raise UserError(f"{switch}: there is no folder {str(path.parent)!r}")
    check_writable(switch, path.parent)


def check_writable(switch: str, folder: Path) -> None:
    """Raise UserError if no file can be created in a folder, or in the nearest one above it that exists.

    Args:
        switch: command-line option that names the folder, for the message.
        folder: folder that may be missing.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"{switch}: the folder {str(existing)!r} cannot be written into")
    if not existing.is_dir():
        raise UserError(f"{switch}: {str(existing)!r} is not a folder")


@contextmanager
def switches_for(**switches: str) -> Iterator[None]:
    """Report errors about keys of an option file under the command-line options that set them.

    Args:
        switches: command-line option for each key, such as ``dataroot_gt="--gt"``.

    Raises:
        UserError: if one is raised in the block; it names the option that the user typed.
    """
    try:
        yield
    except UserError as error:
        named = [line.partition(":") for line in error.lines]
        raise UserError(*(f"{switches.get(key, key)}{colon}{rest}" for key, colon, rest in named)) from error


def whole_number(text: str) -> int:
    """Parse a whole number from 0 (argparse type)."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def positive_number(text: str) -> int:
    """Parse a whole number from 1 (argparse type)."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def memory_size(text: str) -> int:
    """Parse an amount of memory such as ``3G`` into bytes (argparse type)."""
    try:
        size = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if size < MIN_MEMORY:
        raise argparse.ArgumentTypeError(f"expected an amount such as 3G or 800M, got {text!r}, {size} bytes")
    return size


def path_name(text: str) -> Path:
    """Parse a path that is not empty (argparse type)."""
    if not text:  # such as from an unset shell variable
        raise argparse.ArgumentTypeError("expected a name, got an empty string")
    return user_path(text)


def task_name(text: str) -> str:
    """Parse the name of a task, which must not be empty (argparse type)."""
    if not text:  # such as from an unset shell variable
        raise argparse.ArgumentTypeError("expected a task such as derain, got an empty string")
    return text


def video_quality(text: str) -> int:
    """Parse a whole number from 0 to 51 (argparse type)."""
    if not text.isdecimal() or int(text) > 51:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 51, got {text!r}")
    return int(text)


def number_of_pixels(text: str) -> int:
    """Parse a number of pixels such as ``200M`` (argparse type)."""
    try:
        return parse_pixels(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def share(text: str) -> float:
    """Parse a number from 0 to 1 (argparse type)."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
