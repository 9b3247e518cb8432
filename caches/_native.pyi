"""Hand-checked signatures of the native draft index (C++20, nanobind)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def initial_calibration() -> npt.NDArray[np.float32]:
    """What every calibration starts from: the numbers behind its weights and probabilities."""

def fitted_weights() -> npt.NDArray[np.int64]:
    """Where in a state the weights lie that priors are fitted for, in the priors' order.

    Those of places in the context and in the workload's memory, and of "no place is right"; other
    sources start as the workload's.
    """

def calibration_shape() -> tuple[int, int, int, int, int]:
    """(num_weights, num_length_weights, num_lengths, num_contexts, num_knots) of its numbers.

    First come the weights that rank places, of which the first num_length_weights are those of
    match lengths, num_lengths of rising length for each kind of place; then of each context of the
    probability map the trials at its knots, which are half a logit apart and lie around 0, then the
    hits in the same order.
    """

def choose_nodes(
    offsets: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int32],
    prob: npt.NDArray[np.float32],
    *,
    base_tokens: float,
    seconds: npt.NDArray[np.float64],
    token_seconds: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float, float]:
    """The drafted nodes that make a round's tokens a second the most, over its whole batch.

    O(n log n). As many of the likeliest are kept as are worth their time together (TETRIS, arXiv
    2502.15197, with times that need not go up evenly).

    Args:
        offsets: (requests + 1,): request i has the nodes offsets[i]:offsets[i + 1].
        parent: (nodes,): counted within the request; -1 continues the context.
        prob: (nodes,): P(node accepted | parent accepted). Within a request paths come likeliest
            first.
        base_tokens: tokens of the round without drafts.
        seconds: (at least 1,): its time with 0, 1, 2... tokens verified beside it; the first is 0
            if unknown, then everything is kept.
        token_seconds: what one more takes beyond those.

    Returns:
        How many nodes to keep of each request, int64 (requests,); how many are expected to be
        accepted if all were, float64 (requests,); the tokens that the time of one more verified
        token is worth, on average around the choice (0 if unknown); the tokens that the round is
        expected to yield.

    Raises:
        ValueError: the arrays are no drafts, or seconds are empty, negative or not a number.
    """

def count_likelier(
    offsets: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int32],
    prob: npt.NDArray[np.float32],
    price: float,
) -> npt.NDArray[np.int64]:
    """First nodes of each request that are likelier than `price`, int64 (requests,). O(n).

    Raises:
        ValueError: the arrays are no drafts.
    """

def sum_rounds(
    rounds: Sequence[
        tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[float], float, float]
    ],
    num_places: int,
    caps: Sequence[int],
) -> list[list[list[float]]]:
    """What came of rounds, and what shorter drafts would have made of them. O(requests * caps).

    With less drafted as many tokens come, in more rounds; see
    `paceline.policies.bandits.shorter_draft`.

    Args:
        rounds: each its requests' places (whose sums they belong to; below 0 nobody's), drafted
            tokens, committed ones (less than 1 counts for nothing) and seconds that each adds to
            the round (empty for none); seconds of the round without drafts; and of a drafted token.
        num_places: places are below this.
        caps: most drafted tokens.

    Returns:
        By place and cap: tokens, seconds and rounds.

    Raises:
        ValueError: a place is none, or a round's sequences differ in length.
    """

class DraftIndex:
    """Draft memory of one engine worker.

    Request and session contexts beside shared logs, one a scope, and corpora attached to scopes.

    What drafts learn of their own acceptance stays with requests of the same first read scope and
    the same write scope, or with the one request that has neither.

    A log is a ring of tokens with hashed k-gram chains (previous-occurrence arrays and head tables,
    as in LZ match finders). Every method may be called from any thread and releases the GIL, but
    for `propose` and `commit` of a few requests: they take a few microseconds, and to get the GIL
    back from another thread takes longer. Adding tokens, of whatever length, does not keep other
    threads from drafting.

    Args:
        shared_capacity: tokens each shared log keeps; the oldest are overwritten. In [2, 2**31];
            a border between two sequences takes one place.
        max_sessions: finished session contexts kept for the session's next turn, least recently
            used out first. 0 keeps none.
        max_session_tokens: tokens that the kept contexts may hold together (about 20 bytes each);
            >= 0.
        max_candidates: most earlier places a lookup verifies per log; four once a copy has gone on
            for 16 tokens. In [1, 256].
        min_probability: no node is handed out whose path from the context has a lower calibrated
            probability than this. In (0, 1].

    Raises:
        ValueError: an argument lies outside its range (the message names value, limit and fix).
    """

    def __init__(
        self,
        *,
        shared_capacity: int = 4_194_304,
        max_sessions: int = 1024,
        max_session_tokens: int = 33_554_432,
        max_candidates: int = 12,
        min_probability: float = 0.1,
    ) -> None: ...
    def scope(self, name: str, *, capacity: int = 0) -> int:
        """Id (>= 0) of the scope called `name`, opened empty on first use. O(1).

        capacity: tokens that the scope's log keeps, 0 for the index's `shared_capacity`. One that
            differs from that of an open scope is refused.
        """

    @staticmethod
    def capacity_for_bytes(num_bytes: int) -> int:
        """Capacity in tokens of a scope that never uses more than `num_bytes`.

        Beside that a scope takes 24 bytes for each sequence it holds. Most of the time it uses
        about 15 bytes a token; the bound, up to 36, is met while its chains are rebuilt.
        """

    def drop_scope(self, scope_id: int) -> int:
        """Forget everything of a scope; returns the number of tokens forgotten.

        Open requests stop reading it.
        """

    def append_shared(
        self,
        scope_id: int,
        token_ids: npt.NDArray[np.int32],
        *,
        key: int = 0,
        time: float = 0.0,
        num_prompt: int = 0,
    ) -> None:
        """Add one sequence, token_ids int32 (n,), to a shared log.

        Matches and drafts never cross sequences. key: positive, what `delete_sequence` calls it;
        several may share one; 0 for none. time: seconds, what `evict_before` compares. num_prompt:
        the model read that many tokens first and said the rest (what it said is the likelier to be
        said again). O(n).
        """

    def delete_sequence(self, scope_id: int, key: int) -> int:
        """Forget every sequence of `key` in a scope; returns the number of tokens forgotten.

        Kept contexts of the scope that may hold tokens of it go too, and open requests that may
        hold them keep no context; one begun under `key` itself adds nothing to the scope when it
        finishes. No later draft is made from them. The room in the log is free once the ring comes
        by. O(sequences of the scope + tokens forgotten + open requests + kept contexts).
        """

    def evict_before(self, scope_id: int, time: float) -> int:
        """Forget what a scope was given under an earlier time.

        Shared sequences, and kept contexts of requests that read the scope first or write to it, by
        when the last of them finished. Returns the number of tokens forgotten.
        O(sequences of the scope + tokens forgotten + kept contexts).
        """

    def evict_contexts_before(self, time: float) -> int:
        """Forget kept contexts, of any scope, whose last request finished earlier.

        Returns the number of tokens forgotten. O(kept contexts + tokens forgotten).
        """

    def attach_corpora(self, scope_id: int, segments: Sequence[CorpusSegment]) -> None:
        """Draft from these segments for whoever reads the scope, in place of those before.

        An empty sequence detaches all. In one step for every other thread; open requests follow at
        their next draft. Dropping the scope drops them; a snapshot does not hold them. A segment
        that several of a request's scopes share is read once. Each segment costs every draft of
        the scope's readers a look-up of some microseconds.

        Raises:
            ValueError: no scope of that id is open, or `segments` holds None.
        """

    def begin(
        self,
        prompt_ids: npt.NDArray[np.int32],
        *,
        read_scopes: npt.NDArray[np.int32],
        write_scope: int = -1,
        session: int = 0,
        key: int = 0,
        share_prompt: bool = False,
        time: float = 0.0,
        read_sources: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[int, int]:
        """Open a request; returns (handle, num_reused).

        prompt_ids: int32 (n,). read_scopes: int32 (s,), scopes its lookups can reach, in order of
            locality; one that is named again is read once, as it was named first. What drafts learn
            of their own acceptance, and a session's contexts, stay with requests of the same first
            read scope, read as the same source, and the same write scope; the further ones may
            change from turn to turn.
        read_sources: uint8 (s,), what each of them is to this request: `Source.WORKLOAD` or
            `Source.TENANT`. None: WORKLOAD for all. Drafts carry it, and places of different
            sources are ranked by weights of their own.
        write_scope: scope that `finish` adds the new tokens to, -1 for none.
        session: key of the session (0: none); if a finished context of it is kept and no other
            request holds it, the common prefix is reused and only the n - num_reused new tokens
            are indexed.
        key: of the sequence that `finish` adds, as in `append_shared`.
        share_prompt: add the new part of the prompt to the write scope now, as a sequence of its
            own under `key` and `time`, for others that run beside this request; `finish` then adds
            the reply behind the prompt's last 64 tokens. The request finds its own prompt twice,
            once as its context and once in the scope.

        O(n - num_reused) index work, O(num_reused) compare.
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
        self,
        handles: npt.NDArray[np.int64],
        max_tokens: npt.NDArray[np.int32],
        *,
        max_branches: int = 1,
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
        the slice, and a parent precedes its children. New arrays, owned by the caller.

        max_branches: most nodes that continue one node, in [1, 16]; 1 gives chains. Nodes come in
        the order of the probability of their path, likeliest first, down to `min_probability`, so
        that any prefix of a tree is the tree of that budget.
        """

    def propose_behind(
        self,
        handles: npt.NDArray[np.int64],
        max_tokens: npt.NDArray[np.int32],
        token_ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        *,
        max_branches: int = 1,
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint8],
    ]:
        """What `propose` would return if token_ids[offsets[i]:offsets[i + 1]] were committed first.

        To ask what follows tokens that somebody else drafts. Nothing is learned from them or for
        them, nothing is counted, and the draft of the last `propose` stays the one that the next
        `commit` is scored against. The same arguments and results otherwise; a handle may be given
        several times, for several beginnings. O(tokens supposed) more than `propose`.
        """

    def finish(self, handle: int, *, time: float = 0.0) -> tuple[npt.NDArray[np.int32], int]:
        """Close a request; returns (new_tokens int32 (m,), num_prompt).

        new_tokens are what it added: the part of its prompt that no earlier turn of the session
        held (`num_prompt` tokens) and then its output. They are appended to the write scope as one
        sequence of that time, but for what `share_prompt` has added.
        """

    def calibration(
        self, *, read_scopes: npt.NDArray[np.int32], write_scope: int = -1
    ) -> npt.NDArray[np.float32]:
        """What requests of these scopes have learned, laid out as `calibration_shape` says; a copy.

        What requests without any scope learn is their own and not kept. O(1).
        """

    def set_calibration(
        self,
        *,
        read_scopes: npt.NDArray[np.int32],
        write_scope: int = -1,
        state: npt.NDArray[np.float32],
    ) -> None:
        """Let them go on from another `calibration`, of this index or another. O(1).

        Raises:
            ValueError: it has another size, or holds what learning cannot reach.
        """

    def snapshot(self) -> bytes:
        """What is remembered and learned: scopes, kept contexts, calibrations; not what is open.

        A versioned format with a checksum, 4 bytes a token: chains are built anew by `restore`,
        which takes what appending takes. What is added meanwhile may be missing from it. O(size).
        """

    def restore(self, data: bytes) -> None:
        """Replace everything by what a snapshot holds; scopes get new ids. O(size).

        Deleted and overwritten tokens take no room any more. A scope opened without a capacity of
        its own has this index's `shared_capacity`; limits of this index hold.

        Raises:
            ValueError: the snapshot is truncated, damaged, of another byte order or from a newer
                version, or requests are open. Nothing has changed.
        """

    def stats(self) -> dict[str, int]:
        """Counters and sizes.

        Requests, sessions, scopes, sequences (of shared logs), shared_tokens, context_tokens,
        segments and corpus_tokens (attached, counted once for each scope), bytes (without
        segments: they are mapped files), drafted, accepted, and the same two by source:
        drafted_context, drafted_workload, drafted_tenant, drafted_corpus, accepted_context and so
        on. A token that several places guess counts for the source of the likeliest.
        """

    def scope_stats(self, scope_id: int) -> dict[str, int]:
        """Counters and sizes of one scope, named as in `stats`.

        Sequences, shared_tokens, segments, corpus_tokens, bytes, and what was drafted and accepted,
        by source, for requests whose first read scope it is. O(segments).

        Raises:
            ValueError: no scope of that id is open.
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

