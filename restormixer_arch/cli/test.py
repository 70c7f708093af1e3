"""``basicsr test``: restore and measure images from an option file."""

from __future__ import annotations

from restormixer_arch.cli.parsing import option_file_parser
from restormixer_arch.config.check import read_request
from restormixer_arch.output import print_result, warn


def run(arguments: list[str]) -> int:
    """Run the test; the option file is checked before torch and basicsr are imported. Returns the exit code."""
    parser = option_file_parser("test", "Restore and measure images from an option file.")
    parser.add_argument("--skip-missing", action="store_true", help="leave out datasets that are not there")
    args = parser.parse_args(arguments)
    request = read_request(
        args.opt,
        is_train=False,
        force_yml=args.force_yml,
        launcher=args.launcher,
        auto_resume=args.auto_resume,
        debug=args.debug,
        skip_missing=args.skip_missing,
    )
    if (request.options.get("path") or {}).get("pretrain_network_g") is None:
        warn(f"{args.opt}: path.pretrain_network_g names no weights: the network is measured as it starts")
    from restormixer_arch.basicsr_adapter import register

    register.load_plugins()
    from restormixer_arch.training.results import test_lines
    from restormixer_arch.training.run import test

    for line in test_lines(test(request)):
        print_result(line)
    return 0
