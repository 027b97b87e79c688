"""Memory that is freed in one step serves the next."""

import platform
import subprocess
import sys

import pytest

from mmssl import device

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


def test_freed_memory_is_kept_where_it_is_given_back():
    programs = (PROGRAM.format(kept=kept) for kept in (False, True))
    usual, kept = (int(subprocess.check_output([sys.executable, "-c", program])) for program in programs)
    assert kept < usual / 10 if platform.libc_ver()[0] == "glibc" else kept <= 1.1 * usual


def test_without_glibc_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: pytest.fail("asked for a C library"))
    device.keep_freed_memory()
