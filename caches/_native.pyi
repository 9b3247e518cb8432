"""Hand-checked signatures of the native draft index (C++20, nanobind)."""

import numpy as np
import numpy.typing as npt

class DraftIndex:
    """Draft memory of one engine worker.

    Request and session contexts beside shared logs, one a scope.

    What drafts learn of their own acceptance stays with requests of the same scopes, or with the
    one request that has none.

    A log is a ring of tokens with hashed k-gram chains (previous-occurrence arrays and head tables,
    as in LZ match finders). Every method releases the GIL, takes the index's lock and may be called
    from any thread.

    Args:
        shared_capacity: tokens each shared log keeps; the oldest are overwritten. In [2, 2**31];
            a border between two sequences takes one place.
        max_sessions: finished session contexts kept for the session's next turn, least recently
            used out first. 0 keeps none.
        max_session_tokens: tokens that the kept contexts may hold together (about 20 bytes each);
            >= 0.
        max_candidates: earlier places a lookup verifies per log. In [1, 256].
        min_probability: drafting stops before the cumulative calibrated probability of the chain
            falls below this. In (0, 1].

    Raises:
        ValueError: an argument lies outside its range (the message names value, limit and fix).
    """

    def __init__(
        self,
        *,
        shared_capacity: int = 4_194_304,
        max_sessions: int = 1024,
        max_session_tokens: int = 33_554_432,
        max_candidates: int = 16,
        min_probability: float = 0.1,
    ) -> None: ...
    def scope(self, name: str) -> int:
        """Id (>= 0) of the scope called `name`, opened empty on first use. O(1)."""

    def drop_scope(self, scope_id: int) -> int:
        """Forget everything of a scope; returns the number of tokens forgotten.

        Open requests stop reading it.
        """

    def append_shared(self, scope_id: int, token_ids: npt.NDArray[np.int32]) -> None:
        """Add one sequence, token_ids int32 (n,), to a shared log.

        Matches and drafts never cross sequences. O(n).
        """

    def attach_segment(self, scope_id: int, segment: CorpusSegment) -> None:
        """Keep a corpus segment for a scope until it is detached or the scope dropped. O(1).

        Drafts do not draw on it yet.
        """

    def detach_segments(self, scope_id: int) -> int:
        """Let go of a scope's segments; returns how many there were."""

    def begin(
        self,
        prompt_ids: npt.NDArray[np.int32],
        *,
        read_scopes: npt.NDArray[np.int32],
        write_scope: int = -1,
        session: int = 0,
    ) -> tuple[int, int]:
        """Open a request; returns (handle, num_reused).

        prompt_ids: int32 (n,). read_scopes: int32 (s,), scopes its lookups can reach, in order of
            locality.
        write_scope: scope that `finish` adds the new tokens to, -1 for none. session: key of the
            session (0: none);
        if a finished context of it is kept and no other request holds it, the common prefix is
        reused and only the n - num_reused new tokens are indexed. O(n - num_reused) index work,
        O(num_reused) compare.
        """

    def commit(
        self,
        handles: npt.NDArray[np.int64],
        token_ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
    ) -> None:
        """Append accepted tokens: those of handles[i] are token_ids[offsets[i]:offsets[i + 1]].

        handles int64 (b,), offsets int64 (b + 1,). Scores the request's last draft against them
        first.
        """

    def truncate(self, handle: int, num_tokens: int) -> None:
        """Drop the context's tokens from `num_tokens` on (the engine took them back).

        O(dropped).
        """

    def num_tokens(self, handle: int) -> int:
        """Tokens in the request's context, prompt included."""

    def propose(
        self, handles: npt.NDArray[np.int64], max_tokens: npt.NDArray[np.int32]
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint8],
    ]:
        """Draft for a batch in one call; returns (offsets, token_ids, parent, prob, source).

        max_tokens int32 (b,), each >= 0: at most that many nodes for handles[i]. The tree of
        handles[i] is the slice offsets[i]:offsets[i + 1] of the flat arrays; parent counts within
        the slice. New arrays, owned by the caller.
        """

    def finish(self, handle: int) -> tuple[npt.NDArray[np.int32], int]:
        """Close a request; returns (new_tokens int32 (m,), num_prompt).

        new_tokens are what it added: the part of its prompt that no earlier turn of the session
        held (`num_prompt` tokens) and then its output. They are appended to the write scope as one
        sequence.
        """

    def stats(self) -> dict[str, int]:
        """Counters and sizes.

        Requests, sessions, scopes, shared_tokens, context_tokens, bytes, drafted, accepted.
        """

    def check_integrity(self) -> None:
        """Raise RuntimeError naming the first broken invariant. O(everything held)."""

class CorpusSegment:
    """A frozen corpus in a mapped file: every earlier place like a context, with true counts.

    Positions count through the text with its borders (-1 before, between and after sequences). A
    place is a position whose token and whose predecessor are both real. Immutable; any number of
    threads may read; queries release the GIL. The file may be unlinked or replaced (by another
    file of the name) while it is open, but not written to.

    Source: suffix arrays, Manber and Myers 1993; LCP intervals, Abouelhoda, Kurtz and Ohlebusch
    2004; here over the reversed text, so that equal contexts lie together.

    Args:
        path: a file that `build` wrote. Read once and checked, O(bytes).

    Raises:
        RecordError: the file is foreign, newer, truncated or damaged.
        OSError: it cannot be read.
    """

    def __init__(self, path: str) -> None: ...
    @staticmethod
    def build(path: str, token_ids: npt.NDArray[np.int32], places: npt.NDArray[np.uint32]) -> None:
        """Write the segment of a text, all or nothing.

        Use `paceline.caches.segment.build_segment`, which sorts the places.

        token_ids int32 (n,): ids >= 0, borders -1, a border first and last. places uint32 (m,): all
        places of the text, sorted by the tokens before them read backwards. O(n), plus comparisons
        of neighbours; about 13 bytes a token while it runs beside the arguments.

        Raises:
            ValueError: the arguments are not that (everything is checked).
            OSError: the file cannot be written.
        """

    @property
    def num_tokens(self) -> int:
        """Tokens without borders."""

    @property
    def num_positions(self) -> int:
        """Tokens and borders; positions are below this."""

    @property
    def num_bytes(self) -> int:
        """Size of the file, about 13 bytes a token."""

    def find(
        self, context: npt.NDArray[np.int32], *, max_candidates: int = 16
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.int64],
        npt.NDArray[np.int64],
    ]:
        """Likeliest places for the next token; returns (next, match_length, count, total), (k,).

        The distinct next tokens of the longest match, most frequent first, then those that only
        shorter matches add. next: position of the token, with a place to follow from there.
        match_length: tokens before it that equal the context's last ones, in [1, 64]. count, of
        total places with that match: exact up to 256 places, estimated from 32 evenly spread ones
        beyond. max_candidates in [1, 64]. O(log n).
        """

    def follow(
        self, context: npt.NDArray[np.int32], drafted: npt.NDArray[np.int32]
    ) -> list[tuple[int, int]]:
        """(match_length, num_places) at the end of `context` and after each drafted token.

        Starts from the longest match; (0, 0) once nothing is left. O(len(drafted) log n).
        """

    def read(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Tokens and borders (-1) at positions start to stop, int32 (stop - start,)."""

    def check_integrity(self) -> None:
        """Raise RuntimeError naming the first broken invariant. O(everything held)."""
