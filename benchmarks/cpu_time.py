"""CPU time of a process that is measured from outside (Linux)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

QUIET_SECONDS: Final = 0.3
SETTLE_SECONDS: Final = 10.0
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


async def settled_cpu_seconds(pid: int | None) -> float:
    """CPU seconds of a process once it rests: work behind its answers counts for what caused it."""
    before, deadline = cpu_seconds(pid), time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        await asyncio.sleep(QUIET_SECONDS)
        now = cpu_seconds(pid)
        if now == before:
            break
        before = now
    return before


def cpu_seconds(pid: int | None) -> float:
    """CPU seconds that a process has used, user and system; 0 without a process."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
