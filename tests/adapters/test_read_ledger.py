"""What a drafter has read of an engine's paged cache."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paceline.adapters.read_ledger import ReadLedger, StepRow

BLOCK = 4


def row(
    start: int, scheduled: int, kept: int | None = None, *, blocks: tuple[int, ...], name: str = "a"
) -> StepRow:
    kept = scheduled if kept is None else kept
    return StepRow(name, start, scheduled, kept, np.array(blocks, np.int32))


def unread(ledger: ReadLedger, *rows: StepRow) -> list[int]:
    return ledger.num_unread(rows).tolist()


def test_what_a_step_leaves_unread_is_due_before_the_next() -> None:
    """Accepted tokens of a step without the drafter are due, rejected ones and the newest not."""
    ledger = ReadLedger(BLOCK)
    prompt = row(0, 6, blocks=(5, 2))
    assert unread(ledger, prompt) == [0]
    ledger.note([prompt], [True])
    skipped = row(6, 4, 3, blocks=(5, 2, 9))
    assert unread(ledger, skipped) == [0]
    ledger.note([skipped], [False])
    following = row(9, 1, blocks=(5, 2, 9))
    assert unread(ledger, following) == [3]
    ledger.note([following], [True])
    assert unread(ledger, row(10, 1, blocks=(5, 2, 9))) == [0]


def test_blocks_carry_what_is_unread_to_other_requests() -> None:
    """A request that gets cached blocks of another has to read what that one left unread."""
    ledger = ReadLedger(BLOCK)
    first, second = row(0, 4, blocks=(3,)), row(4, 4, blocks=(3, 7))
    ledger.note([first], [True])
    ledger.note([second], [False])
    assert unread(ledger, row(8, 2, blocks=(3, 7, 1), name="b")) == [4]
    assert unread(ledger, row(4, 2, blocks=(3, 8), name="c")) == [0]


def test_a_request_that_was_away_is_known_by_its_blocks() -> None:
    """After a preemption the blocks count, not what the request had read before it."""
    ledger = ReadLedger(BLOCK)
    ledger.note([row(0, 8, blocks=(1, 2))], [True])
    ledger.note([row(0, 4, blocks=(6,), name="b")], [False])
    # back on another block, which somebody else filled
    assert unread(ledger, row(8, 1, blocks=(1, 6, 4))) == [4]


def test_a_lost_account_reads_everything_again() -> None:
    """After `clear` nothing counts as read."""
    ledger = ReadLedger(BLOCK)
    ledger.note([row(0, 8, blocks=(1, 2))], [True])
    ledger.clear()
    assert unread(ledger, row(8, 1, blocks=(1, 2, 3))) == [8]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5), st.booleans()), max_size=30))
def test_it_agrees_with_a_list_of_what_was_read(steps: list[tuple[int, int, bool]]) -> None:
    """For any steps of one request the account is that of a plain list over its positions."""
    ledger = ReadLedger(BLOCK)
    blocks = tuple(range(60, 0, -1))
    is_read: list[bool] = []
    for scheduled, rejected, complete in steps:
        start = len(is_read)
        step = row(start, scheduled, max(1, scheduled - rejected), blocks=blocks)
        due = is_read.index(False) if False in is_read else start
        assert unread(ledger, step) == [start - due]
        is_read += [False] * step.num_kept
        if complete:
            is_read = [True] * len(is_read)
        ledger.note([step], [complete])


def test_another_drafter_has_read_nothing() -> None:
    """After one retires, all tokens of a request that goes on are unread, and can be read again."""
    ledger = ReadLedger(BLOCK)
    ledger.note([row(0, 6, blocks=(5, 2))], [True])
    ledger.retire()
    going_on = row(6, 1, blocks=(5, 2))
    assert unread(ledger, going_on) == [6]
    ledger.note([going_on], [True])
    assert unread(ledger, row(7, 1, blocks=(5, 2))) == [0]
    assert not ledger.is_mixed(row(7, 1, blocks=(5, 2)))


def test_old_readings_may_be_accepted_and_are_known_as_such() -> None:
    """As far as they reach without a gap; what stands behind them is mixed until read anew."""
    ledger = ReadLedger(BLOCK)
    blocks = (5, 2, 9)
    ledger.note([row(0, 6, blocks=blocks)], [True])
    ledger.note([row(6, 1, blocks=blocks)], [False])
    ledger.retire()
    later = row(7, 1, blocks=blocks)
    ledger.accept_old(later)
    assert unread(ledger, later) == [1]
    assert ledger.is_mixed(later)
    ledger.note([later], [True])
    assert ledger.is_mixed(row(8, 1, blocks=blocks))
    other = row(8, 1, blocks=blocks, name="b")  # begins alike, behind cached blocks
    assert unread(ledger, other) == [0]
    assert ledger.is_mixed(other)
    ledger.note([row(0, 8, blocks=blocks, name="c")], [True])
    assert not ledger.is_mixed(row(8, 1, blocks=blocks, name="d"))


def test_what_is_not_accepted_stays_unread() -> None:
    """Old readings alone never count, and are gone once nothing is known of the slots."""
    ledger = ReadLedger(BLOCK)
    ledger.note([row(0, 6, blocks=(5, 2))], [True])
    for _ in range(2):
        ledger.retire()
    other = row(6, 1, blocks=(5, 2), name="b")
    assert unread(ledger, other) == [6]
    ledger.clear()
    ledger.accept_old(other)
    assert unread(ledger, other) == [6]
