"""Tool calls that a real vLLM is made to give, through the proxy, as each SDK reads them.

So small a model calls no tool by itself; required and named ones are held to their grammar. Memory
and a model drafter draft meanwhile. The same engine is the one beside which the learner of
examples/learner_beside_vllm.sh learns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from paceline.load_file import EngineFiles
from paceline.middleware.config import make_config
from paceline.middleware.server import running_proxy
from paceline.online.passages import Passage
from paceline.online.served_teacher import ServedTeacher
from paceline.processes import free_port
from redis_server import RedisServer
from sdk_clients import OPENAI_2, ROOT, SdkClients
from vllm_server import VllmServer
from waiting import wait_until

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.sdks,
    pytest.mark.redis,
    pytest.mark.timeout(900),
]

CLIENTS = ROOT / "tests" / "sdks" / "clients"
NODE = ROOT / "tests" / "sdks" / "node"
CITIES = {"Ghent", "Lille"}


@dataclass
class Stack:
    """An engine with a drafter that follows a registry, and scripts that ask a proxy before it."""

    engine: VllmServer
    redis: RedisServer
    clients: SdkClients
    target: Path
    drafter: Path
    registry: Path


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("calls")
    drafter, registry = folder / "drafter", folder / "registry"
    registry.mkdir()
    subprocess.run(
        [
            *(sys.executable, "-m", "paceline.middleware.cli", "drafter", "init"),
            *(str(target_folder), str(drafter), "--num-layers", "2"),
        ],
        check=True,
        capture_output=True,
    )
    redis = RedisServer(folder)
    engine = VllmServer(
        target_folder,
        redis.url,
        folder,
        "calls",
        *("--drafter", str(drafter), "--drafter-registry", str(registry)),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-model-len", "4096"),
        # else only tools with `strict: true` have their arguments held to their schema
        *("--tool-strict-level", "parameter"),
    )
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        engine.start()
        exits.callback(engine.stop)
        engine.wait_ready()
        config = make_config(
            listen={"port": 0},
            upstreams=[{"name": "calls", "url": engine.url}],
            health_interval_seconds=0.1,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: proxy.proxy.ready)
        clients = SdkClients(f"{proxy.url}/v1", f"{engine.url}/metrics", folder, model="target")
        yield Stack(engine, redis, clients, target_folder, drafter, registry)


def city_of(arguments: str) -> str:
    """What a call's arguments name, and nothing else stands in them."""
    told: dict[str, str] = json.loads(arguments)
    assert set(told) == {"city"}
    assert told["city"] in CITIES
    return told["city"]


def test_openai(stack: Stack) -> None:
    """A named call comes whole as in pieces; a required one ends for that; results go back."""
    drafted = stack.engine.num_accepted
    found = stack.clients.found(CLIENTS / "tools_with_openai.py")
    assert stack.engine.num_accepted > drafted  # what was said once was drafted the next time
    chat, responses = found["chat"], found["responses"]
    assert chat["name"] == chat["streamed_name"] == "weather"
    assert city_of(chat["arguments"]) == city_of(chat["streamed_arguments"])
    assert "tool_calls.function.arguments.delta" in chat["events"]
    assert set(chat["required"]) == {"weather"}
    assert chat["reason"] == "tool_calls"
    assert chat["reply"]
    assert responses["arguments"]
    assert [*map(city_of, responses["arguments"])] == [*map(city_of, responses["streamed"])]
    assert "response.function_call_arguments.delta" in responses["events"]
    assert responses["reply"]


def test_anthropic(stack: Stack) -> None:
    """A named tool and any tool give a `tool_use` block, in pieces too; its result goes back."""
    found = stack.clients.found(CLIENTS / "tools_with_anthropic.py")
    assert found["name"] == "weather"
    assert found["input"]["city"] in CITIES
    assert found["streamed"]
    assert all(each["city"] in CITIES for each in found["streamed"])
    assert set(found["reasons"]) == {"tool_use"}
    assert {"content_block_start", "input_json", "message_stop"} <= set(found["events"])
    assert found["reply"]


