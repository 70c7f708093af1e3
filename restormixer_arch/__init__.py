"""RestorMixer for BasicSR: the network of arXiv 2504.10967 with CPU and CUDA selective scans.

Importing this package is cheap: torch is loaded when ``RestorMixer`` or ``restore`` is first accessed, so the command
line can check an option file before it imports anything heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restormixer_arch.inference.restore import restore
    from restormixer_arch.restormixer_arch import RestorMixer

__version__ = "0.1.0"
__all__ = ["RestorMixer", "__version__", "restore"]
LAZY = {"RestorMixer": "restormixer_arch.restormixer_arch", "restore": "restormixer_arch.inference.restore"}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
