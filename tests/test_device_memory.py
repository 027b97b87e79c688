"""Memory that is freed in one step serves the next."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from mmssl.device import keep_freed_memory
if {kept}:
    keep_freed_memory()
for step in range(40):
    if step == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept():
    faults = [
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(kept=kept)], capture_output=True, text=True).stdout)
        for kept in (False, True)
    ]
    assert faults[1] < faults[0] / 10