def test_langgraph(stack: Stack) -> None:
    """A graph goes from the call through the tool to the reply; a streamed call is the same."""
    found = stack.clients.found(CLIENTS / "tools_with_langgraph.py")
    assert found["roles"] == ["human", "ai", "tool", "ai"]
    assert set(found["cities"]) <= CITIES
    assert found["tool"] == f"Rain in {found['cities'][0]}."
    assert [call["city"] for call in found["streamed"]] == found["cities"]
    assert found["reply"]


def test_openai_agents(stack: Stack) -> None:
    """A streamed run calls the tool, takes its output, and ends with a reply."""
    found = stack.clients.found(CLIENTS / "tools_with_openai_agents.py")
    assert found["kinds"][:2] == ["tool_called", "tool_output"]
    assert found["kinds"][-1] == "message_output_created"
    assert found["cities"]
    assert set(found["cities"]) <= CITIES
    assert found["reply"]


def test_pydantic_ai(stack: Stack) -> None:
    """Structured output is the object that was asked for, whole and streamed."""
    found = stack.clients.found(CLIENTS / "tools_with_pydantic_ai.py")
    assert len(found["cities"]) == 2
    assert set(found["cities"]) <= CITIES
    assert len(set(found["cities"])) == 1


def test_smolagents(stack: Stack) -> None:
    """An agent's step is calls of tools that it has, and they are made."""
    found = stack.clients.found(CLIENTS / "tools_with_smolagents.py")
    assert found["calls"]
    assert set(found["calls"]) <= {"weather", "final_answer"}
    assert len(found["cities"]) == found["calls"].count("weather")
    assert set(found["cities"]) <= CITIES


def test_autogen(stack: Stack) -> None:
    """The client gives the calls with their arguments, in pieces too, and takes their result."""
    found = stack.clients.found(CLIENTS / "tools_with_autogen.py")
    assert set(found["calls"]) == {"weather"}
    assert [*map(city_of, found["arguments"])] == [*map(city_of, found["streamed"])]
    assert found["cities"] == [city_of(found["arguments"][0])]
    assert found["reason"] == "function_calls"
    assert found["reply"]


def test_llama_index(stack: Stack) -> None:
    """The tool runs with what the call says, and its results go back.

    A streamed call comes whole. Of each chunk LlamaIndex reads the first delta alone: it gives the
    call where no chunk has a second, as without drafts (docs/sdks.md).
    """
    found = stack.clients.found(CLIENTS / "tools_with_llama_index.py", OPENAI_2)
    assert set(found["calls"]) == {"weather"}
    assert found["done"] == [f"Rain in {city}." for city in found["cities"]]
    assert found["cities"]
    assert set(found["cities"]) <= CITIES
    assert found["reply"]
    for streamed in (found["streamed"], found["streamed_singly"]):
        assert streamed["name"] == "weather"
        assert city_of(streamed["told"])
        assert streamed["kept"] == streamed["firsts"]
    assert city_of(found["streamed_singly"]["read"])


def test_litellm(stack: Stack) -> None:
    """Named and required calls come whole, and put together from pieces; a result goes back."""
    found = stack.clients.found(CLIENTS / "tools_with_litellm.py")
    assert found["calls"] == [["weather"]] * 4
    assert all(city_of(arguments) for (arguments,) in found["arguments"])
    assert set(found["reasons"]) == {"tool_calls"}
    assert found["reply"]


def test_dspy(stack: Stack) -> None:
    """Its language model gives a named call; a module has a required one, and runs the tool."""
    found = stack.clients.found(CLIENTS / "tools_with_dspy.py")
    ((name, arguments),) = found["plain"]
    assert name == "weather"
    assert city_of(arguments)
    assert set(found["calls"]) == {"weather"}
    assert found["cities"]
    assert set(found["cities"]) <= CITIES
    assert found["done"] == [f"Rain in {city}." for city in found["cities"]]


