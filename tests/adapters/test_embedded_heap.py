"""What an engine frees, the system gets back."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

NUM_BLOCKS, BLOCK_BYTES = 4000, 64 * 1024
PROGRAM = f"""
import ctypes
from pathlib import Path
from paceline.adapters.embedded.heap import give_back_freed

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
blocks = [libc.malloc({BLOCK_BYTES}) for _ in range({NUM_BLOCKS})]
for block in blocks:
    libc.memset(block, 1, {BLOCK_BYTES})
for block in blocks[::2]:  # the others stay, so that nothing is free at the heap's end
    libc.free(block)
held = resident()
assert give_back_freed()
print(held - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_between_what_stays_is_given_back() -> None:
    """Half of the blocks is freed, and nearly as much is no longer held."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0.9 * (NUM_BLOCKS // 2) * (BLOCK_BYTES - 4096)