class FusedBatch:
    """What `Fusion.fuse` weighed, kept until it is known what was accepted."""

    def __len__(self) -> int:
        """Number of requests."""

class Fusion:
    """Fuses drafts from memory with what a model drafter has read, a whole batch a call.

    RASD (arXiv 2503.03434) cuts retrieved branches that the drafter finds implausible and merges
    the rest with the drafter's by common prefix. Here a node's probability comes from both
    opinions, mixed by weights that are learned online for each key, and the budget goes to the
    likeliest paths; a chain is the one of the greatest expected accepted length, whoever drafted
    its parts. Thread-safe; `fuse` releases the GIL.

    Args:
        min_probability: in [0, 1]; paths less likely than this are not handed out.
    """

    def __init__(self, *, min_probability: float = 0.1) -> None: ...
    def fuse(
        self,
        offsets: npt.NDArray[np.int64],
        token_ids: npt.NDArray[np.int32],
        parent: npt.NDArray[np.int32],
        prob: npt.NDArray[np.float32],
        source: npt.NDArray[np.uint8],
        place_offsets: npt.NDArray[np.int64],
        place_parent: npt.NDArray[np.int32],
        place_token: npt.NDArray[np.int32],
        top_token: npt.NDArray[np.int32],
        top_prob: npt.NDArray[np.float32],
        *,
        keys: npt.NDArray[np.int64],
        max_tokens: npt.NDArray[np.int32],
        max_branches: int = 1,
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint8],
        FusedBatch,
    ]:
        """Trees of a batch, as `DraftIndex.propose` returns them, and what `learn` needs.

        A node's source is memory's where memory drafted it, else `Source.MODEL`. O(nodes *
        (siblings + log nodes)) a request.

        Args:
            offsets: with the next four, the drafts from memory in the form that is returned.
            token_ids: see `offsets`.
            parent: see `offsets`.
            prob: see `offsets`.
            source: see `offsets`. A node of `Source.MODEL` is none of memory's, whatever its
                probability: it leads to what memory drafts behind the drafter's tokens. Of nodes
                with one token behind one parent, the first that is memory's counts.
            place_offsets: (requests + 1,): what the drafter has read of request i are the places
                place_offsets[i]:place_offsets[i + 1]; none: it has not run.
            place_parent: (places,): the place, counted within the request, that this one extends;
                -1 for a request's first, the committed context.
            place_token: (places,): by this token; ignored for the first.
            top_token: (places * width,): likeliest next tokens after each place.
            top_prob: (places * width,): their probabilities.
            keys: (requests,): requests of one key share what was learned.
            max_tokens: (requests,): most nodes for each.
            max_branches: most nodes that continue one, 1 to 16; 1 gives chains.

        Raises:
            ValueError: the arrays are no drafts (everything is checked).
        """

    def learn(
        self,
        batch: FusedBatch,
        token_ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int32]:
        """Learn from the tokens committed after the drafts of `batch`.

        token_ids[offsets[i]:offsets[i + 1]] belong to request i, none to learn nothing from it.
        Each batch is learned from once. Returns the nodes accepted of each, int32 (requests,).
        """

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""

    def state(self, key: int) -> npt.NDArray[np.float32]:
        """What was learned for a key, float32 (12,), to be kept and restored."""

    def restore(self, key: int, state: npt.NDArray[np.float32]) -> None:
        """Put back what `state` returned.

        Raises:
            ValueError: it has another length, or a value that is not finite.
        """
