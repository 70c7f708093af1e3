"""The BasicSR model, its losses, metrics, optimizers and validation."""

from restormixer_arch.basicsr_adapter import compat

compat.apply()  # before any module of this folder imports basicsr
