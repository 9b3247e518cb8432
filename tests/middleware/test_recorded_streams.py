"""What vLLM sends with each of its parsers passes byte for byte, whatever the proxy asks besides.

The bytes were recorded from a real vLLM (tests/vllm/streams/record.py). A server sends them again,
as vLLM would have: with token ids where they are asked for, with usage where that is.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from captured import metric
from paceline.adapters.request_info import RequestInfo
from paceline.middleware.captured_ids import CapturedIds, CaptureRequest, HeldBytes
from paceline.middleware.config import make_config
from paceline.middleware.relay import EventHold
from paceline.middleware.request_body import view_body
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.middleware.usage_editing import UsageMeter, UsageStream
from paceline.policies.tenants import hash_key
from recorded import write_tokenizer
from recorded_streams import (
    CHAT,
    MESSAGES,
    RESPONSES,
    Asked,
    Kind,
    ids_in_chat,
    lacking,
    read_forms,
    read_recordings,
)
from redis_server import RedisServer
from replaying_server import (
    Cut,
    Library,
    ReplayingServer,
    across,
    as_recorded,
    in_one,
    library_of,
    name_of,
)
from waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

RECORDINGS = list(read_recordings())
LIBRARY: Library = library_of(RECORDINGS)
FORMS = read_forms()
IDLE = "tool-keep-alive"
NAMES = sorted({name_of(each) for each in RECORDINGS} - {IDLE})
CHATS = [each for each in dict.fromkeys(asked for _, asked in LIBRARY) if each.path == CHAT]
CUTS: tuple[Cut, ...] = (as_recorded, across, in_one)


def pushed(hold: Any, pieces: Sequence[bytes]) -> bytes:
    return b"".join([*(hold.push(piece) for piece in pieces if piece), hold.rest()])


def capturing(*, asked: bool) -> CapturedIds:
    info = RequestInfo(request_id="r", tenant="t", session="s")
    request = CaptureRequest(info=info, num_choices=1, asked=asked, began_at=0.0)
    return CapturedIds(request, HeldBytes(10**7), 10**6)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_holds_what_its_parser_is_for(name: str) -> None:
    """A call with its arguments, or thoughts apart from the answer; streamed or whole."""
    missing = [lacking(LIBRARY[name, asked]) for asked in CHATS]
    if name in FORMS["quirks"]:
        assert any(missing), "it has become as others are: take it out of forms.yaml"
    else:
        assert not any(missing), missing


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", NAMES)
def test_what_was_asked_for_besides_leaves_no_trace(name: str, cut: Cut) -> None:
    """Without ids and usage that its client did not ask for, a stream is the one it asked for."""
    for wanted in (each for each in CHATS if each.stream):
        expected = LIBRARY[name, wanted]
        sent = [each for each in CHATS if each.stream and each.interval == wanted.interval]
        for asked in sent:
            if asked.ids < wanted.ids or asked.usage not in (wanted.usage, "each"):
                continue
            pieces = cut([chunk.encode() for chunk in LIBRARY[name, asked].chunks])
            ids = capturing(asked=wanted.ids) if asked.ids else None
            hold: Any = EventHold() if ids is None else ids.stream()
            if asked.usage == "each":
                view = view_body(json.dumps(wanted.fields).encode())
                hold = UsageStream(UsageMeter(), view, None if ids is None else hold)
            assert pushed(hold, pieces) == expected.body, (wanted, asked)
            if ids is not None:
                assert said_ids(ids) == ids_in_chat(LIBRARY[name, asked])


def said_ids(ids: CapturedIds) -> list[int]:
    assert ids.reason == ""
    (sequence,) = ids.sequences()
    assert len(sequence.prompt_ids)
    return sequence.said_ids.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_answer_loses_its_ids_and_nothing_else(name: str) -> None:
    """It is the one that vLLM gives to a client which asks for none; a stream says the same ids."""
    asked = Asked(stream=False, ids=True)
    ids = capturing(asked=False)
    edited = ids.whole(LIBRARY[name, asked].body)
    assert edited == LIBRARY[name, Asked(stream=False)].body
    told = said_ids(ids)
    assert len(told) > 10
    assert told == ids_in_chat(LIBRARY[name, asked]) == ids_in_chat(LIBRARY[name, Asked(ids=True)])


@dataclass
class Stack:
    """Proxies in front of one server of recordings."""

    server: ReplayingServer
    bare: RunningProxy
    capturing: RunningProxy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A proxy that asks for what its client asks, and one that records; tenants with limits."""
    folder = tmp_path_factory.mktemp("recorded")
    limits = {"tokens_per_minute": 10**9, "requests_per_minute": 10**6}
    policy = folder / "policy.yaml"
    tenants: list[dict[str, Any]] = [
        {"name": "free", "keys": [hash_key("free")]},
        {"name": "metered", "keys": [hash_key("metered")], "limits": limits},
    ]
    policy.write_text(json.dumps({"tenants": tenants}))
    redis = RedisServer(folder)
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        server = exits.enter_context(ReplayingServer(LIBRARY).running())

        def proxy(**settings: Any) -> RunningProxy:
            config = make_config(
                listen={"port": 0},
                upstreams=[{"name": "e", "url": server.url}],
                policy_file=policy,
                health_interval_seconds=0.1,
                **settings,
            )
            running = exits.enter_context(running_proxy(config))
            wait_until(lambda: running.proxy.ready)
            return running

        tokenizer = write_tokenizer(folder / "tokenizer")  # names the memory, reads nothing
        capture = {"redis_url": redis.url, "model": "target", "tokenizer": tokenizer}
        yield Stack(server, proxy(), proxy(capture=capture))


