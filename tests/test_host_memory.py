"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

# Page faults of allocating and filling 256 MB three times over, after a first time.
PROGRAM = """
import ctypes, resource, sys
from vlmax.host_memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print(-1)
    raise SystemExit
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    block = libc.malloc(ctypes.c_size_t(256 << 20))
    ctypes.memset(block, 1, 256 << 20)
    libc.free(ctypes.c_void_p(block))
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True).stdout)


def test_kept_memory_is_not_mapped_again():
    kept = faults("keep")
    if kept == -1:
        pytest.skip("no glibc here")
    assert kept < 1000
    assert faults("default") > 3 * 256  # even with huge pages
