"""Which of an engine's key-value slots a model drafter has read the tokens of.

A drafter inside a paged engine shares the target's block tables: where the target writes a slot,
the drafter is to write its own keys and values too. A step in which it does not run leaves slots
unread, which must be read before it drafts behind them. Slots, not requests, are kept account of:
blocks are handed on to other requests by prefix caching and come back after a preemption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

SPARE_SLOTS: Final = 4096
"""Room that the account grows by beyond the highest slot seen."""


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """One request in a step of the engine.

    Attributes:
        request_id: whose.
        start: tokens whose keys and values the target held before the step.
        num_scheduled: tokens that the target read in the step, drafts included; they stand at
            `start` and behind.
        num_kept: those of them that were no rejected drafts, at most `num_scheduled`.
        blocks: int32, (>= blocks of the tokens,). The request's row of the block table.
    """

    request_id: str
    start: int
    num_scheduled: int
    num_kept: int
    blocks: npt.NDArray[np.int32]


class ReadLedger:
    """The account of one drafter.

    Call `num_unread`, then `note`, once for each step in which the target ran; a step that was not
    noted makes the account worthless (`clear`).

    Args:
        block_size: slots of a block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._is_read = np.zeros(0, np.bool_)
        self._is_old = np.zeros(0, np.bool_)
        """Slots that hold what the drafter before read."""
        self._has_old = False
        self._held: dict[str, tuple[int, int]] = {}
        """Of each request of the last step: its tokens read from its first on, and its tokens."""
        self._mixed: set[str] = set()
        """Of those, the ones behind tokens that the drafter before read."""

    def num_unread(self, rows: Sequence[StepRow]) -> npt.NDArray[np.int64]:
        """How many of each row's tokens before the step must be read again, int64 (rows,).

        From the first unread one on: what was read behind a gap was read in a wrong context.
        O(rows), and O(start) for a row that was not in the last step.
        """
        return np.array([row.start - self._num_read(row) for row in rows], np.int64)

    def note(self, rows: Sequence[StepRow], is_complete: Sequence[bool]) -> None:
        """A step is over. O(tokens scheduled and read).

        Args:
            rows: all of the step's, as given to `num_unread`.
            is_complete: whether the drafter has now read all of a row's kept tokens: those of the
                step and those that were unread before.
        """
        held = {}
        mixed = {row.request_id for row in rows if self._has_old and self.is_mixed(row)}
        for row, complete in zip(rows, is_complete, strict=True):
            num_read = self._num_read(row)
            end = row.start + row.num_scheduled
            kept = row.start + row.num_kept
            if complete:
                self._slots(row, num_read, kept, value=True)
                self._slots(row, kept, end, value=False)
                num_read = kept
            else:
                self._slots(row, row.start, end, value=False)
            held[row.request_id] = num_read, kept
        self._held, self._mixed = held, mixed

    def clear(self) -> None:
        """Nothing counts as read any more."""
        self._is_read[:] = False
        self._is_old[:] = False
        self._has_old = False
        self._held, self._mixed = {}, set()

    def retire(self) -> None:
        """Another drafter reads from now on: nothing counts as read, old readings may be accepted.

        O(slots).
        """
        self._has_old = True
        self._is_old |= self._is_read
        self._is_read[:] = False
        self._held, self._mixed = {}, set()

    def accept_old(self, row: StepRow) -> None:
        """Let old readings of a row count as read, up to the first gap. O(start)."""
        slots = self._slots_of(row, 0, row.start)
        self._reach(slots)
        is_there = self._is_read[slots] | self._is_old[slots]
        end = row.start if is_there.all() else int(np.argmin(is_there))
        self._is_read[slots[:end]] = True
        self._held.pop(row.request_id, None)

    def is_mixed(self, row: StepRow) -> bool:
        """Whether old readings count as read in a row's tokens before the step.

        O(1), and O(start) for a row that was not in the last step.
        """
        _, num_tokens = self._held.get(row.request_id, (0, -1))
        if num_tokens == row.start:
            return row.request_id in self._mixed
        slots = self._slots_of(row, 0, row.start)
        self._reach(slots)
        return bool((self._is_read[slots] & self._is_old[slots]).any())

    def _num_read(self, row: StepRow) -> int:
        num_read, num_tokens = self._held.get(row.request_id, (0, -1))
        # A request that was preempted, or never seen, has blocks that tell more than its past.
        if num_tokens == row.start:
            return num_read
        read = self._is_read_at(row)
        return row.start if read.all() else int(np.argmin(read))

    def _is_read_at(self, row: StepRow) -> npt.NDArray[np.bool_]:
        slots = self._slots_of(row, 0, row.start)
        self._reach(slots)
        return self._is_read[slots]

    def _slots(self, row: StepRow, start: int, stop: int, *, value: bool) -> None:
        slots = self._slots_of(row, start, stop)
        self._reach(slots)
        self._is_read[slots] = value
        self._is_old[slots] = False

    def _slots_of(self, row: StepRow, start: int, stop: int) -> npt.NDArray[np.int64]:
        positions = np.arange(start, stop)
        blocks: npt.NDArray[np.int64] = row.blocks[positions // self._block_size].astype(np.int64)
        return blocks * self._block_size + positions % self._block_size

    def _reach(self, slots: npt.NDArray[np.int64]) -> None:
        """Make room for slots that have not been seen yet."""
        if len(slots) and (highest := int(slots.max())) >= len(self._is_read):
            num_more = highest + 1 + SPARE_SLOTS - len(self._is_read)
            self._is_read = np.concatenate([self._is_read, np.zeros(num_more, np.bool_)])
            self._is_old = np.concatenate([self._is_old, np.zeros(num_more, np.bool_)])
