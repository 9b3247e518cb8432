"""What an engine frees, the system gets back; what it keeps takes no more than it is counted as."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

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


KEEPING = """
from collections import deque
from pathlib import Path
import numpy as np
import torch
from paceline.adapters.embedded.key_values import CacheShape, KeyValues

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

shape = CacheShape(num_layers=2, num_heads=3, head_dim=64, dtype=torch.float32)
rng = np.random.default_rng(0)
kept, beside = deque(), deque()
before = most = 0
for turn in range(1200):
    sequence = KeyValues(shape)
    for part in (32, *[1] * int(rng.integers(8, 80))):
        sequence.reserve(part)
        written = torch.ones(3, part, 64)
        for layer in range(2):
            sequence.write(layer, written, written)
        sequence.advance(part)
    kept.append(sequence)
    beside.append(bytearray(int(rng.integers(100, 4000))))
    if len(kept) > 200:
        kept.popleft()
        most = max(most, resident())
    elif not before:
        before = resident()
    if len(beside) > 1000:
        beside.popleft()
print((most - before) / sum(it.num_bytes for it in kept))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_kept_sequences_take_no_more_than_they_count() -> None:
    """Sequences of ever other lengths come and go, two hundred at a time.

    The process holds what they count as: glibc's heap would hold a quarter more between them.
    """
    command = [sys.executable, "-c", KEEPING]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 1.05
