"""Two real vLLM servers, one real Redis and the proxy, through the official client.

The tests go from the gentlest to the roughest: the last one leaves one engine dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from redis_server import RedisServer
from vllm_server import VllmServer
from waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.redis, pytest.mark.timeout(900)]

RED, BLUE = "red-key", "blue-key"
POLICY = f"""\
tenants:
  - {{name: red, keys: ["{hash_key(RED)}"]}}
  - {{name: blue, keys: ["{hash_key(BLUE)}"]}}
"""
# The target goes on counting: tokens that stand nowhere before, so that a request's own text
# cannot draft them and only a memory of another request can.
COUNTING = "first second third"
STORY = "Tell me a story of two riders, in five sentences."


@dataclass
class Stack:
    """Engines A and B on one Redis; a proxy in front of each and one in front of both."""

    a: VllmServer
    b: VllmServer
    redis: RedisServer
    proxy_a: RunningProxy
    proxy_b: RunningProxy
    both: RunningProxy


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("stack")
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    redis = RedisServer(folder)
    a, b = (VllmServer(target_folder, redis.url, folder, name) for name in "AB")
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        for server in (a, b):
            server.start()
            exits.callback(server.stop)
        for server in (a, b):
            server.wait_ready()

        def proxy(*servers: VllmServer) -> RunningProxy:
            config = make_config(
                listen={"port": 0},
                upstreams=[
                    {"name": server.name, "url": server.url, "decisions_url": server.worker_url}
                    for server in servers
                ],
                policy_file=policy,
                health_interval_seconds=0.1,
            )
            running = exits.enter_context(running_proxy(config))
            wait_until(lambda: running.proxy.ready)
            return running

        yield Stack(a, b, redis, proxy(a), proxy(b), proxy(a, b))


def client(proxy: RunningProxy, key: str = RED) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0, timeout=120)


def count(proxy: RunningProxy, key: str, prompt: str = COUNTING) -> str:
    """Four tokens of a raw completion."""
    with client(proxy, key) as api:
        reply = api.completions.create(model="target", prompt=prompt, temperature=0, max_tokens=4)
    return reply.choices[0].text


def tell(
    proxy: RunningProxy,
    question: str = STORY,
    *,
    session: str = "story",
    max_tokens: int = 60,
    after_some: Callable[[], None] = lambda: None,
) -> str:
    """A streamed reply; `after_some` is called when three pieces of it have come."""
    pieces: list[str] = []
    with client(proxy) as api:
        stream = api.chat.completions.create(
            model="target",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=max_tokens,
            stream=True,
            extra_headers={"x-session-id": session},
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            if len(pieces) == 3:
                after_some()
    assert len(pieces) > 3
    return "".join(pieces)


def test_an_engine_drafts_what_another_served_to_the_same_tenant_only(stack: Stack) -> None:
    """A serves; a second later B drafts it for that tenant, and not a token of it for another."""
    reply = count(stack.proxy_a, RED)
    assert stack.b.num_drafted == 0
    time.sleep(1)
    assert count(stack.proxy_b, BLUE) == reply
    assert stack.b.num_drafted == 0
    assert count(stack.proxy_b, RED) == reply
    assert stack.b.num_drafted > 0
    assert stack.b.num_accepted > 0


def test_an_episode_on_one_engine_speeds_up_the_next_ones_first_request(stack: Stack) -> None:
    """B's first request of an episode that A served gets most of its tokens from the memory."""
    told = tell(stack.proxy_a, session="on A")
    before = stack.b.num_accepted
    time.sleep(1)
    assert tell(stack.proxy_b, session="on B") == told
    assert stack.b.num_accepted - before > 20


