"""The embedded engine over HTTP, as OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from paceline.adapters.decisions import DECISIONS_PATH
from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.protocol import (
    ChatRequest,
    CompletionRequest,
    chat_prompt,
    generation_request,
    parse_chat,
    parse_completion,
)
from paceline.adapters.embedded.requests import GenerationRequest, Job, Progress
from paceline.adapters.embedded.wire import CHAT, COMPLETION, ChoiceWriter, Style
from paceline.api_errors import ApiError
from paceline.caches.records import SHARED_GROUP
from paceline.errors import EngineError

OVERLOADED: Final = 503
SERVER_ERROR: Final = 500


class EngineServer:
    """Routes of one engine.

    Args:
        engine: started when the application starts, closed when it stops.
        model_name: the name that clients use.
        memory_metrics: further metrics, of the draft memory.
        on_close: called once after the engine is closed.
        drafter_group: whose drafter the engine's model is.
    """

    def __init__(
        self,
        engine: EmbeddedEngine,
        *,
        model_name: str,
        memory_metrics: CollectorRegistry | None = None,
        on_close: Callable[[], None] = lambda: None,
        drafter_group: str = SHARED_GROUP,
    ) -> None:
        self._engine = engine
        self._model_name = model_name
        self._memory_metrics = memory_metrics
        self._on_close = on_close
        self._drafter_group = drafter_group
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
                Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{name:path}", self._guarded(self._one_model)),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route(f"{DECISIONS_PATH}{{request_id}}", self._decisions),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._engine.start()
        yield
        await asyncio.to_thread(self._engine.close)
        self._on_close()

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except ApiError as error:
                return Response(error.body(), error.status, media_type="application/json")

        return guarded

    async def _chat(self, http: Request) -> Response:
        request = parse_chat(await http.body())
        self._check_model(request.model)
        prompt_ids = chat_prompt(request, self._engine.target.tokenizer)
        return await self._answer(http, request, prompt_ids, CHAT)

    async def _completion(self, http: Request) -> Response:
        request = parse_completion(await http.body())
        self._check_model(request.model)
        prompt = request.prompt
        tokenizer = self._engine.target.tokenizer
        prompt_ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return await self._answer(http, request, prompt_ids, COMPLETION)

    async def _answer(
        self,
        http: Request,
        request: ChatRequest | CompletionRequest,
        prompt_ids: list[int],
        style: Style,
    ) -> Response:
        request_id = http.headers.get("x-request-id") or uuid.uuid4().hex
        # A client may use one id twice at a time; ours must tell its requests apart.
        unique_id = f"{request_id}-{uuid.uuid4().hex[:8]}"
        generation = generation_request(
            request,
            prompt_ids,
            self._engine.target,
            request_id=unique_id,
            drafter_group=self._drafter_group,
        )
        reply = _Reply(self._engine, generation)
        writer = ChoiceWriter(
            style,
            self._engine.target.tokenizer,
            with_logprobs=generation.num_logprobs is not None,
            prompt_ids=prompt_ids if request.return_token_ids else None,
        )
        head = {
            "id": f"{style.id_prefix}-{request_id}",
            "created": int(time.time()),
            "model": self._model_name,
        }
        if request.stream:
            events = _events(
                reply,
                head,
                writer,
                with_usage=request.includes_usage,
                usage_in_each=request.continues_usage,
            )
            return StreamingResponse(events, media_type="text/event-stream")
        choice = await _whole(http, reply, writer)
        body = {"object": style.whole, "choices": [choice], "usage": reply.usage()}
        return JSONResponse(head | body | writer.head())

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def _one_model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "paceline",
            "max_model_len": self._engine.target.max_model_len,
        }

    async def _health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, _request: Request) -> Response:
        totals = asdict(self._engine.counts) | asdict(self._engine.draft_counts)
        totals |= {"draft_errors": self._engine.draft_failures.count}
        lines = [
            f"# TYPE paceline_engine_{name}_total counter\npaceline_engine_{name}_total {value}"
            for name, value in totals.items()
        ]
        lines += [
            f"# TYPE paceline_engine_{name} gauge\npaceline_engine_{name} {value}"
            for name, value in self._engine.sizes().items()
        ]
        text = "\n".join(lines) + "\n"
        if self._memory_metrics is not None:
            text += generate_latest(self._memory_metrics).decode()
        return PlainTextResponse(text)

    async def _decisions(self, request: Request) -> Response:
        found = self._engine.decisions.find(request.path_params["request_id"])
        if found is None:
            return Response(b"{}", 404, media_type="application/json")
        return Response(msgspec.json.encode(found), media_type="application/json")

    def _check_model(self, name: str) -> None:
        if name != self._model_name:
            raise ApiError(
                404,
                f"The model `{name}` does not exist; this engine serves `{self._model_name}`.",
                code="model_not_found",
                param="model",
            )


class _Reply:
    """A job's steps on the event loop; leaving it before its end aborts the job."""

    def __init__(self, engine: EmbeddedEngine, generation: GenerationRequest) -> None:
        self._generation = generation
        self._steps: asyncio.Queue[Progress] = asyncio.Queue()
        self._num_tokens = 0
        self._num_cached = 0
        loop = asyncio.get_running_loop()

        def hand_over(progress: Progress) -> None:
            # the loop is closed if the server stopped while the engine was in its last round
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._steps.put_nowait, progress)

        self._job = Job(generation, hand_over)
        try:
            engine.submit(self._job)
        except EngineError as error:
            raise ApiError(OVERLOADED, str(error), "overloaded_error", code="overloaded") from error

    async def steps(self) -> AsyncIterator[Progress]:
        """The steps of the reply, the last one included."""
        try:
            while True:
                progress = await self._steps.get()
                self._num_tokens += len(progress.token_ids)
                self._num_cached += progress.num_cached
                yield progress
                if progress.finish_reason is not None or progress.error is not None:
                    return
        finally:
            self.abort()

    def abort(self) -> None:
        """Have the engine drop the job within one round; harmless after its end."""
        self._job.aborted.set()

    def usage(self) -> dict[str, Any]:
        """Tokens read, of these not read anew, and said so far."""
        num_prompt = len(self._generation.prompt_ids)
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self._num_tokens,
            "total_tokens": num_prompt + self._num_tokens,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }


