"""Train and test from an option file; :mod:`.trainer` contains the training loop, the other modules its parts."""

from restormixer_arch.basicsr_adapter import compat

compat.apply()  # before any module of this package imports basicsr
