"""Run ``basicsr train`` in a process that saves a checkpoint and exits when the process that started it is gone.

Otherwise, a comparison that is killed would leave a training run behind, and the resumed comparison would start it a
second time in the same folder.
"""

import os
import signal
import sys
import threading

from restormixer_arch import cli


def follow() -> None:
    """Wait until the other end of stdin is closed, then raise SIGTERM in this process."""
    os.read(0, 1)
    signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    __spec__ = None  # as in restormixer_arch.cli.__main__
    threading.Thread(target=follow, daemon=True).start()
    sys.exit(cli.main(["train", *sys.argv[1:]]))
