"""Have a real vLLM answer through each of its parsers, and keep the bytes that it sends.

Usage: python tests/vllm/streams/record.py [--only PARSER ...] [--check]

One engine of random weights says the texts of forms.yaml: what it samples is forced, as
`paceline bench engine` does it. For each parser vLLM's own application is built over it, with that
parser set as the command line would, and asked over HTTP. Clocks and random ids stand still, and
what the engine's steps give is sent step by step, however busy the machine: answers differ only by
what was asked, and a second run writes the same file. ``--only`` replaces the recordings of some
parsers; ``--check`` writes nothing and says which differ.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, get_args
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from paceline.adapters.embedded.packaged import export_packaged_tokenizer
from paceline.adapters.vllm.launch import require_vllm, serve_environment
from paceline.benchmarks.engine.records import REPLY_KEY
from paceline.processes import free_port
from recorded_streams import (
    CHAT,
    MESSAGES,
    RESPONSES,
    Asked,
    Kind,
    Recording,
    Usage,
    lacking,
    read_forms,
    read_recordings,
    write_recordings,
)

QUESTION: Final = "How is the weather in Ghent?"
NOW: Final = 1_790_000_000.0
MAX_TOKENS: Final = 400
END: Final = "<|im_end|>"
INTERVAL: Final = 5
IDLE_SECONDS: Final = 1.4
AT_ONCE: Final = 12
"""Parsers that are recorded at a time, each in requests one after the other."""
SCHEMA: Final = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
USAGES: Final[tuple[Usage, ...]] = ("", "last", "each")
ASKS: Final = (
    *(Asked(ids=ids, usage=usage) for ids in (False, True) for usage in USAGES),
    *(
        Asked(ids=ids, usage=usage, interval=INTERVAL)
        for ids in (False, True)
        for usage in ("", "each")
    ),
    *(Asked(ids=ids, stream=False) for ids in (False, True)),
    *(Asked(path=path) for path in (MESSAGES, RESPONSES)),
)
WORDS: Final = {"thinking": True, "enable_thinking": True, "reasoning_effort": "high"}
"""Arguments of chat templates by which a request turns reasoning on; parsers read them."""


def write_target(folder: Path, forms: dict[str, Any]) -> Path:
    """A model folder without weights: the packaged tokenizer with the markers of all parsers."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(export_packaged_tokenizer(folder))
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in forms["tokens"]])
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text()) | {"response_template": forms["response_template"]}
    settings.write_text(json.dumps(told))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def vllm_arguments(target: Path) -> argparse.Namespace:
    """What ``vllm serve`` would be told."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments: argparse.Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(
        [
            *("--model", str(target), "--served-model-name", "target"),
            *("--load-format", "dummy", "--max-model-len", "2048", "--enforce-eager"),
            *("--worker-cls", "paceline.benchmarks.engine.worker.PeerCPUWorker"),
            *("--distributed-executor-backend", "uni", "--no-async-scheduling"),
            *("--enable-auto-tool-choice", "--disable-log-stats", "--uvicorn-log-level", "error"),
            # its own is another with each folder of the model
            *("--fingerprint-mode", "custom", "--fingerprint-value", "vllm-recorded"),
        ]
    )
    return arguments


@asynccontextmanager
async def served(engine: Any, arguments: argparse.Namespace, name: str) -> AsyncIterator[int]:
    """vLLM's application over an engine, on a port of its own; `name` is like no other's."""
    import uvicorn
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.launcher import NoSignalServer

    tasks = await engine.get_supported_tasks()
    app = build_app(arguments, tasks, engine.model_config)
    await init_app_state(engine, app.state, arguments, tasks)
    port = free_port()
    settings = uvicorn.Config(beginning_anew(app, name), port=port, log_level="error")
    server = NoSignalServer(settings)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn tells it by this alone
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    await serving


def with_parsers(arguments: argparse.Namespace, kind: Kind, parser: str) -> argparse.Namespace:
    """The same with ``--tool-call-parser``, ``--reasoning-parser`` or both."""
    told = copy.copy(arguments)
    told.tool_call_parser = parser if kind in ("tool", "both") else None
    told.enable_auto_tool_choice = told.tool_call_parser is not None
    told.structured_outputs_config = copy.copy(arguments.structured_outputs_config)
    told.structured_outputs_config.reasoning_parser = "" if kind == "tool" else parser
    return told


def body_of(asked: Asked, kind: Kind, reply_ids: list[int]) -> dict[str, Any]:
    """A request whose answer is forced to be `reply_ids`."""
    say: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    tool = {"name": "weather", "description": "How the weather will be in a city."}
    body: dict[str, Any] = {
        "model": "target",
        "temperature": 0,
        "vllm_xargs": {REPLY_KEY: reply_ids},
        **asked.fields,
    }
    if asked.path == RESPONSES:
        body |= {"input": say, "max_output_tokens": MAX_TOKENS}
        tools = [{"type": "function", **tool, "parameters": SCHEMA}]
    elif asked.path == MESSAGES:
        body |= {"messages": say, "max_tokens": MAX_TOKENS}
        tools = [{**tool, "input_schema": SCHEMA}]
    else:
        body |= {"messages": say, "max_tokens": MAX_TOKENS}
        tools = [{"type": "function", "function": {**tool, "parameters": SCHEMA}}]
    if kind != "reasoning":
        body["tools"] = tools
    if kind != "tool":
        body["chat_template_kwargs"] = WORDS
    return body


_chance: ContextVar[random.Random] = ContextVar("_chance")
"""Where a request's random ids come from: each request begins it anew."""


