"""Run the ``basicsr`` command: train, test and restore with BasicSR's registries and models.

A subcommand is a module with ``run(arguments) -> exit code``, listed in :data:`COMMANDS` and imported when it is
called. Exit codes: 0 success, 1 an unexpected error (with its traceback) or a problem found by ``basicsr doctor``,
2 a user error (one line each), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Sequence

from restormixer_arch import __version__
from restormixer_arch.errors import UserError, did_you_mean, file_error, print_user_error
from restormixer_arch.memory import keep_freed_memory
from restormixer_arch.output import print_error, print_result

# name -> (module, description)
COMMANDS = {
    "train": ("restormixer_arch.cli.train", "train a network from an option file"),
    "test": ("restormixer_arch.cli.test", "restore and measure images from an option file"),
    "compare": ("restormixer_arch.cli.compare", "train, restore and measure several networks side by side"),
    "restore": ("restormixer_arch.cli.restore", "restore your own images and videos"),
    "demo": ("restormixer_arch.cli.demo", "restore images on a local web page"),
    "export": ("restormixer_arch.cli.export", "write a network's weights as safetensors, or the network as ONNX"),
    "prepare": (
        "restormixer_arch.cli.prepare",
        "prepare public datasets, or your own images, for the option files",
    ),
    "init": ("restormixer_arch.cli.init", "write an option file for your own data and this machine"),
    "degrade": ("restormixer_arch.cli.degrade", "degrade clean images: overview sheet, fixed sets, speed, coverage"),
    "card": ("restormixer_arch.cli.card", "measure the installed weights on public test sets"),
    "bench": ("restormixer_arch.cli.bench", "compare speed and memory with other networks on this machine"),
    "doctor": ("restormixer_arch.cli.doctor", "show what is installed, what is missing and how to fix it"),
}

LACKING_LIBRARY = re.compile(r"\.so(\.\d+)*: cannot open shared object file")
SYSTEM_LIBRARIES = "OpenCV needs on Debian and Ubuntu: apt install libgl1 libglib2.0-0"

# Torch's OpenMP threads spin for milliseconds while they wait for each other. If other processes keep the cores busy,
# spinning takes the time that the awaited thread needs. Sleeping instead has no measurable cost on an idle machine:
# with two threads on two cores, a forward pass at 256x256 takes 0.62 to 0.69 s either way. Next to two busy processes
# it takes 1.15 s asleep, 2.5 s with 10,000 spins and 4.0 s with libgomp's default. This is read when torch is loaded.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if (
    multiprocessing.current_process().name != "MainProcess"
    and "PoolWorker" not in multiprocessing.current_process().name
):
    # A spawned loader process imports the command's script first and then unpickles BasicSR's datasets. The pool
    # workers of 'basicsr prepare' do not need torch.
    from restormixer_arch.basicsr_adapter import compat

    compat.apply()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: command line without the program's name; ``sys.argv[1:]`` if None.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    try:
        return _run(arguments)
    except UserError as error:
        print_user_error(error)
        return 2
    except KeyboardInterrupt as interrupt:  # Ctrl-C, or another signal that stopped a training run
        print_error("stopped")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    except MemoryError:
        print_error("error: not enough memory")
        return 2
    except ImportError as error:
        if not LACKING_LIBRARY.search(str(error)):
            raise
        print_error(f"error: a library of the system is missing: {error}; {SYSTEM_LIBRARIES}")
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout at exit
        return 1
    except OSError as error:  # such as a full disk or a folder without write permission
        if error.errno is None or not error.strerror:
            raise
        print_error(f"error: {file_error(error)}")
        return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print_result(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        print_result(f"basicsr command of restormixer {__version__}")
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UserError(f"unknown command {name!r}.{hint} Commands: {', '.join(COMMANDS)}")
    return importlib.import_module(COMMANDS[name][0]).run(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: basicsr COMMAND [options]",
            "       basicsr --version",
            "",
            "commands:",
            *lines,
            "",
            "'basicsr COMMAND --help' describes a command.",
        ]
    )