async def _whole(http: Request, reply: _Reply, writer: ChoiceWriter) -> dict[str, Any]:
    """The choice of a whole answer; the job is aborted if the client leaves."""
    watcher = asyncio.create_task(_abort_when_left(http, reply))
    steps: list[Progress] = []
    try:
        async for progress in reply.steps():
            if progress.error is not None:
                raise ApiError(SERVER_ERROR, progress.error, "api_error")
            steps.append(progress)
    finally:
        watcher.cancel()
    for step in steps:
        writer.say(step.token_ids)
    return writer.whole(
        "".join(step.text for step in steps),
        steps[-1].finish_reason,
        [said for step in steps for said in step.logprobs],
    )


async def _abort_when_left(http: Request, reply: _Reply) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        continue
    reply.abort()


async def _events(
    reply: _Reply,
    head: dict[str, Any],
    writer: ChoiceWriter,
    *,
    with_usage: bool,
    usage_in_each: bool,
) -> AsyncIterator[bytes]:
    """The reply as server-sent events; closing the iterator aborts the job."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return (
            b"data: "
            + json.dumps(head | {"object": writer.style.chunk, "choices": choices} | more).encode()
            + b"\n\n"
        )

    def so_far() -> dict[str, Any]:
        return {"usage": reply.usage()} if usage_in_each else {}

    if writer.style is CHAT:
        yield event([writer.opening()], **writer.head(), **so_far())
    async for progress in reply.steps():
        if progress.error is not None:
            yield ApiError(SERVER_ERROR, progress.error, "api_error").event()
            return
        writer.say(progress.token_ids)
        if progress.text or progress.finish_reason or progress.logprobs:
            choice = writer.delta(progress.text, progress.finish_reason, progress.logprobs)
            yield event([choice], **so_far())
    if with_usage:
        yield event([], usage=reply.usage())
    yield b"data: [DONE]\n\n"