def beginning_anew(app: Any, name: str) -> Any:
    """The application, each of whose requests finds the same chance; another one with each name."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        _chance.set(random.Random(name))  # noqa: S311  ids that are the same each time
        await app(scope, receive, send)

    return called


@contextmanager
def standing_still() -> Iterator[None]:
    """No time passes and what is random comes out the same, for all that vLLM tells of both."""
    from vllm.parser import mistral
    from vllm.v1.engine import async_llm

    class Stepwise(async_llm.RequestOutputCollector):  # type: ignore[misc]
        """Hands on one step's tokens at a time, where vLLM's own merges those it is late with."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._steps: deque[Any] = deque()

        def put(self, output: Any) -> None:
            self._steps.append(output)
            self.ready.set()

        def get_nowait(self) -> Any:
            if not self._steps:
                return None
            self.output = self._steps.popleft()
            return super().get_nowait()

        async def get(self) -> Any:
            while not self._steps:
                self.ready.clear()
                await self.ready.wait()
            return self.get_nowait()

    def next_id() -> uuid.UUID:
        chance = _chance.get(random)  # type: ignore[arg-type]
        return uuid.UUID(int=chance.getrandbits(128), version=4)

    def choices(letters: str, k: int) -> list[str]:
        return _chance.get().choices(letters, k=k)

    with (
        mock.patch.object(time, "time", lambda: NOW),  # noqa: PT008  a mock keeps every call
        mock.patch.object(uuid, "uuid4", next_id),
        mock.patch.object(mistral, "choices", choices),
        mock.patch.object(async_llm, "RequestOutputCollector", Stepwise),
    ):
        yield


async def ask(port: int, name: str, asked: Asked, body: dict[str, Any]) -> tuple[str, list[str]]:
    """Content type and chunks of an answer; `name` becomes part of its id.

    Raises:
        RuntimeError: it is no answer.
    """
    sent = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"x-request-id: %s\r\ncontent-length: %d\r\n\r\n"
        % (asked.path.encode(), name.encode(), len(sent))
    )
    writer.write(sent)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.lower().strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    chunks: list[bytes] = []
    if headers.get("transfer-encoding") == "chunked":
        while size := await reader.readline():
            chunks.append((await reader.readexactly(int(size, 16) + 2))[:-2])
        if not chunks or chunks.pop():
            raise RuntimeError(f"the stream broke off after {chunks[-1:]}")
    else:
        chunks.append(await reader.read())
    writer.close()
    if " 200 " not in first:
        raise RuntimeError(f"{first}: {b''.join(chunks).decode()[:400]}")
    return headers["content-type"], [chunk.decode() for chunk in chunks]


async def record(
    engine: Any, arguments: argparse.Namespace, kind: Kind, parser: str, text: str
) -> list[Recording]:
    """All answers with one parser set."""
    tokenizer = engine.get_tokenizer()
    reply = tokenizer.encode(text + END, add_special_tokens=False)
    recordings = []
    name = f"{kind}-{parser}"
    async with served(engine, with_parsers(arguments, kind, parser), name) as port:
        for asked in ASKS:
            try:
                told, chunks = await ask(port, name, asked, body_of(asked, kind, reply))
            except (RuntimeError, EOFError) as error:
                if asked.path == CHAT:
                    raise
                print(f"{name}: nothing through {asked.path}: {error}", flush=True)
                continue
            recordings.append(
                Recording(kind=kind, parser=parser, asked=asked, content_type=told, chunks=chunks)
            )
    return recordings