def test_an_answer_says_what_the_engine_decided(stack: Stack) -> None:
    """Its head has the numbers that vLLM's own counters grew by; a stream's are asked for later."""
    options: Any = {
        "model": "target",
        "messages": [{"role": "user", "content": "Which rider pulls first, and for how long?"}],
        "temperature": 0,
        "max_tokens": 40,
        "extra_headers": {"x-paceline-explain": "on"},
        "extra_body": {"ignore_eos": True},
    }
    with client(stack.proxy_a) as api:
        asking = api.chat.completions.with_raw_response
        asking.create(**options)  # from now on memory knows the reply
        drafted, accepted = stack.a.num_drafted, stack.a.num_accepted
        head = asking.create(**options).headers
        assert int(head["x-paceline-accepted-tokens"]) == stack.a.num_accepted - accepted > 0
        assert int(head["x-paceline-draft-tokens"]) == stack.a.num_drafted - drafted
        assert 0 < int(head["x-paceline-rounds"]) < 39
        assert "drafted in" in head["x-paceline-reason"]
        stream = asking.create(**options, stream=True)
        assert list(stream.parse())
        path = f"/paceline/requests/{stream.headers['x-paceline-request-id']}"
        url = f"{stack.proxy_a.url}{path}"
        told = httpx.get(url, headers={"x-api-key": RED}).json()
        assert told["sources"]
        assert told["accepted_tokens"] > 0
        assert httpx.get(url, headers={"x-api-key": BLUE}).status_code == 404
        # a worker closes a request when its next step begins
        wait_until(lambda: httpx.get(f"{stack.a.worker_url}{path}").json()["is_finished"])
        assert httpx.get(f"{stack.b.worker_url}{path}").status_code == 404


@pytest.mark.parametrize("stream", [True, False])
def test_an_abort_reaches_the_engine(stack: Stack, *, stream: bool) -> None:
    """A client that leaves, streaming or not, frees the engine at once."""
    options: dict[str, Any] = {"max_tokens": 800, "stream": stream}
    impatient = client(stack.proxy_a).with_options(timeout=None if stream else 1.0)
    with impatient as api:

        def ask() -> Any:
            return api.chat.completions.create(
                model="target",
                messages=[{"role": "user", "content": STORY}],
                extra_body={"ignore_eos": True},
                **options,
            )

        if stream:
            reply = ask()
            next(reply)
            assert stack.a.num_running == 1
            reply.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                ask()
    wait_until(lambda: stack.a.num_running == 0, seconds=5)


def test_redis_dying_in_a_stream_loses_no_token(stack: Stack) -> None:
    """The stream goes on to its end; when Redis is back, so is sharing."""
    question = "Why do riders take turns at the front?"
    told = tell(stack.proxy_a, question, after_some=stack.redis.kill)
    assert not stack.redis.listens()
    assert tell(stack.proxy_a, question) == told
    reply = count(stack.proxy_a, RED, prompt="alpha beta gamma")
    stack.redis.start()
    time.sleep(6)  # the longest pause between two tries to reconnect, and some
    before = stack.b.num_accepted
    assert count(stack.proxy_b, RED, prompt="alpha beta gamma") == reply
    assert stack.b.num_accepted > before


def test_a_restarted_engine_remembers(stack: Stack) -> None:
    """After a restart the first request drafts from what was served before."""
    reply = count(stack.proxy_b, RED)
    stack.b.stop()
    stack.b.start()
    stack.b.wait_ready()
    wait_until(lambda: stack.proxy_b.proxy.ready)
    assert stack.b.num_drafted == 0
    assert count(stack.proxy_b, BLUE, prompt="alpha beta gamma")
    assert stack.b.num_drafted == 0
    assert count(stack.proxy_b, RED) == reply
    assert stack.b.num_accepted > 0


def test_a_killed_engine_ends_its_stream_well_and_the_other_serves_on(stack: Stack) -> None:
    """``kill -9`` in a stream gives the client an error event; its next request is answered."""
    replicas = {replica.name: replica for replica in stack.both.proxy.replicas}
    servers = {"A": stack.a, "B": stack.b}
    killed: list[str] = []

    def kill() -> None:
        killed.extend(name for name in replicas if replicas[name].outstanding)
        servers[killed[0]].kill()

    with pytest.raises(openai.APIError) as caught:
        tell(stack.both, "What is a headwind?", max_tokens=600, after_some=kill)
    assert killed[0] in caught.value.message
    assert tell(stack.both)
    assert len(killed) == 1
