"""``basicsr bench``: compare speed, memory and operations of RestorMixer and other networks on this machine."""

from __future__ import annotations

import json

from restormixer_arch.cli.parsing import Parser, check_new_file, path_name, positive_number
from restormixer_arch.errors import UserError
from restormixer_arch.output import print_error, print_result, write_text_atomically
from restormixer_arch.processes import cores, omp_threads


def run(arguments: list[str]) -> int:
    """Measure, print tables and optionally write JSON; after a failure or Ctrl-C, show the results so far.

    Returns:
        Exit code: 0, 2 if a measurement failed, or 130 if stopped by Ctrl-C.
    """
    parser = Parser("bench", "Compare speed and memory of RestorMixer with other networks on this machine.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument(
        "--json", type=path_name, metavar="FILE", help="also write all numbers to FILE, which must not exist yet"
    )
    parser.add_argument(
        "--rounds", type=positive_number, default=7, metavar="N", help="measurements per benchmark (default: 7)"
    )
    parser.add_argument("--threads", type=positive_number, metavar="N", help="threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="only 256x256, without the pure-torch scan")
    args = parser.parse_args(arguments)
    if args.json:
        check_new_file("--json", args.json)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: 'cuda' is not available here, torch finds no CUDA device; expected cpu")
    from restormixer_arch.benchmark.suite import run_suite
    from restormixer_arch.benchmark.tables import figures, markdown

    result = run_suite(args.threads or omp_threads() or cores(), args.rounds, args.quick, args.device)
    print_result(markdown(result))
    if args.json:
        text = json.dumps({**result, "figures": figures(result)}, indent=1)
        write_text_atomically(args.json, text + "\n")
    if result["stopped"]:
        print_error(f"stopped while measuring {result['stopped']}; showing the results so far")
        return 130
    return 2 if result["failed"] else 0