async def record_idle(
    engine: Any, arguments: argparse.Namespace, text: str
) -> AsyncIterator[Recording]:
    """Streams that vLLM keeps alive by comments, because its engine stands still for a while."""
    reply = engine.get_tokenizer().encode(text + END, add_special_tokens=False)
    waits = with_parsers(arguments, "tool", "hermes")
    waits.sse_keep_alive_interval = 1
    async with served(engine, waits, "idle") as port:
        for asked in (Asked(ids=ids, usage=usage) for ids in (False, True) for usage in USAGES):
            await engine.pause_generation(mode="keep", clear_cache=False)
            asking = asyncio.create_task(ask(port, "idle", asked, body_of(asked, "tool", reply)))
            await asyncio.sleep(IDLE_SECONDS)
            await engine.resume_generation()
            kind, chunks = await asking
            yield Recording(
                kind="tool", parser="keep-alive", asked=asked, content_type=kind, chunks=chunks
            )


def flaw(recordings: list[Recording]) -> str:
    """What is wrong with what a parser made of its text, "" for nothing."""
    chats = [each for each in recordings if each.asked.path == CHAT]
    return next(filter(None, map(lacking, chats)), "")


def differences(made: list[Recording]) -> list[str]:
    """Which answers are not those that are kept, and where they part."""
    kept = {(each.kind, each.parser, each.asked): each for each in read_recordings()}
    found = []
    for new in made:
        old = kept.get((new.kind, new.parser, new.asked))
        if old is None:
            found.append(f"{new.asked}: not kept")
        elif new != old:
            pairs = zip(new.body, old.body, strict=False)
            place = next((n for n, (a, b) in enumerate(pairs) if a != b), len(new.body))
            here = slice(max(place - 40, 0), place + 80)
            found.append(f"{new.asked}: {new.body[here]!r}, kept is {old.body[here]!r}")
    return found


async def main(only: list[str], *, is_check: bool) -> int:
    """Record; returns how many parsers did not do what they are for, or differ."""
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

    forms = read_forms()
    kinds: tuple[Kind, ...] = get_args(Kind)
    wanted = [
        (kind, parser, text)
        for kind in kinds
        for parser, text in forms[kind].items()
        if not only or parser in only
    ]
    recordings: list[Recording] = []
    num_wrong = 0
    places = asyncio.Semaphore(AT_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        arguments = vllm_arguments(write_target(Path(folder), forms))

        async def one(engine: Any, kind: Kind, parser: str, text: str) -> None:
            nonlocal num_wrong
            made: list[Recording] = []
            async with places:
                try:
                    if engine.errored:
                        raise engine.dead_error
                    made = await record(engine, arguments, kind, parser, text)
                    wrong = "\n".join(differences(made)) if is_check else flaw(made)
                except Exception as error:  # noqa: BLE001  a parser may refuse in any way
                    wrong = f"{type(error).__name__}: {error}"
            print(f"{kind} {parser}: {wrong or ('the same' if is_check else 'ok')}", flush=True)
            num_wrong += bool(wrong)
            recordings.extend(made)

        async with build_async_engine_client(arguments) as engine:
            with standing_still():
                await asyncio.gather(*(one(engine, *each) for each in wanted))
            if not only and not engine.errored:
                text = forms["tool"]["hermes"]
                with standing_still():
                    recordings += [each async for each in record_idle(engine, arguments, text)]
    if only:
        recordings += [each for each in read_recordings() if each.parser not in only]
    if not is_check:
        write_recordings(sorted(recordings, key=lambda each: (each.kind, each.parser)))
    return num_wrong


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", nargs="*", default=[], help="parsers to record")
    options.add_argument("--check", action="store_true", help="compare, and write nothing")
    given = options.parse_args()
    os.environ.update(serve_environment(os.environ, None, device=require_vllm().device))
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_PLUGINS="",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_USE_V2_MODEL_RUNNER="0",
        # a grammar would refuse what is forced and end the request
        VLLM_ENFORCE_STRICT_TOOL_CALLING="0",
    )
    sys.exit(1 if asyncio.run(main(given.only, is_check=given.check)) else 0)
