"""CPU time of a process that is measured from outside (Linux)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

QUIET_SECONDS: Final = 0.3
QUIET_CPU_SECONDS: Final = 0.003
"""What a process that rests may take in that time, for timers of its own."""
SETTLE_SECONDS: Final = 10.0
ALL_THREADS: Final = 2
"""Of a process's CPU clocks, the one that the scheduler keeps of all its threads together."""


async def settled_cpu_seconds(pid: int | None) -> float:
    """CPU seconds of a process once it rests: work behind its answers counts for what caused it."""
    before, deadline = cpu_seconds(pid), time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(QUIET_SECONDS)
        now = cpu_seconds(pid)
        is_quiet = now - before < QUIET_CPU_SECONDS
        before = now
        if is_quiet:
            break
    return before


def cpu_seconds(pid: int | None) -> float:
    """CPU seconds that a process has used, user and system, to the nanosecond; 0 without one."""
    # what clock_getcpuclockid(3) makes of a process id
    return 0.0 if pid is None else time.clock_gettime((~pid << 3) | ALL_THREADS)


def resident_megabytes(pid: int) -> float:
    """Memory of a process that is in RAM (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split(maxsplit=1)[0]) / 1024
