"""``basicsr compare``: several networks trained under one budget, restored with and measured, by one option file."""

from __future__ import annotations

import os
import shlex
import signal
from types import FrameType

from restormixer_arch.cli.parsing import Parser, add_option_file
from restormixer_arch.config.check import raise_problems
from restormixer_arch.output import complain, say


def run(arguments: list[str]) -> int:
    """Compare; the option file is checked before torch and basicsr are imported.

    Returns:
        The exit code: 0, or 128 and the number of the signal that has ended the comparison.
    """
    parser = Parser("compare", "Train, restore and measure several networks side by side, by an option file.")
    add_option_file(parser, "resume in the folder of an earlier run; networks trained there are kept")
    args = parser.parse_args(arguments)
    from restormixer_arch.compare.options import name_problems_of, read_compare_file

    options = read_compare_file(args.opt, args.force_yml)
    from restormixer_arch.basicsr_adapter import register

    register.load_plugins()
    raise_problems(name_problems_of(options, "."), options, args.opt)
    from restormixer_arch.compare import results, tables
    from restormixer_arch.compare.report import page
    from restormixer_arch.compare.run import compare
    from restormixer_arch.compare.training import Ended

    page.require_libraries()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        comparison, folder = compare(options, resume=args.auto_resume)
    except (Ended, KeyboardInterrupt) as end:
        again = arguments if args.auto_resume else [*arguments, "--auto_resume"]
        complain(f"stopped; resume with: {shlex.join(['basicsr', 'compare', *again])}")
        return end.code if isinstance(end, Ended) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    places = [results.write(comparison, folder), *tables.write(comparison, folder)]
    places.append(page.write_report(comparison, folder))
    say(tables.markdown(comparison))
    say(f"results: {', '.join(os.path.relpath(place) for place in places)}")
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    from restormixer_arch.compare.training import Ended

    raise Ended(128 + number)
