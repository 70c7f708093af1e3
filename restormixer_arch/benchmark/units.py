"""How parameters, operations and seconds are shown in every table and plot."""

from __future__ import annotations


def show_parameters(count: float) -> str:
    return f"{count / 1e6:.3f} M"


def show_giga(count: float) -> str:
    return f"{count / 1e9:.2f}"


def show_time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
