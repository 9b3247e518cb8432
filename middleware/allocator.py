"""What a process that is the proxy's alone does with memory: it gives little back, and seldom."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Final

KEPT_BYTES: Final = 64 * 1024 * 1024
"""Free memory at the heap's end up to which nothing is given back to the system."""
MAPPED_FROM_BYTES: Final = 32 * 1024 * 1024
"""Smaller blocks are taken from the heap; glibc allows no more."""
SELDOM: Final = 20_000
"""Objects more than there were, after which Python looks for cycles among the new ones: nearly all
that a request makes is freed without."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Of glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees; whether its C library (glibc) can do that.

    A conversation of 250 KB is copied some times on its way. Unless told otherwise, glibc gives
    such blocks back to the system as soon as they are free, and has the kernel clear new pages for
    the next request: a quarter of the processor's time that such a request took.
    """
    mallopt: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    is_kept = mallopt(_TRIM_THRESHOLD, KEPT_BYTES) == 1
    return mallopt(_MMAP_THRESHOLD, MAPPED_FROM_BYTES) == 1 and is_kept


def collect_seldom() -> None:
    """Have Python look for cycles of garbage more seldom, and never among what is there now.

    With its own threshold of 700 it looked once in 17 requests, 7 % of what a request takes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(SELDOM, *gc.get_threshold()[1:])
