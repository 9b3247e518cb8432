"""Which engine a request goes to: four policies. State in, decision out; no clock, no I/O.

``prefix`` is cache-aware: each engine's price is half the work it has outstanding, plus the part of
the prompt that it has not served before and so must read (prefill), plus what it would have to
evict for that; the cheapest one is asked. So a busy engine is left as soon as its load is greater
than twice the prompt that it would not have to read. (NVIDIA Dynamo's
router adds prefill and decode work in the same way; SGLang's switches between the best match and
the shortest queue by thresholds.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Generic, Literal, Protocol, TypeVar

from paceline.middleware.served_prefixes import BLOCK_ENDS, ServedPrefixes, prefix_digests

RoutePolicy = Literal["prefix", "session", "least_outstanding", "round_robin"]
BYTES_PER_TOKEN: Final = 4
"""Of a prompt as it stands in a body; a guess, used to compare."""
LOAD_SHARE: Final = 0.5
"""What an outstanding token counts against one that must be read: load passes, while text that is
read again takes room in a second cache. By replayed traces 1 and 0.25 are worse, one under heavy
load, the other under light."""
HOME_SHARE: Final = 0.3
"""Part of a prompt that a session's home is taken to hold beyond what is known: another proxy may
have asked it."""


class Candidate(Protocol):
    """An engine that may be asked."""

    @property
    def name(self) -> str:
        """Its name, the same in every proxy."""

    @property
    def outstanding_tokens(self) -> float:
        """Tokens that it has still to read and to say."""

    @property
    def prefixes(self) -> ServedPrefixes:
        """What it has served."""


C = TypeVar("C", bound=Candidate)


class PlacedRequest:
    """What placing looks at; nothing is hashed before a policy asks for it.

    Args:
        session: id of the conversation, "" for none.
        scope: whose prefix cache it uses.
        text: gives the prompt as it stands in the body; called once at most.
        num_bytes: its size, roughly.
        num_said: tokens that it is expected to be answered with.
        model: which it asks for, "" for none.
    """

    __slots__ = ("_digests", "_scope", "_text", "model", "num_bytes", "num_said", "session")

    def __init__(
        self,
        session: str = "",
        scope: str = "",
        text: Callable[[], bytes] = lambda: b"",
        *,
        num_bytes: int = 0,
        num_said: float = 0.0,
        model: str = "",
    ) -> None:
        self.session = session
        self.model = model
        self.num_bytes = num_bytes
        self.num_said = num_said
        self._scope = scope
        self._text = text
        self._digests: list[int] | None = None

    @property
    def digests(self) -> list[int]:
        """Of the prompt's prefixes. O(bytes) the first time."""
        if self._digests is None:
            self._digests = prefix_digests(self._scope, self._text())
        return self._digests

    @property
    def num_prompt_tokens(self) -> float:
        """Tokens of the prompt, estimated."""
        return self.num_bytes / BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Placement(Generic[C]):
    """Where a request goes.

    Attributes:
        replica: the engine.
        reason: ``only`` (no choice), ``prefix`` (none has more of the prompt), ``load`` (one has,
            but is too busy), ``session`` (its home), ``least_outstanding`` or ``round_robin``.
        num_hit_tokens: tokens of the prompt that it has served before, as far as we know.
    """

    replica: C
    reason: str
    num_hit_tokens: float = 0.0


class Placer:
    """Chooses among engines.

    Args:
        policy: ``prefix``, ``session`` (rendezvous hashing alone), ``least_outstanding`` (tokens),
            or ``round_robin``.
    """

    def __init__(self, policy: RoutePolicy = "prefix") -> None:
        self.policy = policy
        self._turn = 0

    def place(self, request: PlacedRequest, candidates: Sequence[C], now: float) -> Placement[C]:
        """The engine to ask. Nothing is remembered but whose turn it is.

        Args:
            request: what is to be placed.
            candidates: at least one, in the same order each time; a single one costs nothing.
            now: seconds, by the clock that prefixes are added with.
        """
        if len(candidates) == 1:
            return Placement(candidates[0], "only")
        self._turn += 1
        if self.policy == "round_robin":
            return Placement(candidates[self._turn % len(candidates)], "round_robin")
        if self.policy == "session" and request.session:
            return Placement(home_of(request.session, candidates), "session")
        if self.policy == "prefix":
            return self._by_prefix(request, candidates, now)
        return self._least_outstanding(candidates)

    def _least_outstanding(self, candidates: Sequence[C]) -> Placement[C]:
        return Placement(
            min(self._in_turn(candidates), key=lambda c: c.outstanding_tokens), "least_outstanding"
        )

    def _by_prefix(
        self, request: PlacedRequest, candidates: Sequence[C], now: float
    ) -> Placement[C]:
        digests = request.digests
        home = home_of(request.session, candidates) if request.session else None
        if not digests and home is None:
            return self._least_outstanding(candidates)
        size = BLOCK_ENDS[len(digests) - 1] if digests else 0
        best: C | None = None
        best_price = most_hit = best_hit = 0.0
        for candidate in self._in_turn(candidates):
            known = candidate.prefixes.num_known(digests, now)
            hit = BLOCK_ENDS[known - 1] if known else 0
            spared = hit + (HOME_SHARE * request.num_bytes if candidate is home else 0)
            evicted = candidate.prefixes.num_pushed_out(size - hit)
            load = LOAD_SHARE * BYTES_PER_TOKEN * candidate.outstanding_tokens
            price = load - spared + evicted
            most_hit = max(most_hit, hit)
            if best is None or price < best_price:
                best, best_price, best_hit = candidate, price, hit
        assert best is not None
        if best_hit < most_hit:
            reason = "load"
        elif best_hit:
            reason = "prefix"
        else:
            reason = "session" if best is home else "least_outstanding"
        return Placement(best, reason, best_hit / BYTES_PER_TOKEN)

    def _in_turn(self, candidates: Sequence[C]) -> Sequence[C]:
        """Begin with another one each time, so that the first is not always preferred."""
        begin = self._turn % len(candidates)
        return [*candidates[begin:], *candidates[:begin]]


def home_of(session: str, candidates: Sequence[C]) -> C:
    """A session's engine by rendezvous hashing. O(n).

    Each session has its own stable order (Thaler and Ravishankar, 1998), the same in every proxy;
    a lost engine moves only its own sessions.
    """
    return min(candidates, key=lambda c: _weight(session, c.name))


def _weight(session: str, name: str) -> bytes:
    return blake2b(f"{session}\0{name}".encode(), digest_size=8).digest()
