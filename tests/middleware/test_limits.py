"""Tenants' limits at real proxies that share a real Redis, in front of scripted engines."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai
import pytest

from captured import metric
from paceline.errors import JournalError
from paceline.middleware.limiter import LimitTiming
from paceline.policies.tenants import hash_key
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
OK = b"HTTP/1.1 200 OK\r\n"
STREAM_HEAD = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NUM_READ, NUM_SAID = 90, 10
FAST = LimitTiming(lease_ms=1_500, tick_seconds=0.05, wait_seconds=0.5, lost_seconds=1)

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


def usage(said: int = NUM_SAID) -> bytes:
    return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % (
        NUM_READ,
        NUM_READ + said,
        said,
    )


def event(said: int, *, ends: bool = False, with_usage: bool = True) -> bytes:
    reason = b'"stop"' if ends else b"null"
    choice = b'"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":%b}]' % reason
    return b'data: {"id":"1",' + choice + (b"," + usage(said) if with_usage else b"") + b"}\n\n"


async def answer(_request: Any, _reader: Any, writer: Any) -> None:
    body = b'{"id":"1","model":"m","choices":[],' + usage() + b"}"
    head = OK + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    writer.write(head + body)


async def stream(_request: Any, _reader: Any, writer: Any) -> None:
    last = b'data: {"id":"1","choices":[],' + usage() + b"}\n\n"
    events = [*(event(n) for n in range(1, NUM_SAID)), event(NUM_SAID, ends=True), last]
    writer.write(STREAM_HEAD)
    for part in [*events, b"data: [DONE]\n\n"]:
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
    writer.write(b"0\r\n\r\n")


async def die(_request: Any, _reader: Any, writer: Any) -> None:
    writer.transport.abort()
    raise ConnectionResetError


@dataclass
class Reply:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


def ask(url: str, key: str = "shop", **more: Any) -> Reply:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", CHAT, json.dumps(BODY | more), {"x-api-key": key})
    response = connection.getresponse()
    reply = Reply(response.status, response.read(), dict(response.getheaders()))
    connection.close()
    return reply


@contextmanager
def open_stream(url: str) -> Iterator[http.client.HTTPResponse]:
    """A stream of which the first event has come; left at the end."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", CHAT, json.dumps(BODY | {"stream": True}), {"x-api-key": "shop"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline()
    yield response
    connection.sock.close() if connection.sock else None
    response.close()
    connection.close()


def policy(folder: Path, **limits: int) -> Path:
    """A tenant with limits, and one without."""
    path = folder / "tenants.yaml"
    tenants = [
        {"name": "shop", "keys": [hash_key("shop")], "limits": limits},
        {"name": "bank", "keys": [hash_key("bank")]},
    ]
    path.write_text(json.dumps({"tenants": tenants}))
    return path


def shared(server: RedisServer, folder: Path, **limits: int) -> dict[str, Any]:
    """Settings of a proxy whose limits are in Redis."""
    return {
        "policy_file": policy(folder, **limits),
        "limits": {"redis_url": server.url},
        "limit_timing": FAST,
    }


def counted(server: RedisServer, kind: str = "tokens") -> int:
    """What a window of the tenant's holds."""
    with server.client() as client:
        return int(client.hget(f"paceline:limits:1:{{shop}}:{kind}:", "s") or 0)


def places(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.zcard("paceline:limits:1:{shop}:places:"))


def test_who_must_wait_is_told_why_and_how_long(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """OpenAI's error and headers, which its SDK understands; others are not concerned."""
    engine = engines(answer)
    proxy = proxies(engine.url, policy_file=policy(tmp_path, requests_per_minute=2))
    first = ask(proxy.url)
    assert (first.status, first.headers["x-ratelimit-limit-requests"]) == (200, "2")
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert ask(proxy.url).headers["x-ratelimit-remaining-requests"] == "0"
    refused = ask(proxy.url)
    assert refused.status == 429
    assert refused.error["type"] == "rate_limit_error"
    assert refused.error["code"] == "rate_limit_exceeded"
    assert "tenant 'shop' has reached its limit of 2 requests a minute" in refused.error["message"]
    assert 50 < int(refused.headers["retry-after"]) <= 60
    assert 50_000 < int(refused.headers["retry-after-ms"]) <= 60_000
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["content-type"] == "application/json"
    with (
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="shop", max_retries=0) as sdk,
        pytest.raises(openai.RateLimitError) as error,
    ):
        sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
    assert error.value.code == "rate_limit_exceeded"
    free = ask(proxy.url, "bank")
    assert free.status == 200
    assert not [name for name in free.headers if "ratelimit" in name]
    assert len(engine.seen) == 3
    assert metric(proxy, "paceline_proxy_limit_admitted_total", tenant="shop") == 2
    assert metric(proxy, "paceline_proxy_limit_refused_total", limit="requests") == 2


def test_two_proxies_under_a_rush_let_in_the_limit(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Four hundred requests at once at two proxies: exactly the limit reaches the engine."""
    engine = engines(answer)
    settings = shared(redis_server, tmp_path, requests_per_minute=150)
    # while Redis answers, however late on a busy machine
    settings["limit_timing"] = replace(FAST, wait_seconds=30.0, lost_seconds=30.0)
    urls = [proxies(engine.url, **settings).url for _ in range(2)]
    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(lambda n: ask(urls[n % 2]).status, range(400)))
    assert statuses.count(200) == len(engine.seen) == counted(redis_server, "requests") == 150
    assert statuses.count(429) == 250


def test_overload_for_several_windows_lets_in_the_limit_in_each(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """With a window of a second: what the engine sees is the limit for each second of the rush."""
    times: list[float] = []

    async def note(request: Any, reader: Any, writer: Any) -> None:
        times.append(asyncio.get_running_loop().time())
        await answer(request, reader, writer)

    engine = engines(note)
    settings = shared(redis_server, tmp_path, requests_per_minute=40)
    settings["limit_timing"] = LimitTiming(window_ms=1000, wait_seconds=0.5)
    pair = [proxies(engine.url, **settings) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:

        def overload(number: int) -> int:
            return sum(ask(pair[number % 2].url).status == 200 for _ in range(100))

        num_admitted = sum(pool.map(overload, range(8)))
    elapsed = max(times) - min(times)
    assert num_admitted == len(times)
    # a request travels on behind its decision, one longer than the other
    assert 40 * int(elapsed - 0.3) <= num_admitted <= 40 * (int(elapsed + 0.3) + 1)
    assert sum(metric(proxy, "paceline_proxy_limit_degraded") for proxy in pair) == 0


@pytest.mark.parametrize("streams", [False, True])
def test_tokens_are_charged_as_they_were_used(
    engines: Engines,
    proxies: Proxies,
    redis_server: RedisServer,
    tmp_path: Path,
    *,
    streams: bool,
) -> None:
    """Of 1,000 tokens a minute ten requests of a hundred are let in, one after the other."""
    engine = engines(stream if streams else answer)
    settings = shared(redis_server, tmp_path, tokens_per_minute=1_000)
    pair = [proxies(engine.url, **settings) for _ in range(2)]
    for number in range(10):
        reply = ask(pair[number % 2].url, stream=streams)
        assert reply.status == 200
        assert reply.headers["x-ratelimit-limit-tokens"] == "1000"
        assert int(reply.headers["x-ratelimit-remaining-tokens"]) < 1_000 - 100 * number
        wait_until(lambda n=number: counted(redis_server) == 100 * (n + 1))
    refused = ask(pair[0].url, stream=streams)
    assert refused.status == 429
    assert "limit of 1000 tokens a minute" in refused.error["message"]
    assert sum(metric(p, "paceline_proxy_limit_tokens_total") for p in pair) == 1_000


def test_a_stream_says_no_numbers_that_were_not_asked_for(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """The engine is asked, the client sees what it would have seen without us."""
    engine = engines(stream)
    proxy = proxies(engine.url, policy_file=policy(tmp_path, tokens_per_minute=10_000))
    plain = ask(proxy.url, stream=True)
    asked = {"include_usage": True, "continuous_usage_stats": True}
    whole = ask(proxy.url, stream=True, stream_options=asked)
    free = ask(proxy.url, "bank", stream=True)
    assert [seen.json.get("stream_options") for seen in engine.seen] == [asked, asked, None]
    events = [event(n, with_usage=False) for n in range(1, NUM_SAID)]
    ending = event(NUM_SAID, ends=True, with_usage=False)
    assert plain.body == b"".join([*events, ending, b"data: [DONE]\n\n"])
    assert whole.body == free.body
    assert whole.body.count(b'"usage"') == NUM_SAID + 1


def test_who_leaves_early_is_charged_for_what_was_said(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """While a stream runs, and when its client has gone."""

    async def speak(_request: Any, reader: Any, writer: Any) -> None:
        writer.write(STREAM_HEAD)
        for part in (event(1), event(2_000)):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
        await engine.wait_until_left(reader)

    engine = engines(speak)
    proxy = proxies(engine.url, **shared(redis_server, tmp_path, tokens_per_minute=9_000))
    with open_stream(proxy.url):
        wait_until(lambda: counted(redis_server) == NUM_READ + 2_000)
    assert engine.left.wait(5)
    wait_until(lambda: metric(proxy, "paceline_proxy_limit_tokens_total") == NUM_READ + 2_000)
    assert counted(redis_server) == NUM_READ + 2_000


def test_who_leaves_before_a_whole_answer_stays_charged_as_expected(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The engine has worked for it; leaving early makes nothing free."""

    async def think(_request: Any, reader: Any, _writer: Any) -> None:
        await engine.wait_until_left(reader)

    engine = engines(think)
    proxy = proxies(engine.url, **shared(redis_server, tmp_path, tokens_per_minute=9_000))
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=20)
    connection.request("POST", CHAT, json.dumps(BODY), {"x-api-key": "shop"})
    wait_until(lambda: len(engine.seen) == 1)
    expected = counted(redis_server)
    connection.close()
    assert engine.left.wait(5)
    wait_until(lambda: metric(proxy, "paceline_proxy_limit_tokens_total") == expected)
    assert counted(redis_server) == expected > 0


def test_a_failed_engine_charges_nothing_and_a_second_one_once(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Tokens are given back where no engine answered; the request itself counts."""
    dying, refusing, sound = engines(die), engines(refuse), engines(answer)
    settings = shared(redis_server, tmp_path, tokens_per_minute=9_000, requests_per_minute=9)
    assert ask(proxies(dying.url, **settings).url).status == 502
    wait_until(lambda: counted(redis_server) == 0)
    assert ask(proxies(refusing.url, **settings).url).status == 400
    wait_until(lambda: counted(redis_server) == 0)
    pair = proxies(dying.url, sound.url, **settings)
    for number in range(3):
        assert ask(pair.url, prompt_cache_key=f"s{number}").status == 200
    wait_until(lambda: counted(redis_server) == 3 * (NUM_READ + NUM_SAID))
    assert counted(redis_server, "requests") == 5
    assert len(dying.seen) > 2


async def refuse(_request: Any, _reader: Any, writer: Any) -> None:
    writer.write(
        b"HTTP/1.1 400 Bad\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_places_are_shared_and_come_back(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Two at a time over both proxies, as long as they last, and a third when one has gone."""

    async def hold(_request: Any, reader: Any, writer: Any) -> None:
        writer.write(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(event(1)), event(1)))
        await writer.drain()
        await engine.wait_until_left(reader)

    engine = engines(hold)
    settings = shared(redis_server, tmp_path, concurrency=2)
    one, other = (proxies(engine.url, **settings).url for _ in range(2))
    with open_stream(one):
        with open_stream(other):
            with redis_server.client() as client:
                key = "paceline:limits:1:{shop}:places:"
                first = max(score for _, score in client.zrange(key, 0, -1, withscores=True))
                # each place is spoken for again and again
                wait_until(lambda: client.zrange(key, 0, 0, withscores=True)[0][1] > first)
            for url in (one, other):
                refused = ask(url)
                assert refused.status == 429
                assert "limit of 2 requests at a time" in refused.error["message"]
                assert refused.headers["retry-after"] == "1"
        wait_until(lambda: places(redis_server) == 1)
        with open_stream(one):
            assert places(redis_server) == 2
    wait_until(lambda: places(redis_server) == 0)


def test_without_redis_each_proxy_keeps_the_limit_alone_and_comes_back(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path, caplog: Any
) -> None:
    """Requests go on, counted from what the proxy has let in itself; it is said once."""
    engine = engines(answer)
    settings = shared(redis_server, tmp_path, requests_per_minute=10)
    pair = [proxies(engine.url, **settings) for _ in range(2)]
    assert [ask(pair[0].url).status for _ in range(4)] == [200] * 4
    redis_server.kill()
    assert [ask(pair[0].url).status for _ in range(7)] == [200] * 6 + [429]
    assert [ask(pair[1].url).status for _ in range(11)] == [200] * 10 + [429]
    for proxy in pair:
        assert metric(proxy, "paceline_proxy_limit_degraded") == 1
        assert metric(proxy, "paceline_proxy_limit_redis_lost_total") >= 1
    away = [record for record in caplog.records if "keeps the limits alone" in record.message]
    assert len(away) == 2
    redis_server.start()
    wait_until(lambda: not sum(metric(p, "paceline_proxy_limit_degraded") for p in pair))
    # 4 before, 16 meanwhile: what is beyond the limit counts in the next minute
    assert counted(redis_server, "requests") == 10
    with redis_server.client() as client:
        assert client.hget("paceline:limits:1:{shop}:requests:", "d") == b"10"
    assert ask(pair[1].url).status == 429


def test_what_ended_while_redis_was_away_is_booked_when_it_is_back(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A request that was let in by Redis gives back there what it did not use."""
    gate = threading.Event()

    async def wait(request: Any, reader: Any, writer: Any) -> None:
        await asyncio.to_thread(gate.wait)
        await answer(request, reader, writer)

    engine = engines(wait)
    proxy = proxies(engine.url, **shared(redis_server, tmp_path, tokens_per_minute=9_000))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, proxy.url)
        wait_until(lambda: len(engine.seen) == 1)
        assert counted(redis_server) > NUM_READ + NUM_SAID
        redis_server.kill()
        gate.set()
        assert asked.result().status == 200
    wait_until(lambda: metric(proxy, "paceline_proxy_limit_degraded") == 1)
    redis_server.start()
    wait_until(lambda: counted(redis_server) == NUM_READ + NUM_SAID)


def test_a_proxy_that_starts_without_redis_serves(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It keeps the limits alone until Redis comes."""
    redis_server.kill()
    settings = shared(redis_server, tmp_path, requests_per_minute=2)
    proxy = proxies(engines(answer).url, **settings)
    assert [ask(proxy.url).status for _ in range(3)] == [200, 200, 429]
    redis_server.start()
    wait_until(lambda: not metric(proxy, "paceline_proxy_limit_degraded"))
    assert counted(redis_server, "requests") == 2
    assert ask(proxy.url).status == 429


def test_a_redis_that_stands_still_holds_nobody_up(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A frozen one is given up within the bound, and used again when it goes on."""
    settings = shared(redis_server, tmp_path, requests_per_minute=100)
    proxy = proxies(engines(answer).url, **settings)
    redis_server.freeze()
    try:
        assert [ask(proxy.url).status for _ in range(5)] == [200] * 5
        assert metric(proxy, "paceline_proxy_limit_degraded") == 1
    finally:
        redis_server.thaw()
    wait_until(lambda: not metric(proxy, "paceline_proxy_limit_degraded"))
    assert ask(proxy.url).status == 200


def test_an_answer_that_comes_late_counts_once(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis has counted the request that did not wait for it; it is not counted again."""
    settings = shared(redis_server, tmp_path, requests_per_minute=100, tokens_per_minute=9_000)
    settings["limit_timing"] = LimitTiming(wait_seconds=0.1, lost_seconds=20)
    proxy = proxies(engines(answer).url, **settings)
    redis_server.freeze()
    try:
        assert ask(proxy.url).status == 200
        assert metric(proxy, "paceline_proxy_limit_degraded") == 1
    finally:
        redis_server.thaw()
    wait_until(lambda: not metric(proxy, "paceline_proxy_limit_degraded"))
    wait_until(lambda: counted(redis_server) == NUM_READ + NUM_SAID)
    assert counted(redis_server, "requests") == 1
    assert ask(proxy.url).status == 200
    assert counted(redis_server, "requests") == 2


def test_tenants_without_limits_cost_redis_nothing(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Not a single call is made for them; for one with limits there are two."""
    proxy = proxies(
        engines(answer).url,
        **shared(redis_server, tmp_path, requests_per_minute=50, concurrency=50),
    )

    def num_calls() -> int:
        with redis_server.client() as client:
            stats = client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in SCRIPTS)

    for _ in range(5):
        assert ask(proxy.url, "bank").status == 200
    assert num_calls() == 0
    for number in range(5):
        assert ask(proxy.url).status == 200
        # the first of each kind is sent twice: Redis does not know it yet
        wait_until(lambda n=number: num_calls() == 2 * (n + 1) + 2)


SCRIPTS = ("eval", "evalsha")


def test_a_wrong_url_is_named(engines: Engines, proxies: Proxies, tmp_path: Path) -> None:
    """Before anything is served."""
    with pytest.raises(JournalError, match="is not a Redis URL"):
        proxies(
            engines(answer).url,
            policy_file=policy(tmp_path, concurrency=1),
            limits={"redis_url": "nonsense"},
        )
