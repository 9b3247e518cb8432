"""Chores of the draft memory."""

from __future__ import annotations

import threading

from paceline.adapters.housekeeping import Housekeeping


def test_a_chore_is_done_again_even_if_it_fails() -> None:
    """A failure is counted, the next call comes all the same, and none comes after closing."""
    calls = 0
    enough = threading.Event()

    def chore() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            enough.set()
        raise ValueError("not today")

    housekeeping = Housekeeping(chore, interval_seconds=0.001)
    housekeeping.start()
    assert enough.wait(20)
    housekeeping.close()
    after = calls
    assert housekeeping.failures.count == after >= 3
    assert calls == after
    housekeeping.close()


def test_closing_what_never_started_is_harmless() -> None:
    """A worker that stops before it began has nothing to wait for."""
    Housekeeping(lambda: None).close()
