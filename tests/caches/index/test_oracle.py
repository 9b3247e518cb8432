"""The native index and its brute-force reference agree on every call, whatever the calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paceline.caches import CorpusSegment, DraftIndex, Source
from paceline.caches.reference import ReferenceIndex
from paceline.caches.reference.segment import ReferenceSegment
from paceline.caches.segment import build_segment

# Few different tokens, so that everything matches something.
texts = st.lists(st.integers(0, 3), max_size=12)
loops = st.tuples(texts, st.integers(1, 6)).map(lambda drawn: drawn[0] * drawn[1])
keys = st.integers(0, 5)  # of sequences; several may share one, 0 is none
times = st.integers(0, 9).map(float)
sources = st.sampled_from([Source.WORKLOAD, Source.WORKLOAD, Source.TENANT])
choices = st.integers(0, 99)  # of one of the open requests, earlier ones or scopes
# With 16 candidates a log of 256 tokens is drafted from exactly. Contexts stay below this and the
# few tokens that a slid window keeps beside them.
MAX_CONTEXT = 150
MAX_SHARED = 200
NUM_REQUESTS = 4
Reach = tuple[list[tuple[int, Source]], int]  # what a request reads, and as what, and its session


def i32(values: list[int]) -> np.ndarray:
    return np.array(values, np.int32)


def i64(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


def make_corpora() -> list[tuple[CorpusSegment, ReferenceSegment]]:
    """Short texts, one without any place, and one whose places are too many to be counted."""
    rng = np.random.default_rng(5)
    texts = [rng.integers(-1, most, size).tolist() for most, size in ((3, 20), (4, 80), (2, 150))]
    texts += [[0, 1, 2] * 20, [3, 2, 1, 0, -1, 2, 1, 0, 3, 3] * 4, [2], [0, 0, 1] * 150]
    with TemporaryDirectory() as folder:
        return [(build_segment(Path(folder) / "s", text), ReferenceSegment(text)) for text in texts]


CORPORA = make_corpora()


class NativeAgainstReference(RuleBasedStateMachine):
    """Every rule makes the same call on both and compares what comes back.

    Rules choose by number among what there is: Hypothesis's bundles would leave most draws empty.
    """

    @initialize(
        shared_capacity=st.sampled_from([2, 3, 20, MAX_SHARED]),
        max_sessions=st.sampled_from([1024, 1024, 2, 0]),
        max_session_tokens=st.sampled_from([100_000, 100_000, 60, 0]),
        max_candidates=st.sampled_from([12, 16, 32]),
        min_probability=st.sampled_from([0.01, 0.1, 0.5]),
    )
    def start(self, **chosen: Any) -> None:
        self.chosen = chosen
        self.native = DraftIndex(**chosen)
        self.reference = ReferenceIndex(**chosen)
        self.scopes: list[int] = []
        self.context: dict[int, list[int]] = {}  # of each open request
        self.reach: dict[int, Reach] = {}
        self.finished: list[tuple[list[int], Reach]] = []
        for name in "ab":
            self.open_scope(name)
        self.begin([0, 1, 2] * 15, [(scope, Source.WORKLOAD) for scope in self.scopes], 1)

    def both(self, call: Callable[[Any], Any]) -> Any:
        """What the call returns, the same from both indexes."""
        native, reference = call(self.native), call(self.reference)
        np.testing.assert_equal(native, reference)
        return native

    def request(self, choice: int) -> int:
        return list(self.context)[choice % len(self.context)]

    def has_room(self) -> bool:
        return len(self.context) < NUM_REQUESTS

    @rule(name=st.sampled_from("abc"))
    def open_scope(self, name: str) -> None:
        capacity = 30 if name == "c" else 0
        scope = self.both(lambda index: index.scope(name, capacity=capacity))
        if scope not in self.scopes:
            self.scopes.append(scope)

    @precondition(lambda self: len(self.scopes) > 2)
    @rule(choice=choices)
    def drop_scope(self, choice: int) -> None:
        scope = self.scopes.pop(choice % len(self.scopes))
        self.both(lambda index: index.drop_scope(scope))

    @rule(choice=choices, said=loops, key=keys, time=times)
    def append_shared(self, choice: int, said: list[int], key: int, time: float) -> None:
        scope = self.scopes[choice % len(self.scopes)]
        self.both(lambda index: index.append_shared(scope, i32(said), key=key, time=time))

    @rule(choice=choices, key=keys.filter(bool))
    def delete_sequence(self, choice: int, key: int) -> None:
        scope = self.scopes[choice % len(self.scopes)]
        self.both(lambda index: index.delete_sequence(scope, key))

    @rule(choice=choices, time=times)
    def evict_before(self, choice: int, time: float) -> None:
        scope = self.scopes[choice % len(self.scopes)]
        self.both(lambda index: index.evict_before(scope, time))

    @rule(time=times)
    def evict_contexts_before(self, time: float) -> None:
        self.both(lambda index: index.evict_contexts_before(time))

    @rule(choice=choices, also=choices, numbers=st.lists(choices, max_size=2))
    def attach_corpora(self, choice: int, also: int, numbers: list[int]) -> None:
        """Attach segments to one scope or two, which then share them."""
        segments = [CORPORA[number % len(CORPORA)] for number in numbers]
        for scope in {self.scopes[which % len(self.scopes)] for which in (choice, also)}:
            self.native.attach_corpora(scope, [native for native, _ in segments])
            self.reference.attach_corpora(scope, [reference for _, reference in segments])

    def begin(
        self,
        prompt: list[int],
        reads: list[tuple[int, Source]],
        session: int,
        key: int = 0,
        early: bool = False,
    ) -> None:
        """Open a request that writes to the first scope it reads."""
        reads = [(scope, source) for scope, source in reads if scope in self.scopes]
        read_sources = np.array([source for _, source in reads], np.uint8)
        handle, _ = self.both(
            lambda index: index.begin(
                i32(prompt),
                read_scopes=i32([scope for scope, _ in reads]),
                write_scope=reads[0][0] if reads else -1,
                session=session,
                key=key,
                share_prompt=early,
                time=5.0,
                read_sources=read_sources,
            )
        )
        self.context[handle] = prompt
        self.reach[handle] = reads, session

    @precondition(has_room)
    @rule(
        prompt=loops,
        reads=st.lists(st.tuples(choices, sources), max_size=3),
        session=st.sampled_from([1, 2, 0]),
        key=keys,
        early=st.booleans(),
    )
    def begin_conversation(
        self,
        prompt: list[int],
        reads: list[tuple[int, Source]],
        session: int,
        key: int,
        early: bool,
    ) -> None:
        scopes = [(self.scopes[read % len(self.scopes)], source) for read, source in reads]
        self.begin(prompt, scopes, session, key, early)

    @rule(
        choice=choices,
        back=st.sampled_from([0, 0, 1, 3]),
        num_kept=st.integers(0, 9) | st.integers(0, MAX_CONTEXT),
        num_dropped=st.sampled_from([0, 1, 7]),
        said=texts,
        key=keys,
    )
    def next_turn(
        self, choice: int, back: int, num_kept: int, num_dropped: int, said: list[int], key: int
    ) -> None:
        """A request finishes and an earlier one's conversation goes on, its middle dropped."""
        self.close(self.request(choice), float(key))
        context, (reads, session) = self.finished[-1 - back % len(self.finished)]
        prompt = context[:num_kept] + context[num_kept + num_dropped :] + said
        self.begin(prompt[:MAX_CONTEXT], reads, session, key)

    def commit_rows(self, handles: list[int], rows: list[list[int]]) -> None:
        rows = [
            row if len(self.context[handle]) < MAX_CONTEXT else []
            for handle, row in zip(handles, rows, strict=True)
        ]
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        said = i32([token for row in rows for token in row])
        self.both(lambda index: index.commit(i64(handles), said, offsets))
        for handle, row in zip(handles, rows, strict=True):
            self.context[handle] = self.context[handle] + row

    @rule(first=choices, second=choices, said=texts, also=texts)
    def commit(self, first: int, second: int, said: list[int], also: list[int]) -> None:
        self.commit_rows([self.request(first), self.request(second)], [said, also])

    def draft(self, batch: list[int], most: list[int], max_branches: int = 1) -> list[int]:
        """Returns the last draft of the batch, where that is a chain."""
        handles, limits = i64([self.request(choice) for choice in batch]), i32(most)
        offsets, said, parent, prob, source = self.both(
            lambda index: index.propose(handles, limits, max_branches=max_branches)
        )
        assert (offsets.dtype, said.dtype, parent.dtype) == (np.int64, np.int32, np.int32)
        assert (prob.dtype, source.dtype) == (np.float32, np.uint8)
        last: list[int] = said[offsets[-2] :].tolist() if batch else []
        return last

    @rule(
        batch=st.lists(st.tuples(choices, st.sampled_from([0, 1, 5, 30])), max_size=3),
        max_branches=st.sampled_from([1, 3]),
    )
    def propose(self, batch: list[tuple[int, int]], max_branches: int) -> None:
        self.draft([choice for choice, _ in batch], [most for _, most in batch], max_branches)

    def suppose(
        self, batch: list[int], most: list[int], rows: list[list[int]], max_branches: int = 1
    ) -> None:
        handles, limits = i64([self.request(choice) for choice in batch]), i32(most)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        supposed = i32([token for row in rows for token in row])
        self.both(
            lambda index: index.propose_behind(
                handles, limits, supposed, offsets, max_branches=max_branches
            )
        )

    @rule(
        batch=st.lists(st.tuples(choices, st.sampled_from([0, 5, 30]), loops), max_size=3),
        max_branches=st.sampled_from([1, 3]),
    )
    def propose_behind(self, batch: list[tuple[int, int, list[int]]], max_branches: int) -> None:
        """Tokens that are not said, of one request several times too."""
        rows = [row[:40] for _, _, row in batch]
        self.suppose([it for it, _, _ in batch], [most for _, most, _ in batch], rows, max_branches)

    @rule(
        choice=choices,
        steps=st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(1, 6), st.integers(0, 9)),
            min_size=1,
            max_size=6,
        ),
    )
    def decode(self, choice: int, steps: list[tuple[int, int, int, int]]) -> None:
        """At each step the target says some of the draft, a token of its own, or a loop."""
        handle = self.request(choice)
        for num_accepted, correction, period, num_repeated in steps:
            drafted = self.draft([choice], [30])
            said = drafted[:num_accepted]
            self.suppose([choice, choice], [20, 20], [said, [*drafted, correction]])
            if num_repeated == 0:
                said.append(correction)
            for _ in range(num_repeated):
                said.append(([correction] * period + self.context[handle] + said)[-period])
            self.commit_rows([handle], [said])

    @rule(choice=choices, num_dropped=st.integers(0, 50))
    def truncate(self, choice: int, num_dropped: int) -> None:
        handle = self.request(choice)
        kept = max(0, len(self.context[handle]) - num_dropped)
        self.both(lambda index: index.truncate(handle, kept))
        self.context[handle] = self.context[handle][:kept]

    @precondition(lambda self: len(self.context) > 1)
    @rule(choice=choices, time=times)
    def finish(self, choice: int, time: float) -> None:
        self.close(self.request(choice), time)

    def close(self, handle: int, time: float) -> None:
        self.both(lambda index: index.finish(handle, time=time))
        self.finished.append((self.context.pop(handle), self.reach.pop(handle)))

    @rule()
    def go_through_a_snapshot(self) -> None:
        """Everything is closed, saved and restored into a new index."""
        while self.context:
            self.close(self.request(0), 0.0)
        fresh = DraftIndex(**self.chosen)
        fresh.restore(self.native.snapshot())
        assert fresh.snapshot() == self.native.snapshot()
        self.native, self.reference = fresh, self.reference.restored()
        self.finished = []  # they name scopes by their old ids
        self.scopes = list(range(len(self.scopes)))
        reads = [(scope, Source.WORKLOAD) for scope in self.scopes]
        self.begin([0, 1, 2] * 15, reads, 1)
        self.close(self.request(0), 0.0)
        self.begin([0, 1, 2] * 16, reads, 1)

    @invariant()
    def agree(self) -> None:
        self.native.check_integrity()
        stats = self.native.stats()
        del stats["bytes"], stats["corpus_tokens"]
        assert stats == self.reference.stats()
        for scope in self.scopes:
            stats = self.native.scope_stats(scope)
            del stats["bytes"], stats["corpus_tokens"]
            assert stats == self.reference.scope_stats(scope)
        for handle, context in self.context.items():
            assert self.both(lambda index, h=handle: index.num_tokens(h)) == len(context)


TestNativeAgainstReference = NativeAgainstReference.TestCase
TestNativeAgainstReference.__doc__ = (
    "Any sequence of calls gives the same on both, to the last bit."
)
TestNativeAgainstReference.settings = settings(
    deadline=None, max_examples=200, stateful_step_count=50
)
