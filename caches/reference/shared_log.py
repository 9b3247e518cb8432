"""The shared logs of `ReferenceIndex`: sequences that can be forgotten one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.caches.reference.lookup import BORDER, Log


@dataclass(slots=True)
class KeyedSequence:
    """Where a sequence lies: its tokens are [begin, end - 1), its border is end - 1."""

    key: int
    time: float
    begin: int
    end: int


class SharedLog(Log):
    """A log of sequences; a forgotten one becomes borders in place."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.capacity = capacity
        self.sequences: list[KeyedSequence] = []

    @property
    def num_sequences(self) -> int:
        """Sequences of which at least one token is left."""
        return sum(sequence.end - 1 > self.begin for sequence in self.sequences)

    def append_keyed(self, tokens: Sequence[int], num_read: int, key: int, time: float) -> None:
        """Add a sequence, whose first `num_read` tokens were read, under a key and a time."""
        if not tokens:
            return
        self.append_sequence(tokens, num_read)
        begin = max(self.begin, self.end - len(tokens) - 1)
        self.sequences.append(KeyedSequence(key, time, begin, self.end))

    def erase(self, key: int) -> int:
        """Forget the sequences of a key; returns how many tokens that were."""
        return self._forget(lambda sequence: sequence.key == key)

    def evict_before(self, time: float) -> int:
        """Forget the sequences of earlier times; the log begins after the oldest ones' borders."""
        oldest = self.begin
        for sequence in self.sequences:
            if sequence.end - 1 > self.begin:
                if sequence.time >= time:
                    break
                oldest = sequence.end
        num_forgotten = self._forget(lambda sequence: sequence.time < time)
        self.forget_first(oldest - self.begin)
        return num_forgotten

    def copied(self, capacity: int) -> SharedLog:
        """A log of what is left of the sequences, without the room that others took."""
        copy = SharedLog(capacity)
        for sequence in self.sequences:
            begin = max(self.begin, sequence.begin)
            tokens = self.tokens[begin - self.begin : max(begin, sequence.end - 1) - self.begin]
            said = self.said[begin - self.begin :][: len(tokens)]
            copy.append_keyed(tokens, said.count(False), sequence.key, sequence.time)
        return copy

    def _forget(self, is_forgotten: Callable[[KeyedSequence], bool]) -> int:
        num_forgotten = 0
        for sequence in filter(is_forgotten, self.sequences):
            for position in range(max(self.begin, sequence.begin), sequence.end - 1):
                num_forgotten += 1
                self.tokens[position - self.begin] = BORDER
        self.sequences = [kept for kept in self.sequences if not is_forgotten(kept)]
        return num_forgotten
