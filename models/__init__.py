"""The BasicSR model and its losses, metrics, optimizers and validation."""

from restormixer_arch.basicsr_adapter import compat

compat.apply()  # must run before any module of this folder imports basicsr