def ask(url: str, name: str, asked: Asked, key: str) -> tuple[int, bytes]:
    body: dict[str, Any] = {"model": "target", "user": name, **asked.fields}
    said = "How is the weather in Ghent?"
    body |= {"input": said} if asked.path == RESPONSES else {}
    body |= {"messages": [{"role": "user", "content": said}], "max_tokens": 400}
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        connection.request("POST", asked.path, json.dumps(body), {"x-api-key": key})
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("name", NAMES)
def test_each_client_gets_the_bytes_of_a_direct_call(stack: Stack, name: str) -> None:
    """Chats, messages and responses, with and without limits and recording, cut anyhow."""
    for number, asked in enumerate(asked for each, asked in LIBRARY if each == name):
        stack.server.cut = as_recorded
        direct = ask(stack.server.url, name, asked, "free")
        assert direct == (200, LIBRARY[name, asked].body)
        stack.server.cut = CUTS[number % len(CUTS)]
        for proxy in (stack.bare, stack.capturing):
            for key in ("free", "metered"):
                assert ask(proxy.url, name, asked, key) == direct, (asked, key)


@pytest.mark.parametrize("cut", CUTS)
def test_comments_that_keep_a_stream_alive_pass(stack: Stack, cut: Cut) -> None:
    """VLLM sends them while its engine stands still."""
    stack.server.cut = cut
    body = LIBRARY[IDLE, Asked()].body
    assert body.startswith(b": keep-alive\n\n")
    for proxy in (stack.bare, stack.capturing):
        for key in ("free", "metered"):
            assert ask(proxy.url, IDLE, Asked(), key) == (200, body)


def test_nothing_of_it_was_odd_to_the_recorder(stack: Stack) -> None:
    """What every parser's streams told was taken for what it is, and recorded."""
    seen = stack.capturing
    for reason in ("odd_answer", "no_token_ids"):
        assert metric(seen, "paceline_proxy_capture_dropped_total", reason=reason) == 0
    wait_until(lambda: metric(seen, "paceline_proxy_captured_total") > len(NAMES))


def test_recordings_are_of_the_forms() -> None:
    """What forms.yaml says is recorded, is; and nothing else."""
    formed = {f"{kind}-{name}" for kind in get_args(Kind) for name in FORMS[kind]}
    assert set(NAMES) == formed
    for path in (MESSAGES, RESPONSES):
        unserved = {name for name in NAMES if (name, Asked(path=path)) not in LIBRARY}
        assert unserved == set(FORMS["unserved"].get(path, ()))
    assert all((name, asked) in LIBRARY for name in NAMES for asked in CHATS)
