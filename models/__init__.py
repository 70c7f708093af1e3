"""Model wrapper and losses for BasicSR's trainer."""

from restormixer_arch.basicsr_adapter import compat

compat.apply()  # before any module of this folder imports basicsr
