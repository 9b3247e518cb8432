"""The proxy records what a real engine serves that has no memory of its own.

One engine (`plain`) drafts nothing and knows no Redis; another (`follower`) drafts from Redis. What
real engines cannot show is shown on scripted ones in `test_capture_odd`.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from captured import metric, recorded, wait_recorded
from embedded_server import MODEL, EmbeddedServer
from paceline.caches import ModelFingerprint
from paceline.caches.governance import MemoryGovernor
from paceline.middleware.capture import fingerprint_of
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from redis_server import RedisServer
from waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.redis, pytest.mark.timeout(300)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TENANTS = (
    "bytes",
    "words",
    "turns",
    "asked",
    "sdk",
    "seed",
    "twice",
    "gone",
    "late",
    "long",
    "end",
)
EVENTS = "paceline_journal_events_total"
STORY: Any = [{"role": "user", "content": "Tell me of two riders — in one “sentence”."}]


@dataclass
class Stack:
    """Two engines, one Redis, and proxies in front of `plain` with and without capture."""

    plain: EmbeddedServer
    follower: EmbeddedServer
    redis: RedisServer
    policy: Path
    tokenizer: Path
    capturing: RunningProxy
    bare: RunningProxy
    exits: ExitStack

    @property
    def model(self) -> ModelFingerprint:
        capture = self.capturing.proxy.config.capture
        assert capture is not None
        return fingerprint_of(capture)

    def proxy(self, url: str, *, capture: bool = True, **changes: Any) -> RunningProxy:
        """A further proxy; `changes` are of its capture."""
        settings: dict[str, Any] = {}
        if capture:
            where = {"redis_url": self.redis.url, "model": MODEL, "tokenizer": self.tokenizer}
            settings["capture"] = where | changes
        running = self.exits.enter_context(
            running_proxy(
                make_config(
                    listen={"port": 0},
                    upstreams=[{"name": "e", "url": url}],
                    policy_file=self.policy,
                    health_interval_seconds=0.1,
                    **settings,
                )
            )
        )
        wait_until(lambda: running.proxy.ready)
        return running

    def recorded(self, tenant: str, count: int = 1) -> list[Any]:
        """What Redis holds of a tenant, once there are so many records."""
        return wait_recorded(self.redis.url, self.model, tenant, count)


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("capture")
    policy = folder / "policy.yaml"
    lines = [f"  - {{name: {name}, keys: ['{hash_key(name)}']}}" for name in TENANTS]
    lines += [
        f"  - {{name: silent, keys: ['{hash_key('silent')}'], record: false}}",
        f"  - {{name: optout, keys: ['{hash_key('optout')}']}}",
        f"  - {{name: shop, keys: ['{hash_key('shop')}'], group: retail}}",
        f"  - {{name: club, keys: ['{hash_key('club')}'], sharing: global}}",
    ]
    policy.write_text("\n".join(["tenants:", *lines]))
    redis = RedisServer(folder)
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        # what was read before is read again, so that the usage of two answers is the same
        options = ("--no-speculation", "--kept-mib", "0")
        plain = EmbeddedServer(target_folder, folder, "plain", *options)
        follower = EmbeddedServer(target_folder, folder, "follower", "--redis", redis.url)
        for server in (plain, follower):
            server.start()
            exits.callback(server.stop)
        for server in (plain, follower):
            server.wait_ready()
        made = Stack(plain, follower, redis, policy, target_folder, *[None] * 2, exits)  # type: ignore[arg-type]
        made.capturing = made.proxy(plain.url)
        made.bare = made.proxy(plain.url, capture=False)
        yield made


def post(
    proxy: RunningProxy, path: str, body: dict[str, Any], key: str, **headers: str
) -> tuple[int, bytes, str]:
    """Status, body and request id of an answer."""
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
    sent = {"authorization": f"Bearer {key}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request("POST", path, json.dumps(body), sent)
    with closing(connection):
        response = connection.getresponse()
        return response.status, response.read(), response.getheader("x-request-id", "")


def asking(path: str, **options: Any) -> dict[str, Any]:
    text: dict[str, Any] = {"prompt": "One, two,"} if path == TEXT else {"messages": STORY}
    return {"model": MODEL, "max_tokens": 12, "temperature": 0, **text, **options}


def without_ids_and_times(data: bytes) -> bytes:
    return re.sub(rb'pace-[0-9a-f]{32}|"created": ?\d+', b"", data)


def sdk(proxy: RunningProxy, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"logprobs": 1},
        {"stream": True, "logprobs": 1},
        {"return_token_ids": False},
        {"stream": True, "return_token_ids": None, "stop": ["e"]},
    ],
    ids=str,
)
def test_a_client_gets_the_bytes_it_would_have_got(
    stack: Stack, path: str, options: dict[str, Any]
) -> None:
    """Streamed or whole, with usage, log probabilities or stop strings: not a byte differs."""
    if path == CHAT and "logprobs" in options:
        options = options | {"logprobs": True, "top_logprobs": 1}
    body = asking(path, **options)
    before = metric(stack.capturing, "paceline_proxy_captured_total", tenant="bytes")
    status, bare, _ = post(stack.bare, path, body, "bytes")
    assert status == 200
    _, captured, _ = post(stack.capturing, path, body, "bytes")
    assert without_ids_and_times(captured) == without_ids_and_times(bare)
    wait_until(
        lambda: metric(stack.capturing, "paceline_proxy_captured_total", tenant="bytes") > before
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_record_is_what_was_read_and_said(stack: Stack, path: str, *, stream: bool) -> None:
    """Tokens, marks, identity and times of a record are those an engine would publish."""
    began = time.time()
    told = json.loads(post(stack.bare, path, asking(path, return_token_ids=True), "words")[1])
    choice = told["choices"][0]
    prompt_ids = told["prompt_token_ids"] if path == CHAT else choice["prompt_token_ids"]
    session = f"{path}{stream}"
    headers = {"x_session_id": session, "x_paceline_workload": "tales"}
    _, _, request_id = post(stack.capturing, path, asking(path, stream=stream), "words", **headers)
    wait_until(lambda: request_id in [r.request_id for r in stack.recorded("words")])
    [record] = [r for r in stack.recorded("words") if r.request_id == request_id]
    assert record.token_ids.tolist() == prompt_ids + choice["token_ids"]
    assert record.num_prompt == len(prompt_ids)
    assert (record.tenant, record.scope) == ("words", "tenant:words")
    assert (record.session, record.workload) == (f"generic:{session}", "tales")
    assert began < record.started_at < record.finished_at < time.time()
    assert (record.learn, record.temperature, record.num_before) == (False, -1.0, 0)


def test_a_turn_records_what_the_turns_before_it_did_not(stack: Stack) -> None:
    """The second turn's record begins where the first one's ended; another session's does not."""
    first = [*STORY]
    headers = {"x_session_id": "turns"}
    said = json.loads(post(stack.capturing, CHAT, asking(CHAT), "turns", **headers)[1])
    second = [
        *first,
        {"role": "assistant", "content": said["choices"][0]["message"]["content"]},
        {"role": "user", "content": "And then?"},
    ]
    body = asking(CHAT, messages=second)
    stack.recorded("turns")
    post(stack.capturing, CHAT, body, "turns", **headers)
    stack.recorded("turns", 2)
    told = json.loads(
        post(
            stack.capturing,
            CHAT,
            body | {"return_token_ids": True},
            "turns",
            x_session_id="other",
        )[1]
    )
    one, two, other = stack.recorded("turns", 3)
    assert one.num_prompt + 12 == len(one.token_ids)
    assert other.num_prompt == len(told["prompt_token_ids"])
    whole = other.token_ids.tolist()
    assert whole[: len(one.token_ids)] == one.token_ids.tolist()
    assert two.token_ids.tolist() == whole[len(one.token_ids) :]
    assert two.num_prompt == other.num_prompt - len(one.token_ids)


