"""Sessions as records, for what learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from journals import record
from paceline.caches import SequenceRecord
from paceline.online.replay import Replay, ReplaySettings

NAMESPACE = "n" * 16


def turn(
    number: int,
    read: list[int],
    said: list[int],
    *,
    tenant: str = "a",
    workload: str = "w",
    session: str = "s",
    at: float = 100.0,
    **changes: Any,
) -> SequenceRecord:
    """One turn that may be learned from."""
    plain = record(number, scope=f"tenant:{tenant}", tenant=tenant, session=session)
    return msgspec.structs.replace(
        plain,
        **{
            "workload": workload,
            "token_ids": np.array([*read, *said], np.int32),
            "num_prompt": len(read),
            "started_at": at - 1,
            "finished_at": at,
            "learn": True,
            **changes,
        },
    )


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def small_replay(folder: Path, clock: Clock, *, on_gone: Any = None, **settings: Any) -> Replay:
    """With small passages and nothing held out, unless told."""
    told = {"passage_tokens": 16, "context_tokens": 4, "session_tokens": 64, "held_out_share": 0.0}
    return Replay.open(
        folder,
        namespace=NAMESPACE,
        settings=ReplaySettings(**told | settings),  # type: ignore[arg-type]
        on_gone=on_gone,
        clock=clock,
    )


def settled(replay: Replay, clock: Clock) -> Replay:
    """After every session has gone quiet."""
    clock.now += replay.settings.quiet_seconds + 1
    replay.sample(0, np.random.default_rng(0))
    return replay
