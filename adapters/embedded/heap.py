"""Memory that was freed inside of the heap, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def give_back_freed() -> bool:
    """Have glibc give back all free pages of its heap; whether any were, False without glibc.

    By itself glibc gives back only what is free at the heap's end, so that an engine holds what it
    has freed among what stays (`KeyValues` of some size are not on the heap). Takes 2 ms where
    there is nothing to give back, and some 50 a gigabyte that there is; others that allocate wait
    meanwhile, and the GIL is free.
    """
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(0) == 1
