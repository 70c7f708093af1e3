"""Format the results of a benchmark as Markdown, and parameters, operations, memory and times for all commands."""

from __future__ import annotations

from statistics import median
from typing import Any

OURS, RIVAL = "RestorMixer", "NAFNet-32"
OWN_MALLOC = "forward 256, default malloc"  # freed memory returns to the system, unlike in the basicsr command
SMALL_STEP = "training step, small, 8x3x64x64, one thread"
BUSY = "forward 256, next to two busy processes"


def show_parameters(count: float) -> str:
    return f"{count / 1e6:.3f} M"


def show_giga(count: float) -> str:
    return f"{count / 1e9:.2f}"


def show_memory(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"


def show_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def show_minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def summarize(seconds: list[float]) -> dict[str, float]:
    """Return the median and the quartiles of times, in seconds."""
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    return {"median": median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter]}


def markdown(result: dict[str, Any]) -> str:
    """Return the results as Markdown that is also readable in a terminal."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    gpu = (
        [f"{machine['gpu']}, scan {machine['scan_on_gpu']}; times and memory are the GPU's."]
        if "gpu" in machine
        else []
    )
    parts = [
        *gpu,
        f"{machine['processor']}, {machine['threads']} threads, {machine['cpu_capability']}, "
        f"scan kernel {machine['scan_kernel']}; {versions}.",
        "",
        *_table(["work", "network", "median", "quartiles", "relative to the first"], _time_rows(result)),
        "",
        *_table(["network", "parameters", "GFLOP at 256x256", "thop's GMAC and parameters"], _network_rows(result)),
        "",
        *_table(["work", "peak memory of the process"], _memory_rows(result)),
        "",
        *_table(["figure", "value"], list(figures(result).items())),
    ]
    if result["left_out"]:
        parts += ["", *(f"Left out: {name}: {reason}." for name, reason in result["left_out"].items())]
    return "\n".join(parts)


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Return the key ratios, each of times measured in the same run."""
    times = {
        (label, name): summarize(seconds)["median"]
        for label, group in result["times"].items()
        for name, seconds in group.items()
    }
    found = {}

    def ratio(title: str, above: tuple[str, str], below: tuple[str, str], factor: float = 1.0) -> None:
        if above in times and below in times:
            found[title] = f"{factor * times[above] / times[below]:.2f}"

    for forward in ("forward 256", OWN_MALLOC):
        ratio(f"{forward}, {OURS} / {RIVAL}", (forward, OURS), (forward, RIVAL))
        for other in ("Restormer", "SwinIR-light"):
            ratio(f"{forward}, {other} / {OURS}", (forward, other), (forward, OURS))
    ratio(f"forward 256, {OURS}, float32 / bfloat16", ("forward 256", OURS), ("forward 256", f"{OURS} bfloat16"))
    ratio(f"training step, {OURS} / {RIVAL}", ("training step", OURS), ("training step", RIVAL))
    ratio(f"{BUSY} / alone", (BUSY, OURS), ("forward 256", OURS))
    for other in ("NAFNet-S", "U-Net-S", "Restormer-S"):
        for work in ("forward 256, small, batch 1", "forward 256, small, batch 8", SMALL_STEP):
            ratio(f"{work}, RestorMixer-S / {other}", (work, "RestorMixer-S"), (work, other))
    start = "cold start, 384x256"
    ratio(f"{start}, restore / import torch", (start, "basicsr restore"), (start, "import torch"))
    ratio(f"{OURS}, time per pixel, 1024 / 256", ("forward 1024", OURS), ("forward 256", OURS), 1 / 16)
    for other in ("torch", "mambapy"):
        scan = "scan, forward and backward"
        ratio(f"{scan}, {other} / native", (scan, other), (scan, "native"))
    matrix = times.get(("matrix product", "float32 2048"))
    if matrix and ("forward 256", OURS) in times and OURS in result["networks"]:
        reached = result["networks"][OURS]["operations"] / times["forward 256", OURS] / 1e9
        peak = 2 * 2048**3 / matrix / 1e9
        found[f"GFLOP/s of {OURS}'s forward 256 / of the matrix product"] = (
            f"{reached:.0f} / {peak:.0f} = {reached / peak:.2f}"
        )
    return found


def _time_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for label, group in result["times"].items():
        first = summarize(next(iter(group.values())))["median"]
        for name, seconds in group.items():
            s = summarize(seconds)
            middle = f"{show_time(s['low'])} to {show_time(s['high'])}"
            rows.append((label, name, show_time(s["median"]), middle, f"{s['median'] / first:.2f}"))
    return rows


def _network_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, found in result["networks"].items():
        thop = found["thop"]
        seen = f"{thop[0] / 1e9:.2f} G, {thop[1] / 1e6:.2f} M" if thop else "not installed"
        rows.append((name, show_parameters(found["parameters"]), f"{found['operations'] / 1e9:.1f}", seen))
    return rows


def _memory_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (label, f"{found['peak_bytes'] / 2**30:.2f} GiB" if found["peak_bytes"] else "unknown on this system")
        for label, found in result["memory"].items()
    ]


def _table(head: list[str], rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
