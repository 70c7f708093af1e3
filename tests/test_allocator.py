"""The C library keeps the memory of freed tensors once it is asked to."""

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from restormixer_arch.memory import keep_freed_memory
kept = {ask} and keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    before = faults()
    torch.empty(15 << 20).fill_(1)  # 60 MB: 15360 pages
print(kept, faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_touched_once():
    """The page faults of a tensor after twenty of its size: none, or one for each page."""

    def run(ask):
        code = CODE.format(ask=ask)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(faults) == 0
