"""``basicsr demo``: serve a local web page to upload an image, restore it, compare it and download the result."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from restormixer_arch.cli.parsing import Parser
from restormixer_arch.cli.restore import add_settings, restorer_of
from restormixer_arch.errors import UserError
from restormixer_arch.output import print_result, warn

if TYPE_CHECKING:
    from restormixer_arch.inference.restorer import Restorer

DESCRIPTION = """Serve a web page to upload an image, restore it, compare it with the original and download it as PNG.
Only this computer can open it, unless --host is set; nothing is sent anywhere. Press Ctrl-C to stop."""
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def parser() -> Parser:
    parser = Parser("demo", DESCRIPTION)
    parser.add_argument("--port", type=_port, default=7860, metavar="N", help="port to listen on (default: 7860)")
    parser.add_argument(
        "--host", type=_host, default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)"
    )
    add_settings(parser, auto=False)
    return parser


def run(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C, which the caller handles as for every command, or until SIGTERM (exit code 143).

    Raises:
        UserError: if gradio or the weights are missing, or the port is not available.
    """
    args = parser().parse_args(arguments)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("basicsr demo: needs gradio, which is not installed; pip install 'restormixer[demo]'")
    choices = _choices(args)
    _check_address(args.host, args.port)

    @lru_cache(maxsize=1)  # keeps only the network of the last task in memory
    def restorer_for(task: str) -> Restorer:
        return restorer_of(args, choices[task])

    restorer_for(next(iter(choices)))  # reports invalid arguments or weights before serving
    _serve(args, list(choices), restorer_for)
    return 0


def _choices(args: argparse.Namespace) -> dict[str, str | Path]:
    """Return the choices on the page and their weights; the first choice is preselected."""
    from restormixer_arch.inference.installed import DEFAULT_TASK, installed_tasks, installed_weights

    if args.weights:
        return {Path(args.weights).stem: args.weights}
    first = DEFAULT_TASK if args.task is None else args.task
    return {task: installed_weights(task) for task in dict.fromkeys([first, *installed_tasks()])}


def _check_address(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = f"is not available ({error.strerror}); try another"
        raise UserError(f"--host, --port: {host}:{port} {reason}") from error


def _serve(args: argparse.Namespace, tasks: list[str], restorer_for: Callable[[str], Restorer]) -> None:
    with tempfile.TemporaryDirectory(prefix="restormixer-demo-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # for uploads and the images that the page shows
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        _bypass_proxy(args.host)
        from restormixer_arch.cli.demo_page import Page

        page = Page(tasks, restorer_for, Path(folder))
        before = signal.signal(signal.SIGTERM, _leave)
        try:
            page.open(args.host, args.port)
            if args.host not in LOCAL_HOSTS:
                warn(f"--host: anyone who can reach {args.host} over the network can use this page")
            shown = f"[{args.host}]" if ":" in args.host else args.host
            print_result(f"running on http://{shown}:{args.port}; press Ctrl-C to stop")
            while True:
                time.sleep(3600)
        finally:
            page.close()
            signal.signal(signal.SIGTERM, before)


def _bypass_proxy(host: str) -> None:
    """Exclude the server's address from a configured proxy, so gradio can check directly that the server runs."""
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), *LOCAL_HOSTS, host]))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _host(text: str) -> str:
    if not text:  # such as from an unset shell variable
        raise argparse.ArgumentTypeError("expected a name, got an empty string")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)
