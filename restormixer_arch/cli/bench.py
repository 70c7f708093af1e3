"""``basicsr bench``: speed, memory and operations of RestorMixer beside other networks, on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from restormixer_arch.cli.parsing import Parser
from restormixer_arch.errors import UserError
from restormixer_arch.output import say


def run(arguments: list[str]) -> int:
    """Measure, print tables and write JSON if asked. Returns the exit code."""
    parser = Parser("bench", "Measure RestorMixer beside other networks on this machine.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to FILE, which must not exist yet")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="measurements per benchmark (default: 7)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="only 256x256, without the pure-torch scan")
    args = parser.parse_args(arguments)
    for name in ("rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: got {value}, expected at least 1")
    if args.json and (Path(args.json).exists() or not Path(args.json).absolute().parent.is_dir()):
        raise UserError(f"--json: {args.json!r} must be a new file in a folder that exists")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: 'cuda' is not available here, torch finds no CUDA device; expected cpu")
    from restormixer_arch.benchmark.suite import run_suite
    from restormixer_arch.benchmark.tables import figures, markdown

    result = run_suite(args.threads or torch.get_num_threads(), args.rounds, args.quick, args.device)
    say(markdown(result))
    if args.json:
        text = json.dumps({**result, "figures": figures(result)}, indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0
