"""Run the ``basicsr`` command as ``python -m restormixer_arch.cli``."""

import sys

from restormixer_arch.cli import main

if __name__ == "__main__":
    # Without a spec, a spawned loader process runs this file first, as it does with the installed script. With one, it
    # would skip the __main__ module of a package and import BasicSR without its fixes.
    __spec__ = None
    sys.exit(main())
