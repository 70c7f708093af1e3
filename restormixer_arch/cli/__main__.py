"""``python -m restormixer_arch.cli`` is the ``basicsr`` command."""

import sys

from restormixer_arch.cli import main

if __name__ == "__main__":
    # Without a spec a spawned loader process runs this file first, as it would the installed script; with one it
    # skips packages' __main__ modules, and BasicSR would be imported there without its fixes.
    __spec__ = None
    sys.exit(main())