def test_who_asks_for_ids_sees_them_and_is_recorded(stack: Stack) -> None:
    """A client's own `return_token_ids` is answered as the engine answers it."""
    for number, stream in enumerate((True, False)):
        body = asking(CHAT, return_token_ids=True, stream=stream)
        _, bare, _ = post(stack.bare, CHAT, body, "asked")
        _, captured, request_id = post(stack.capturing, CHAT, body, "asked")
        assert without_ids_and_times(captured) == without_ids_and_times(bare)
        assert b'token_ids":[' in captured.replace(b" ", b"")
        assert stack.recorded("asked", number + 1)[-1].request_id == request_id


def test_the_official_client_streams_through_it(stack: Stack) -> None:
    """Chunks parse, the text is the whole answer's, no ids appear, and it is recorded."""
    with sdk(stack.bare, "sdk") as api:
        whole = api.chat.completions.create(**asking(CHAT)).choices[0].message.content
    with sdk(stack.capturing, "sdk") as api:
        chunks = list(api.chat.completions.create(**asking(CHAT), stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert all(getattr(c, "prompt_token_ids", None) is None for c in chunks)
    assert all(getattr(c.choices[0], "token_ids", None) is None for c in chunks)
    assert len(stack.recorded("sdk")) == 1


def test_scopes_are_those_of_the_policy(stack: Stack) -> None:
    """A group's tenant writes into the group's scope, a global one into everybody's."""
    for tenant, scope in (("shop", "group:retail"), ("club", "global")):
        post(stack.capturing, TEXT, asking(TEXT), tenant)
        assert [record.scope for record in stack.recorded(tenant)] == [scope]


def test_what_may_not_be_recorded_leaves_nothing_in_redis(stack: Stack) -> None:
    """A tenant with `record: false`, a request with the header, an unknown key: no trace."""
    asked = metric(stack.capturing, "paceline_proxy_captured_total")
    off = {"x_paceline_record": "off"}
    canary = asking(TEXT, prompt="Canary canary canary in the mine")
    ids = json.loads(post(stack.bare, TEXT, canary | {"return_token_ids": True}, "silent")[1])
    for stream in (True, False):
        body = canary | {"stream": stream}
        assert post(stack.capturing, TEXT, body, "silent")[0] == 200
        assert post(stack.capturing, TEXT, body, "optout", **off)[0] == 200
        assert post(stack.capturing, TEXT, body, "nobody")[0] == 401
    post(stack.capturing, TEXT, asking(TEXT), "seed")  # whatever came before it is in Redis too
    stack.recorded("seed")
    assert metric(stack.capturing, "paceline_proxy_captured_total") == asked + 1
    with closing(stack.redis.client()) as client:
        names = b" ".join(client.scan_iter(count=1000))
        assert b"seed" in names
        assert b"silent" not in names
        assert b"optout" not in names
    prompt_ids = ids["choices"][0]["prompt_token_ids"]
    for tenant in (*TENANTS, "shop", "club"):
        for record in recorded(stack.redis.url, stack.model, tenant):
            assert prompt_ids != record.token_ids[: len(prompt_ids)].tolist()


def test_an_engine_drafts_what_only_the_proxy_recorded(stack: Stack) -> None:
    """Memory fills before any engine has our worker: the namespace is the engines' own."""
    body = asking(TEXT, prompt="Rivers of Europe: Rhine,", max_tokens=24)
    said = json.loads(post(stack.capturing, TEXT, body, "seed")[1])["choices"][0]["text"]
    wait_until(lambda: metric(stack.capturing, "paceline_journal_queued") == 0)
    published = metric(stack.capturing, EVENTS, event="published")
    wait_until(
        lambda: (
            sum(stack.follower.metric(EVENTS, event=e) for e in ("received", "warmed_up"))
            >= published
        )
    )
    before = stack.follower.metric("paceline_engine_accepted_tokens_total")
    follower = stack.proxy(stack.follower.url, capture=False)
    again = json.loads(post(follower, TEXT, body, "seed")[1])["choices"][0]["text"]
    assert again == said
    assert stack.follower.metric("paceline_engine_accepted_tokens_total") - before > 12


def test_where_both_record_a_request_redis_keeps_one(stack: Stack) -> None:
    """Proxy and engine publish under one id: one record, one refusal, one sequence in memory."""
    both = stack.proxy(stack.follower.url)
    ids = []
    for number in range(4):
        path, stream = ((CHAT, TEXT)[number % 2], number < 2)
        body = asking(path, stream=stream)
        _, _, request_id = post(both, path, body, "twice", x_session_id=str(number))
        ids.append(request_id)
    wait_until(
        lambda: (
            metric(both, "paceline_proxy_captured_total") == 4
            and metric(both, "paceline_journal_queued") == 0
        )
    )
    stack.recorded("twice", 4)
    counts = ("published", "refused_duplicate")
    assert sum(metric(both, EVENTS, event=event) for event in counts) == 4
    # each producer has tried each: one of the two was refused
    wait_until(
        lambda: (
            metric(both, EVENTS, event="refused_duplicate")
            + stack.follower.metric(EVENTS, event="refused_duplicate")
            == 4
        )
    )
    assert [record.request_id for record in stack.recorded("twice", 4)] == ids


def test_a_client_that_leaves_leaves_what_it_was_told(stack: Stack) -> None:
    """A stream that is broken off is recorded as far as it came, as an engine does."""
    with sdk(stack.capturing, "gone") as api:
        reply = api.chat.completions.create(
            **asking(CHAT, max_tokens=2000), stream=True, extra_headers={"x-session-id": "g"}
        )
        for _ in range(4):
            next(reply)
        reply.close()
    [record] = stack.recorded("gone")
    assert 2 <= len(record.token_ids) - record.num_prompt < 2000


def test_a_late_record_of_a_forgotten_session_is_refused(stack: Stack) -> None:
    """What began before its session was forgotten never reaches Redis, whenever it ends."""
    refused = metric(stack.capturing, EVENTS, event="refused_forgotten")
    with sdk(stack.capturing, "late") as api, closing(stack.redis.client()) as client:
        reply = api.chat.completions.create(
            **asking(CHAT, max_tokens=40), stream=True, extra_headers={"x-session-id": "s"}
        )
        next(reply)
        MemoryGovernor(client).forget(tenant="late", session="generic:s")
        assert list(reply)
    wait_until(lambda: metric(stack.capturing, EVENTS, event="refused_forgotten") > refused)
    assert recorded(stack.redis.url, stack.model, "late") == []


def test_a_request_that_is_too_long_to_hold_is_served_all_the_same(stack: Stack) -> None:
    """Bounds cost the record, never a byte of the answer."""
    small = stack.proxy(stack.plain.url, max_request_bytes=4096)
    body = asking(TEXT, prompt=[12_345] * 600, max_tokens=2)
    for stream in (True, False):
        _, bare, _ = post(stack.bare, TEXT, body | {"stream": stream}, "long")
        _, captured, _ = post(small, TEXT, body | {"stream": stream}, "long")
        assert without_ids_and_times(captured) == without_ids_and_times(bare)
    dropped = "paceline_proxy_capture_dropped_total"
    wait_until(lambda: metric(small, dropped, reason="too_long") == 2)
    few = stack.proxy(stack.plain.url, max_request_bytes=4096, max_in_flight_bytes=4096)
    with sdk(few, "long") as api:
        options = asking(TEXT, max_tokens=30)
        held = [api.completions.create(**options, stream=True) for _ in range(6)]
        texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in held]
    assert len(set(texts)) == 1
    wait_until(lambda: metric(few, dropped, reason="too_many_in_flight") >= 2)
    wait_until(lambda: metric(few, "paceline_proxy_capture_held_bytes") == 0)


def test_a_dead_redis_costs_the_client_nothing_and_a_stop_publishes_what_waits(
    stack: Stack, tmp_path: Path
) -> None:
    """Requests are answered without Redis; what they said is in it when it has come and we stop."""
    late = RedisServer(tmp_path)
    with ExitStack() as exits:
        whole = ExitStack()
        exits.enter_context(whole)
        own = Stack(
            stack.plain, stack.follower, late, stack.policy, stack.tokenizer, stack.capturing,
            stack.bare, whole,
        )  # fmt: skip
        proxy = own.proxy(stack.plain.url)
        for number in range(3):
            assert post(proxy, TEXT, asking(TEXT), "end", x_session_id=str(number))[0] == 200
        wait_until(lambda: metric(proxy, "paceline_journal_queued") == 3)
        assert metric(proxy, "paceline_journal_connected") == 0
        late.start()
        exits.callback(late.kill)
        wait_until(lambda: metric(proxy, "paceline_journal_connected") == 1)
        _, _, last = post(proxy, TEXT, asking(TEXT), "end", x_session_id="last")
        whole.close()
        found = recorded(late.url, stack.model, "end")
    assert len(found) == 4
    assert found[-1].request_id == last