def test_crewai(stack: Stack) -> None:
    """A call that the model's settings require is made with what it says, streamed too."""
    found = stack.clients.found(CLIENTS / "tools_with_crewai.py", OPENAI_2)
    assert len(found["cities"]) == 2
    assert set(found["cities"]) <= CITIES
    assert found["done"] == [f"Rain in {city}." for city in found["cities"]]


def test_openai_for_node(stack: Stack) -> None:
    """Named and required calls, whole and streamed; its helper runs the tool; a response's call."""
    found = stack.clients.found(NODE / "tools_with_openai.mjs")
    assert set(found["calls"]) == {"weather"}
    assert len(found["calls"]) >= 3
    assert [*map(city_of, found["arguments"])] == [city_of(found["deltas"])] * 2
    assert found["reason"] == "tool_calls"
    assert found["reply"]
    assert found["roles"] == ["user", "assistant", "tool"]
    assert set(found["cities"]) <= CITIES
    assert len(found["cities"]) == 2
    assert found["response"]
    assert all(map(city_of, found["response"]))
    assert {"response.function_call_arguments.delta", "response.completed"} <= set(found["events"])


def asked(engine: VllmServer, **more: object) -> urllib.request.Request:
    """A completion of many tokens."""
    body = {"model": "target", "prompt": "one two", "max_tokens": 120, "ignore_eos": True}
    return urllib.request.Request(  # noqa: S310  our own
        f"{engine.url}/v1/completions",
        json.dumps(body | more).encode(),
        {"content-type": "application/json"},
    )


def test_a_learner_is_told_of_its_requests(stack: Stack) -> None:
    """In the registry's folder, until they end or their clients leave; a teacher's are none."""
    with closing(EngineFiles(stack.registry)) as files:

        def num_open() -> int:
            files.find()
            assert len(files) == 1
            return files.num_open()

        wait_until(lambda: num_open() == 0)
        with urllib.request.urlopen(asked(stack.engine, stream=True), timeout=60) as left:  # noqa: S310  our own
            left.readline()
            assert num_open() == 1
        wait_until(lambda: num_open() == 0)  # vLLM has made a step for that alone

        def whole(number: int) -> str:
            request = asked(stack.engine, prompt=f"count to {number}")
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own
                reason: str = json.load(answer)["choices"][0]["finish_reason"]
            return reason

        with ThreadPoolExecutor(2) as clients:
            replies = clients.map(whole, (8, 9))
            wait_until(lambda: num_open() == 2)
            assert [*replies] == ["length"] * 2
        wait_until(lambda: num_open() == 0)
        seen: list[int] = []

        def may_go_on() -> bool:
            seen.append(num_open())
            return True

        passage = Passage(
            token_ids=np.arange(100, 1100, dtype=np.int32),
            is_said=np.ones(1000, np.bool_),
            tenant="a",
            scope="tenant:a",
            workload="",
            session="s",
            begun_at=1.0,
            finished_at=1.0,
        )
        teacher = ServedTeacher(stack.engine.url, model="target", may_go_on=may_go_on)
        assert len(teacher.teach([passage])) == 1
        assert len(seen) > 10
        assert set(seen) == {0}


def test_a_learner_beside_it_learns(stack: Stack) -> None:
    """The example's conversations are served, then the drafter is trained on them."""
    script = ROOT / "examples" / "learner_beside_vllm.sh"
    done = subprocess.run(
        [str(script), str(stack.target), str(stack.drafter)],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PACELINE_PORT": str(free_port()),
            "ENGINE": stack.engine.url,
            "REDIS": stack.redis.url,
            "REGISTRY": str(stack.registry),
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "served 12 conversations" in done.stdout
    steps = re.search(r"^training steps: (\d+)", done.stdout, re.MULTILINE)
    assert steps
    assert int(steps[1]) > 0
    assert re.search(r"^target, shared: version \d+ is current$", done.stdout, re.MULTILINE)
