"""Acceptance on a GPU: accuracy, time and memory of every scan, training steps, and the commands, in one run.

    python tests/gpu/acceptance.py --out FOLDER            on a GPU, some ten minutes, most of them for compiling
    python tests/gpu/acceptance.py --only accuracy scans   these parts alone; what was compiled is kept
    python tests/gpu/acceptance.py --out FOLDER --tiny     on any machine, with tiny shapes, to try the script itself

The scan's parts need torch and Triton only, and run from a checkout that is not installed. A part that cannot run says
why and does not stop the others: on a GPU each has a process of its own, since a process computes nothing more after an
error of CUDA. The result is FOLDER/acceptance.json and FOLDER/acceptance.md: attach both to an
issue. The exit code is 1 if an accuracy is out of its limit, a kernel spills or a part fails.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import network_parts  # before the package's modules: it makes them importable
import scan_parts
import torch
from scan_parts import DEVICE, GPU, Row

from restormixer_arch.selective_scan import available_backends, backend_report

PARTS = (
    *(scan_parts.accuracy, scan_parts.spills, scan_parts.wide, scan_parts.scans, network_parts.steps),
    *(network_parts.depthwise, network_parts.distributed, network_parts.commands, network_parts.rivals),
    scan_parts.sanitizer,
)
WITH = {"spills": "accuracy"}  # part -> part whose process compiled the kernels that it reports
PART_SECONDS = 600


def machine() -> Row:
    triton = importlib.util.find_spec("triton") and importlib.import_module("triton").__version__
    found = {"device": torch.cuda.get_device_name(DEVICE) if GPU else platform.processor() or "cpu", "triton": triton}
    if GPU:
        found |= {"capability": torch.cuda.get_device_capability(DEVICE), "cuda": torch.version.cuda}
    return found | {"torch": torch.__version__, "backends": available_backends(), "taken": backend_report()}


def failed(result: dict[str, list[Row]]) -> list[str]:
    """Return the failures of all parts, each as text that begins with the name of the part."""
    failures = []
    for part in PARTS:
        for row in result.get(part.__name__, []):
            if row.get("ok") is False or "error" in row:
                failures.append(
                    f"{part.__name__}: {row.get('error') or {k: v for k, v in row.items() if k != 'output'}}"
                )
    return failures


def markdown(result: Row) -> str:
    lines = ["# Acceptance", "", *(f"- {name}: {value}" for name, value in result["machine"].items()), ""]
    for part in PARTS:
        rows = [{k: v for k, v in row.items() if k != "output"} for row in result.get(part.__name__, [])]
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += [f"## {part.__name__}", "", part.__doc__ or "", ""]
        if rows:
            lines += ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
            lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines + ["## Failures", "", *(f"- {failure}" for failure in failed(result) or ["none"]), ""])


def write(result: Row, folder: Path) -> None:
    text = json.dumps(result, indent=1, default=str)
    Path(folder, "acceptance.json").write_text(text + "\n", encoding="utf-8")
    Path(folder, "acceptance.md").write_text(markdown(result), encoding="utf-8")


def run(names: list[str], tiny: bool, result: Row, folder: Path) -> None:
    """Run parts in this process; write the result after each row."""
    for part in PARTS:
        if part.__name__ not in names:
            continue
        rows = result[part.__name__] = []
        try:
            for row in part(tiny):
                rows.append(row)
                print(part.__name__, {k: v for k, v in row.items() if k != "output"}, flush=True)  # noqa: T201
                write(result, folder)
        except Exception as error:  # noqa: BLE001 - the other parts still run
            rows.append({"error": f"{type(error).__name__}: {error}"})
        write(result, folder)


def run_apart(names: list[str], tiny: bool) -> dict[str, list[Row]]:
    """Run parts in a separate process, and return their rows."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--out", folder, "--only", *names, *(["--tiny"] if tiny else [])]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(PART_SECONDS)
            ended = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            code, ended = None, f"stopped after {PART_SECONDS} s"
            os.killpg(process.pid, signal.SIGKILL)  # including the commands that it runs
            process.wait()
        file = Path(folder, "acceptance.json")
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    rows = {name: (found or {}).get(name, []) for name in names}
    if code not in (0, 1) or found is None:  # an uncaught Python exception also exits with 1
        rows[next((name for name in reversed(names) if rows[name]), names[0])].append({"error": ended})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the two result files")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, also without a GPU")
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in PARTS], help="these parts alone")
    args = parser.parse_args()
    if not GPU and not args.tiny:
        parser.error("torch finds no CUDA device; --tiny tries the script without one")
    args.out.mkdir(parents=True, exist_ok=True)
    result: Row = {"machine": machine()}
    names = args.only or [part.__name__ for part in PARTS]
    groups = [[name, *(w for w in names if WITH.get(w) == name)] for name in names if WITH.get(name) not in names]
    if GPU and len(groups) > 1:
        for group in groups:
            result |= run_apart(group, args.tiny)
            write(result, args.out)
    else:
        run(names, args.tiny, result, args.out)
    failures = failed(result)
    print("ACCEPTED" if not failures else "\n".join(["REJECTED", *failures]))  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
