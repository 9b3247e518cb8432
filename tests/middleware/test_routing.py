"""The set of engines: who may be asked, how often, what is charged, and how it changes."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from paceline.middleware.attempts import Attempt
from paceline.middleware.config import UpstreamConfig
from paceline.middleware.placement import PlacedRequest
from paceline.middleware.request_body import view_body
from paceline.middleware.route_metrics import RouteMetrics
from paceline.middleware.routing import ReplicaSet, prompt_text, scope_of
from paceline.middleware.routing_config import RoutingConfig
from paceline.middleware.upstream import UpstreamError


class Deaf:
    """An engine that never answers."""

    async def send(self, *_request: Any) -> Any:
        await asyncio.Event().wait()


def config(name: str, **settings: Any) -> UpstreamConfig:
    return UpstreamConfig(name=name, url=settings.pop("url", f"http://{name}"), **settings)


def with_fleet(body: Callable[[ReplicaSet], None], names: str = "abc", **settings: Any) -> None:
    """Run `body` with healthy engines and a clock that stands still."""

    async def run() -> None:
        replicas = ReplicaSet(
            RoutingConfig(**settings),
            RouteMetrics(CollectorRegistry()),
            clock=lambda: 0.0,
            rng=random.Random(3),  # noqa: S311  jitter
        )
        replicas.open([config(n) for n in names], lambda _: Deaf(), health_interval_seconds=60)
        for replica in replicas.replicas:
            replica.healthy = True
        try:
            body(replicas)
        finally:
            await replicas.close()

    asyncio.run(run())


def fail(attempt: Attempt, *, connected: bool = True) -> None:
    attempt.was_sent = connected
    with pytest.raises(UpstreamError), attempt:
        raise UpstreamError("no", answered=False, connected=connected)


def names(replicas: ReplicaSet, *, connected: bool = True) -> list[str]:
    """Who is tried for a request that everybody fails."""
    tried = []
    for attempt in replicas.attempts(PlacedRequest("s")):
        tried.append(attempt.replica.name)
        fail(attempt, connected=connected)
    return tried


def test_retries_are_bounded_and_never_go_to_the_same_engine_twice() -> None:
    """One retry: two engines of three; none: one."""

    def one(replicas: ReplicaSet) -> None:
        tried = names(replicas)
        assert len(tried) == len(set(tried)) == 2

    def none(replicas: ReplicaSet) -> None:
        assert len(names(replicas)) == 1

    with_fleet(one, retries=1)
    with_fleet(none, retries=0)


def test_who_cannot_be_connected_to_does_not_count() -> None:
    """Nothing was sent, so that all may be asked; afterwards the others are preferred."""

    def body(replicas: ReplicaSet) -> None:
        assert sorted(names(replicas, connected=False)) == ["a", "b", "c"]
        assert not any(replica.healthy for replica in replicas.replicas)

    with_fleet(body, retries=0)


def test_a_lone_engine_is_tried_twice() -> None:
    """Its kept-alive connection may have been stale."""
    with_fleet(lambda replicas: _equal(names(replicas), ["a", "a"]), "a")


def test_a_request_that_one_engine_alone_can_answer_goes_nowhere_else() -> None:
    """Twice at most, even while it drains."""

    def body(replicas: ReplicaSet) -> None:
        only = replicas.replicas[1]
        only.drained = True
        tried = []
        for attempt in replicas.attempts(PlacedRequest("s"), only=only):
            tried.append(attempt.replica.name)
            fail(attempt)
        assert tried == ["b", "b"]
        only.breaker.open()
        assert not list(replicas.attempts(PlacedRequest("s"), only=only))

    with_fleet(body)


def test_with_all_circuits_open_nobody_is_asked_and_the_client_is_told_when() -> None:
    """A 503 with Retry-After that names each engine and why."""

    def body(replicas: ReplicaSet) -> None:
        for replica in replicas.replicas:
            replica.breaker.open()
        replicas.drain("b", drained=True)
        assert names(replicas) == []
        error = replicas.failure("")
        assert error.status == 503
        assert dict(error.headers)[b"retry-after"] == b"1"
        assert "a is left alone for" in error.message
        assert "b is draining" in error.message

    with_fleet(body)


def test_a_draining_engine_gets_nothing_until_it_is_resumed() -> None:
    """Not even where it is the session's home, or all others fail."""

    def body(replicas: ReplicaSet) -> None:
        home = next(replicas.attempts(PlacedRequest("s"))).replica.name
        assert replicas.drain(home, drained=True) is not None
        assert home not in names(replicas)
        replicas.drain(home, drained=False)
        for replica in replicas.replicas:
            replica.healthy = True
        assert next(replicas.attempts(PlacedRequest("s"))).replica.name == home
        assert replicas.drain("nobody", drained=True) is None

    with_fleet(body, policy="session")


