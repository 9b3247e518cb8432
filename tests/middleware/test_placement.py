"""Placement policies: what each looks at, and what it decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware.placement import (
    BYTES_PER_TOKEN,
    HOME_SHARE,
    LOAD_SHARE,
    PlacedRequest,
    Placer,
    RoutePolicy,
    home_of,
)
from paceline.middleware.served_prefixes import (
    BLOCK_ENDS,
    MIN_BLOCK_BYTES,
    ServedPrefixes,
    prefix_digests,
)


@dataclass
class Engine:
    """What placing sees of one."""

    name: str
    outstanding_tokens: float = 0.0
    prefixes: ServedPrefixes = field(
        default_factory=lambda: ServedPrefixes(1 << 20, max_age_seconds=100.0)
    )

    def serve(self, text: bytes, scope: str = "s") -> None:
        self.prefixes.add(prefix_digests(scope, text), 0.0)


def asking(text: bytes, session: str = "", scope: str = "s") -> PlacedRequest:
    return PlacedRequest(session, scope, lambda: text, num_bytes=len(text))


def unread() -> bytes:
    raise AssertionError("the prompt was looked at")


@pytest.mark.parametrize("policy", ["prefix", "session", "least_outstanding", "round_robin"])
def test_one_engine_costs_nothing(policy: RoutePolicy) -> None:
    """Where there is no choice no prompt is hashed, and no session."""
    only = Engine("a")
    request = PlacedRequest("s", "s", unread, num_bytes=10**6)
    found = Placer(policy).place(request, [only], 0.0)
    assert (found.replica, found.reason) == (only, "only")


@pytest.mark.parametrize("policy", ["session", "least_outstanding", "round_robin"])
def test_other_policies_do_not_look_at_prompts(policy: RoutePolicy) -> None:
    """They cost what they need."""
    request = PlacedRequest("s", "s", unread, num_bytes=10**6)
    Placer(policy).place(request, [Engine("a"), Engine("b")], 0.0)


def test_a_prompt_goes_where_most_of_it_is() -> None:
    """And we are told how much that is."""
    engines = [Engine("a"), Engine("b"), Engine("c")]
    engines[0].serve(b"x" * 3000)
    engines[2].serve(b"x" * 5000)
    found = Placer().place(asking(b"x" * 5000 + b"y" * 2000), engines, 0.0)
    assert (found.replica.name, found.reason) == ("c", "prefix")
    assert found.num_hit_tokens == 4608 / BYTES_PER_TOKEN


def test_a_hit_is_worth_what_it_saves_and_no_more() -> None:
    """An engine with more to do than twice the text that it need not read is left."""
    busy, idle = Engine("a"), Engine("b")
    busy.serve(b"x" * 8192)
    for load, name, reason in ((4000, "a", "prefix"), (4200, "b", "load")):
        busy.outstanding_tokens = load
        found = Placer().place(asking(b"x" * 8192), [busy, idle], 0.0)
        assert (found.replica.name, found.reason) == (name, reason)


def test_what_would_be_pushed_out_counts() -> None:
    """A full engine loses other text for a new prompt: a small hit there is not worth that."""
    full = Engine("a", prefixes=ServedPrefixes(16 * MIN_BLOCK_BYTES, max_age_seconds=100.0))
    empty = Engine("b")
    full.serve(b"x" * MIN_BLOCK_BYTES + b"y" * 15 * MIN_BLOCK_BYTES)
    found = Placer().place(asking(b"x" * 8 * MIN_BLOCK_BYTES), [full, empty], 0.0)
    assert (found.replica.name, found.reason) == ("b", "load")


def test_nobody_is_sent_where_somebody_elses_text_is() -> None:
    """The same words of another sharing scope are no hit, and draw nobody."""
    engines = [Engine("a"), Engine("b")]
    text = b"x" * 4096
    engines[0].serve(text, scope="bank")
    placer = Placer()
    found = [placer.place(asking(text, scope="shop"), engines, 0.0) for _ in range(4)]
    assert Counter(each.replica.name for each in found) == {"a": 2, "b": 2}
    assert {each.num_hit_tokens for each in found} == {0}


def test_new_sessions_go_home_and_a_lost_engine_moves_only_its_own() -> None:
    """Two proxies that know nothing of each other send a session to the same engine."""
    engines = [Engine(name) for name in "abcd"]
    text = b"hello"
    homes = {}
    for number in range(200):
        request = asking(text, session=f"s{number}")
        found = Placer().place(request, engines, 0.0)
        assert found.reason == "session"
        homes[number] = found.replica.name
        left = [engine for engine in engines if engine.name != "c"]
        moved = home_of(f"s{number}", left).name
        assert moved == homes[number] or homes[number] == "c"
    assert min(Counter(homes.values()).values()) > 25


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 6000), st.integers(4, 40)),
        min_size=2,
        max_size=5,
    ),
    st.integers(0, 20),
    st.sampled_from(["", "s1", "s2"]),
)
def test_the_cheapest_is_asked(
    engines: list[tuple[int, int, int]], num_blocks: int, session: str
) -> None:
    """No engine has less to do, to read and to push out than the chosen one."""
    text = b"x" * (num_blocks * MIN_BLOCK_BYTES)
    made = []
    for number, (served, load, room) in enumerate(engines):
        engine = Engine(f"e{number}", float(load))
        engine.prefixes = ServedPrefixes(room * MIN_BLOCK_BYTES, max_age_seconds=100.0)
        engine.serve(b"x" * (served * MIN_BLOCK_BYTES))
        made.append(engine)
    found = Placer().place(asking(text, session), made, 0.0)
    size = max((end for end in BLOCK_ENDS if end <= len(text)), default=0)

    def price(engine: Engine) -> float:
        hit = max((e for e in BLOCK_ENDS if e <= min(size, engine.prefixes.num_bytes)), default=0)
        if not size and not session:
            return engine.outstanding_tokens
        held = engine.prefixes
        evicted = min(max(held.num_bytes + size - hit - held.max_bytes, 0), held.num_bytes)
        is_home = bool(session) and engine is home_of(session, made)
        spared = hit + (HOME_SHARE * len(text) if is_home else 0)
        return LOAD_SHARE * engine.outstanding_tokens * BYTES_PER_TOKEN - spared + evicted

    assert price(found.replica) == pytest.approx(min(map(price, made)))


def test_equal_engines_take_turns() -> None:
    """Requests without session and prefix do not all go to the first."""
    engines = [Engine(name) for name in "abc"]
    for policy in ("prefix", "least_outstanding", "round_robin"):
        placer = Placer(policy)  # type: ignore[arg-type]
        names = Counter(placer.place(asking(b"hi"), engines, 0.0).replica.name for _ in range(9))
        assert names == {"a": 3, "b": 3, "c": 3}
