"""The two draft memories that `paceline bench index` compares, behind one small interface.

Each is driven as its engine adapter drives it: requests with prompts, drafts of at most
`MAX_TOKENS` tokens, accepted tokens committed. Only the calls named in a figure are timed, through
Python, as an engine would make them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from paceline.benchmarks.index_text import Text, Tokens
from paceline.benchmarks.peers.arctic import load_suffix_cache
from paceline.caches import DraftIndex

MAX_TOKENS: Final = 32
ARCTIC_DEPTH: Final = 24
NONE: Final = np.array([], np.int32)


class Side(Protocol):
    """One draft memory."""

    def insert(self, sequences: Iterable[Tokens]) -> None:
        """Remember sequences for everybody."""

    def begin(self, prompt: Tokens) -> int:
        """Open a request."""

    def propose(self, requests: list[int]) -> list[list[int]]:
        """Drafts of a batch, as lists of tokens."""

    def timed_propose(self, requests: list[int]) -> None:
        """The same without making lists of the drafts: what is timed."""

    def commit(self, request: int, token_ids: Tokens) -> None:
        """Tokens that the target accepted."""

    def finish(self, request: int) -> None:
        """Close a request and forget it."""

    def counted_bytes(self) -> float:
        """Bytes in use by its own count; NaN where it keeps none."""


class PacelineSide:
    """Our draft index: one scope that everything is read from."""

    def __init__(self, capacity: int) -> None:
        self.index = DraftIndex()
        self.scope = self.index.scope("bench", capacity=capacity)
        self._reads = np.array([self.scope], np.int32)
        self._batch: list[int] = []
        self._handles = np.array([], np.int64)
        self._limits = np.array([], np.int32)

    def insert(self, sequences: Iterable[Tokens]) -> None:
        """See `Side`."""
        for sequence in sequences:
            self.index.append_shared(self.scope, sequence)

    def begin(self, prompt: Tokens) -> int:
        """See `Side`."""
        return self.index.begin(prompt, read_scopes=self._reads)[0]

    def propose(self, requests: list[int]) -> list[list[int]]:
        """See `Side`."""
        self._select(requests)
        offsets, tokens, *_ = self.index.propose(self._handles, self._limits)
        return [tokens[a:b].tolist() for a, b in pairwise(offsets.tolist())]

    def timed_propose(self, requests: list[int]) -> None:
        """See `Side`."""
        self._select(requests)
        self.index.propose(self._handles, self._limits)

    def _select(self, requests: list[int]) -> None:
        if requests is not self._batch:
            self._batch = requests
            self._handles = np.array(requests, np.int64)
            self._limits = np.full(len(requests), MAX_TOKENS, np.int32)

    def commit(self, request: int, token_ids: Tokens) -> None:
        """See `Side`."""
        offsets = np.array([0, len(token_ids)], np.int64)
        self.index.commit(np.array([request], np.int64), token_ids, offsets)

    def finish(self, request: int) -> None:
        """See `Side`."""
        self.index.finish(request)

    def counted_bytes(self) -> float:
        """See `Side`."""
        return float(self.index.stats()["bytes"])

    @contextmanager
    def busy(self, kind: str, text: Text) -> Iterator[None]:
        """A thread that writes without a pause: ``append`` long sequences, or ``begin`` prompts."""
        is_over = threading.Event()
        long = text.stretch(0, 131_072)

        def append() -> None:
            while not is_over.is_set():
                for sequence in text.sequences():
                    self.index.append_shared(self.scope, sequence)
                    if is_over.is_set():
                        return

        def begin() -> None:
            while not is_over.is_set():
                handle, _ = self.index.begin(long, read_scopes=self._reads, write_scope=self.scope)
                self.index.finish(handle)

        writer = threading.Thread(target={"append": append, "begin": begin}[kind])
        writer.start()
        try:
            yield
        finally:
            is_over.set()
            writer.join()


class ArcticSide:
    """Arctic Inference's suffix decoding, as vLLM's `suffix` proposer drives it."""

    def __init__(self, peers: Path) -> None:
        self._cache = load_suffix_cache(peers)(ARCTIC_DEPTH, -1)
        self._contexts: dict[int, Tokens] = {}
        self._count = 0

    def insert(self, sequences: Iterable[Tokens]) -> None:
        """See `Side`."""
        for sequence in sequences:
            self._count += 1
            self._cache.start_request(self._count, NONE)
            self._cache.add_active_response(self._count, sequence.tolist())
            self._cache.stop_request(self._count)

    def begin(self, prompt: Tokens) -> int:
        """See `Side`."""
        self._count += 1
        self._cache.start_request(self._count, prompt)
        self._contexts[self._count] = prompt[-ARCTIC_DEPTH:]
        return self._count

    def propose(self, requests: list[int]) -> list[list[int]]:
        """See `Side`."""
        return [
            list(
                self._cache.speculate(
                    request, self._contexts[request], max_spec_tokens=MAX_TOKENS
                ).token_ids
            )
            for request in requests
        ]

    def timed_propose(self, requests: list[int]) -> None:
        """See `Side`."""
        for request in requests:
            self._cache.speculate(request, self._contexts[request], max_spec_tokens=MAX_TOKENS)

    def commit(self, request: int, token_ids: Tokens) -> None:
        """See `Side`."""
        self._cache.add_active_response(request, token_ids.tolist())
        context = np.concatenate([self._contexts[request], token_ids])
        self._contexts[request] = context[-ARCTIC_DEPTH:]

    def finish(self, request: int) -> None:
        """See `Side`."""
        self._cache.stop_request(request)
        del self._contexts[request]

    def counted_bytes(self) -> float:
        """See `Side`."""
        return float("nan")


def resident_bytes() -> int:
    """Memory that this process has in RAM (Linux)."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
