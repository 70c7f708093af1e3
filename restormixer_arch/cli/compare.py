"""``basicsr compare``: train, restore and measure several networks with the same budget, from one option file."""

from __future__ import annotations

import signal
from argparse import Namespace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from restormixer_arch.cli.parsing import Parser, add_option_file, add_output, check_new_file, path_name
from restormixer_arch.config.check import raise_problems
from restormixer_arch.errors import UserError
from restormixer_arch.output import note, print_error, print_result, shell_join, shown_path

if TYPE_CHECKING:
    from restormixer_arch.compare.results import Comparison


def run(arguments: list[str]) -> int:
    """Run the comparison; the option file is checked before torch and basicsr are imported.

    Returns:
        Exit code: 0, or 128 plus the number of the signal that stopped the comparison.
    """
    parser = Parser("compare", "Train, restore and measure several networks side by side, from an option file.")
    add_option_file(parser, "resume an earlier run in its folder; networks trained there are kept", required=False)
    parser.add_argument(
        "--steps",
        action="store_true",
        help="only measure the time of each network's training step, for step_seconds; use an idle machine",
    )
    parser.add_argument(
        "--pages",
        nargs="+",
        type=path_name,
        metavar="STUDY.json",
        help="without -opt: generate tables and curves again from the values of studies",
    )
    parser.add_argument(
        "--join",
        nargs="+",
        type=path_name,
        metavar="FOLDER",
        help="without -opt: merge result folders of one study that were trained separately",
    )
    add_output(parser, metavar="FOLDER", help="folder that --pages and --join write to (default: .)")
    parser.add_argument(
        "--report",
        type=path_name,
        metavar="FOLDER",
        help="without -opt: generate report.html again from the results.json in a folder",
    )
    args = parser.parse_args(arguments)
    if [bool(args.opt), bool(args.pages), bool(args.join), bool(args.report)].count(True) != 1:
        parser.error("expected one of -opt, --pages, --join and --report")
    for name in ("steps", "auto_resume", "force_yml"):
        if getattr(args, name) and not args.opt:
            parser.error(f"--{name} needs -opt")
    if args.out and not (args.pages or args.join):
        parser.error("--out needs --pages or --join")
    if args.pages:
        from restormixer_arch.compare.study_page import write_pages

        write_pages(args.pages, args.out or Path())
        return 0
    if args.join:
        from restormixer_arch.compare.study_page import STUDY, write_joined

        out = args.out or Path()
        if out.is_dir():
            check_new_file("--out", out / STUDY)
        write_joined(args.join, out)
        return 0
    if args.report:
        from restormixer_arch.compare import results
        from restormixer_arch.compare.report.page import write_report

        print_result(str(write_report(results.read(args.report), args.report)))
        return 0
    return _compare(args, arguments)


def _compare(args: Namespace, arguments: list[str]) -> int:
    """Run the comparison of an option file; ``args`` was parsed from ``arguments``."""
    from restormixer_arch.compare.options import name_problems_of, read_compare_file

    options = read_compare_file(args.opt, args.force_yml, needs_steps=not args.steps)
    from restormixer_arch.basicsr_adapter import register

    register.load_plugins()
    raise_problems(name_problems_of(options, "."), options, args.opt)
    from restormixer_arch.compare.report import page
    from restormixer_arch.compare.training import ComparisonInterrupted

    if not args.steps:
        page.require_libraries()
    before = signal.signal(signal.SIGTERM, _raise_interrupted)
    try:
        if args.steps:
            _measure_steps(options, args.opt)
        else:
            (_study if options.get("runs") else _comparison)(options, args.auto_resume)
    except (ComparisonInterrupted, KeyboardInterrupt) as end:
        again = arguments if args.auto_resume else [*arguments, "--auto_resume"]
        resume = f"; resume with: {shell_join(['basicsr', 'compare', *again])}"
        print_error("stopped" + resume * (not args.steps))
        return end.code if isinstance(end, ComparisonInterrupted) else 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _comparison(options: dict[str, Any], resume: bool) -> None:
    from restormixer_arch.compare import tables
    from restormixer_arch.compare.run import compare

    comparison, folder = compare(options, resume=resume)
    places = _write(comparison, folder)
    print_result(tables.markdown(comparison))
    print_result(f"results: {_show(places)}")


def _study(options: dict[str, Any], resume: bool) -> None:
    from restormixer_arch.compare import study_page, study_plots, study_run

    found = []
    for comparison, folder in study_run.run_study(options, resume=resume):
        note(f"results: {_show(_write(comparison, folder))}")
        found.append((comparison, folder))
        result, root = study_run.study_of(options, [comparison for comparison, _ in found]), folder.parent
        # Write the study so far, since the next run may take hours.
        places = [*study_page.write(result, root), study_plots.draw(result, root / "study.png")]
    if options.get("context"):
        fields = root / study_plots.CONTEXT
        study_run.add_context(result, options, found, fields)
        study_page.write(result, root)
        places.append(study_plots.draw_context(result.context, fields, root / f"{study_plots.CONTEXT}.png"))
    print_result(study_page.markdown(result))
    print_result(f"results: {_show(places)}")


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    from restormixer_arch.compare import results, tables
    from restormixer_arch.compare.report import page

    return [results.write(comparison, folder), *tables.write(comparison, folder), page.write_report(comparison, folder)]


def _show(places: list[Path]) -> str:
    return ", ".join(shown_path(place) for place in places)


def _measure_steps(options: dict[str, Any], shown: str) -> None:
    """Measure and print ``step_seconds`` of each competitor on this machine.

    Raises:
        UserError: if no competitor is trained.
    """
    import tempfile

    from restormixer_arch.compare.options import is_trained
    from restormixer_arch.compare.run import threads_of
    from restormixer_arch.compare.training import measure_steps

    names = [name for name in options["competitors"] if is_trained(options, name)]
    if not names:
        raise UserError(f"{shown}: --steps: no competitor is trained, so there is no step to measure")
    with tempfile.TemporaryDirectory(prefix="basicsr_compare_") as folder:
        for name, seconds in measure_steps(options, names, Path(folder), threads_of(options)).items():
            print_result(f"{name}: step_seconds: {seconds:.4f}")


def _raise_interrupted(number: int, frame: FrameType | None) -> None:
    from restormixer_arch.compare.training import ComparisonInterrupted

    raise ComparisonInterrupted(128 + number)