def test_tokens_are_charged_while_they_are_outstanding() -> None:
    """Prompt and expected reply at first, nothing at the end, whoever ends it and how."""

    def body(replicas: ReplicaSet) -> None:
        view = view_body(b'{"prompt": "x", "max_tokens": 40}')
        request = replicas.request("s", "", view, 4000)
        attempt = next(replicas.attempts(request))
        with attempt:
            assert attempt.replica.outstanding == 1
            assert attempt.replica.outstanding_tokens == 1040
        assert attempt.replica.outstanding_tokens == attempt.replica.outstanding == 0
        fail(next(replicas.attempts(request)))
        assert all(r.outstanding_tokens == r.outstanding == 0 for r in replicas.replicas)

    with_fleet(body)


@pytest.mark.parametrize("separator", [b"", b" "])
def test_the_length_of_answers_is_learned_from_their_usage(separator: bytes) -> None:
    """What a request may be answered with at most bounds the guess."""

    def body(replicas: ReplicaSet) -> None:
        view = view_body(b'{"prompt": "x"}')
        for _ in range(200):
            replicas.learn(b'{"usage":{"completion_tokens":' + separator + b"20}}")
        replicas.learn(b"data: [DONE]\n\n")
        assert replicas.request("s", "", view, 1).num_said == pytest.approx(20, abs=0.1)
        short = view_body(b'{"prompt": "x", "max_tokens": 5}')
        assert replicas.request("s", "", short, 1).num_said == 5

    with_fleet(body)


def test_an_update_keeps_who_stays_and_finishes_who_goes() -> None:
    """Same name and URL: the same engine with all it knows; another URL: another engine."""

    def body(replicas: ReplicaSet) -> None:
        a, b, c = replicas.replicas
        attempt = next(replicas.attempts(PlacedRequest()))
        a.drained = True
        replicas.update(
            [config("c", draining=True), config("a"), config("b", url="http://other"), config("d")]
        )
        assert [r.name for r in replicas.replicas] == ["c", "a", "b", "d"]
        assert replicas.replicas[:2] == [c, a]
        assert (c.draining, a.draining) == (True, True)
        assert replicas.replicas[2] is not b
        assert replicas.leaving == [b]
        assert not replicas.replicas[3].healthy
        with attempt:
            assert attempt.replica.outstanding == 1

    with_fleet(body)


def test_prompts_are_remembered_where_there_is_a_choice_alone() -> None:
    """A lone engine's are never hashed."""
    body = json.dumps({"prompt": "x" * 2000}).encode()
    view = view_body(body)

    def place(replicas: ReplicaSet) -> None:
        next(replicas.attempts(replicas.request("", "", view, len(body))))

    def two(replicas: ReplicaSet) -> None:
        place(replicas)
        assert sorted(len(r.prefixes) for r in replicas.replicas) == [0, 3]

    def lone(replicas: ReplicaSet) -> None:
        place(replicas)
        assert len(replicas.replicas[0].prefixes) == 0

    with_fleet(two, "ab")
    with_fleet(lone, "a")
    with_fleet(lone, "ab", policy="least_outstanding")


def test_what_a_prompt_is() -> None:
    """Tools first, as templates write them; a salt of the client's keeps its text apart."""
    view = view_body(b'{"messages": [1, 2], "n": 1, "tools": [3]}')
    assert prompt_text(view) == b"[3][1, 2]"
    assert prompt_text(view_body(b'{"prompt": "a"}')) == b'"a"'
    assert scope_of(view, "salt") == "salt"
    assert scope_of(view_body(b'{"cache_salt": "mine"}'), "salt") not in ("salt", '"mine"')


def _equal(found: Sequence[str], expected: Sequence[str]) -> None:
    assert list(found) == list(expected)


def test_every_setting_is_documented_with_its_default() -> None:
    """In the table of docs/routing.md."""
    text = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
    for name, field in RoutingConfig.model_fields.items():
        default = field.default if isinstance(field.default, str) else f"{field.default:g}"
        assert f"| `{name}` | {default} |" in text.replace("`prefix` |", "prefix |")
