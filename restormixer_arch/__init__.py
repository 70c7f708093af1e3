"""RestorMixer for BasicSR: the network of arXiv 2504.10967 with CPU and CUDA selective scans.

Importing this package is cheap: torch is loaded when ``RestorMixer`` is first asked for, so that the
command line can check an option file before anything heavy is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restormixer_arch.restormixer_arch import RestorMixer

__version__ = "0.1.0"
__all__ = ["RestorMixer", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "RestorMixer":
        from restormixer_arch.restormixer_arch import RestorMixer

        return RestorMixer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
