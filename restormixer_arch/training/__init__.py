"""Training and testing by an option file; :mod:`.trainer` holds the loop, the other files its parts."""

from restormixer_arch.basicsr_adapter import compat

compat.apply()  # before any module of this folder imports basicsr
