"""``keep_freed_memory`` makes the C library keep the memory of freed tensors."""

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
def test_freed_memory_is_reused_without_page_faults():
    """The twentieth tensor of the same size causes no page faults; by default, it causes one per page."""

    def run(ask):
        code = CODE.format(ask=ask)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    kept, faults = run(True)
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert int(faults) == 0
