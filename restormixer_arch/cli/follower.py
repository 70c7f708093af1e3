"""``basicsr train`` in a process that ends, with a checkpoint, when the process that started it is gone.

A comparison that is killed would leave a training behind otherwise, which the resumed comparison would then run a
second time in the same folder.
"""

import os
import signal
import sys
import threading

from restormixer_arch import cli


def follow() -> None:
    """Wait until the other end of stdin is closed, then end this process as SIGTERM does."""
    os.read(0, 1)
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    __spec__ = None  # as in restormixer_arch.cli.__main__
    threading.Thread(target=follow, daemon=True).start()
    sys.exit(cli.main(["train", *sys.argv[1:]]))
