"""Run the native scan of an installed RestorMixer; exit with an error if it is unusable or inaccurate."""

import torch

import restormixer_arch
from restormixer_arch.selective_scan import selective_scan

shape = {"u": (1, 4, 70), "delta": (1, 4, 70), "A": (4, 3), "B": (1, 3, 70), "C": (1, 3, 70)}
inputs = {name: torch.rand(*size) - float(name == "A") for name, size in shape.items()}
difference = selective_scan(**inputs, backend="native") - selective_scan(**inputs, backend="definition")
assert difference.abs().max() < 1e-4, difference.abs().max()
print(f"native scan of {restormixer_arch.__version__} in {restormixer_arch.__file__}: as the definition")  # noqa: T201
