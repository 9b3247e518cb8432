"""A proxy keeps the memory of long requests for the next."""

from __future__ import annotations

import subprocess
import sys

import pytest

from paceline.middleware.allocator import KEPT_BYTES

COPY = """
import resource, sys
from paceline.middleware.allocator import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("unsupported")
body = b"x" * 300_000
copies = [body + b"y" for _ in range(8)]
del copies
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    copies = [body + b"y" for _ in range(8)]
    del copies
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_long_bodies_do_not_fault_pages_in_again_and_again() -> None:
    """Counted are the pages that the kernel had to provide, in a process of its own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("glibc only")
    faults = {}
    for how in ("usual", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", COPY, how], capture_output=True, text=True, check=False
        )
        if done.stderr.startswith("unsupported"):
            pytest.skip("another C library")
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    assert faults["kept"] * 10 < faults["usual"]
    assert KEPT_BYTES > 8 * 300_000


COLLECT = """
import gc
from paceline.middleware.allocator import SELDOM, collect_seldom

class Cycle:
    def __init__(self):
        self.me = self

collect_seldom()
before = gc.get_stats()[0]["collections"]
made = [[] for _ in range(SELDOM // 2)]
few = gc.get_stats()[0]["collections"] - before
del made
for _ in range(SELDOM * 2):
    Cycle()
print(few, gc.get_stats()[0]["collected"] > SELDOM)
"""


def test_cycles_are_looked_for_seldom_and_found() -> None:
    """Counted in a process of its own, which is what it is set for."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "True"]
