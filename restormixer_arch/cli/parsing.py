"""Argument parsing shared by the subcommands."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn

from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.memory import parse_bytes


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake as a UserError, with a close match for an unknown switch."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"basicsr {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and leaving."""
        hint, (_, _, unknown) = "", message.partition("unrecognized arguments: ")
        if unknown:
            switches = [switch for action in self._actions for switch in action.option_strings]
            hint = "." + did_you_mean(unknown.split()[0].partition("=")[0], switches) if switches else ""
        raise UserError(f"{self.prog}: {message}{hint or '.'} See '{self.prog} --help'")


def option_file_parser(command: str, description: str) -> Parser:
    """Return a parser of the arguments that BasicSR's own train and test scripts take."""
    parser = Parser(command, description)
    add_option_file(parser, "resume from the newest checkpoint")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm"], default="none", help="job launcher")
    parser.add_argument("--debug", action="store_true", help="log every iteration, validate and save every 8")
    parser.add_argument(
        "--local-rank", "--local_rank", type=int, default=0, metavar="N", help="set by torch's launcher; not used"
    )
    return parser


def add_option_file(parser: Parser, resuming: str) -> None:
    """Add the option file, ``--force_yml`` for its values, and ``--auto_resume``, with ``resuming`` as its help."""
    parser.add_argument("-opt", "--opt", required=True, metavar="FILE", help="option file (YAML)")
    parser.add_argument("--auto_resume", action="store_true", help=resuming)
    parser.add_argument(
        "--force_yml",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override values of the file, such as train:ema_decay=0.99 (values as in YAML)",
    )


def whole_number(text: str) -> int:
    """An argument's type: 0, 1, 2 ..."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def positive_number(text: str) -> int:
    """An argument's type: 1, 2, 3 ..."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def memory_size(text: str) -> int:
    """An argument's type: such as 3G, in bytes."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path_name(text: str) -> Path:
    """An argument's type: a path that is not empty."""
    if not text:  # of a shell variable that is not set
        raise argparse.ArgumentTypeError("expected a name, got none")
    return Path(text).expanduser()


def task_name(text: str) -> str:
    """An argument's type: the name of a task, which is not empty."""
    if not text:  # of a shell variable that is not set
        raise argparse.ArgumentTypeError("expected a task such as derain, got none")
    return text


def video_quality(text: str) -> int:
    """An argument's type: 0 to 51."""
    if not text.isdigit() or int(text) > 51:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 51, got {text!r}")
    return int(text)


def number_of_pixels(text: str) -> int:
    """An argument's type: such as 200M."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d+)?)([kKmMgG]?)", text)
    number = int(float(found[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[found[2].lower()]) if found else 0
    if not number:
        raise argparse.ArgumentTypeError(f"expected a number of pixels such as 200M, got {text!r}")
    return number


def share(text: str) -> float:
    """An argument's type: 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
