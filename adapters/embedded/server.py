"""The embedded engine over HTTP, as OpenAI's API and Anthropic's."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
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
from paceline.adapters.embedded import messages, responses
from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.messages import MessageWriter, parse_count, parse_messages
from paceline.adapters.embedded.protocol import (
    ChatRequest,
    CompletionRequest,
    chat_prompt,
    generation_request,
    parse_chat,
    parse_completion,
    predicted_ids,
)
from paceline.adapters.embedded.replying import PendingReply
from paceline.adapters.embedded.requests import GenerationRequest, Progress
from paceline.adapters.embedded.responses import ResponseWriter, not_kept, parse_responses
from paceline.adapters.embedded.tokenizing import (
    detokenized,
    parse_detokenize,
    parse_tokenize,
    tokenized,
)
from paceline.adapters.embedded.wire import CHAT, COMPLETION, ChoiceWriter, Style
from paceline.api_dialects import dialect_of, error_body
from paceline.api_errors import ApiError
from paceline.caches.records import SHARED_GROUP

NOT_IMPLEMENTED: Final = 501


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
                Route("/v1/messages", self._guarded(self._messages), methods=["POST"]),
                Route("/v1/messages/count_tokens", self._guarded(self._count), methods=["POST"]),
                Route("/v1/responses", self._guarded(self._responses), methods=["POST"]),
                Route("/v1/responses/{response_id}", self._guarded(self._stored)),
                Route(
                    "/v1/responses/{response_id}/cancel",
                    self._guarded(self._stored),
                    methods=["POST"],
                ),
                Route("/v1/embeddings", self._guarded(self._embeddings), methods=["POST"]),
                Route("/tokenize", self._guarded(self._tokenize), methods=["POST"]),
                Route("/detokenize", self._guarded(self._detokenize), methods=["POST"]),
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
                body = error_body(error, dialect_of(request.url.path))
                return Response(body, error.status, media_type="application/json")

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
        request_id, generation, reply = self._begin(http, request, prompt_ids)
        writer = ChoiceWriter(
            style,
            self._engine.target.tokenizer,
            with_logprobs=generation.num_logprobs is not None,
            prompt_ids=prompt_ids if request.return_token_ids else None,
        )
        head: dict[str, Any] = {
            "id": f"{style.id_prefix}-{request_id}",
            "created": int(time.time()),
            "model": self._model_name,
        }
        if request.service_tier is not None:  # there is no other here
            head["service_tier"] = "default"
        if request.stream:
            events = _events(
                reply,
                head,
                writer,
                with_usage=request.includes_usage,
                usage_in_each=request.continues_usage,
            )
            return StreamingResponse(events, media_type="text/event-stream")
        choice = _whole_choice(await reply.whole(http), writer)
        body = {"object": style.whole, "choices": [choice], "usage": reply.usage()}
        return JSONResponse(head | body | writer.head())

    def _begin(
        self, http: Request, request: ChatRequest | CompletionRequest, prompt_ids: list[int]
    ) -> tuple[str, GenerationRequest, PendingReply]:
        """Hand a request to the engine; returns its client's id with it.

        Raises:
            ApiError: 400, the engine cannot do it; 503, too many are waiting.
        """
        request_id = http.headers.get("x-request-id") or uuid.uuid4().hex
        predicted: tuple[int, ...] = ()
        if isinstance(request, ChatRequest):
            predicted = predicted_ids(request, self._engine.target.tokenizer)
        generation = generation_request(
            request,
            prompt_ids,
            self._engine.target,
            # A client may use one id twice at a time; ours must tell its requests apart.
            request_id=f"{request_id}-{uuid.uuid4().hex[:8]}",
            drafter_group=self._drafter_group,
            predicted_ids=predicted,
        )
        return request_id, generation, PendingReply(self._engine, generation)

    async def _messages(self, http: Request) -> Response:
        request = parse_messages(await http.body())
        self._check_model(request.model)
        chat = messages.as_chat(request)
        prompt_ids = chat_prompt(chat, self._engine.target.tokenizer)
        request_id, _, reply = self._begin(http, chat, prompt_ids)
        writer = MessageWriter(f"msg_{request_id}", self._model_name, reply)
        return await _written(http, reply, writer, is_stream=request.stream)

    async def _count(self, http: Request) -> Response:
        request = parse_count(await http.body())
        self._check_model(request.model)
        prompt_ids = chat_prompt(messages.as_chat(request), self._engine.target.tokenizer)
        return JSONResponse({"input_tokens": len(prompt_ids)})

    async def _responses(self, http: Request) -> Response:
        request = parse_responses(await http.body())
        self._check_model(request.model)
        chat = responses.as_chat(request)
        prompt_ids = chat_prompt(chat, self._engine.target.tokenizer)
        request_id, _, reply = self._begin(http, chat, prompt_ids)
        writer = ResponseWriter(f"resp_{request_id}", self._model_name, request, reply)
        return await _written(http, reply, writer, is_stream=bool(request.stream))

    async def _stored(self, request: Request) -> Response:
        raise not_kept(request.path_params["response_id"])

    async def _embeddings(self, _request: Request) -> Response:
        raise ApiError(
            NOT_IMPLEMENTED,
            f"`{self._model_name}` writes text and embeds none; ask a vLLM that serves an "
            "embedding model",
            code="unsupported_endpoint",
        )

    async def _tokenize(self, http: Request) -> Response:
        request = parse_tokenize(await http.body())
        self._check_model(request.model or self._model_name)
        return JSONResponse(tokenized(request, self._engine.target))

    async def _detokenize(self, http: Request) -> Response:
        request = parse_detokenize(await http.body())
        self._check_model(request.model or self._model_name)
        return JSONResponse(detokenized(request, self._engine.target))

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


async def _written(
    http: Request,
    reply: PendingReply,
    writer: MessageWriter | ResponseWriter,
    *,
    is_stream: bool,
) -> Response:
    """The answer of a request, as its API writes it."""
    if is_stream:
        return StreamingResponse(writer.events(), media_type="text/event-stream")
    return JSONResponse(writer.whole(await reply.whole(http)))


def _whole_choice(steps: Sequence[Progress], writer: ChoiceWriter) -> dict[str, Any]:
    """The choice of a whole answer."""
    for step in steps:
        writer.say(step.token_ids)
    return writer.whole(
        "".join(step.text for step in steps),
        steps[-1].finish_reason,
        [said for step in steps for said in step.logprobs],
    )


async def _events(
    reply: PendingReply,
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
    try:
        async for progress in reply.steps():
            writer.say(progress.token_ids)
            if progress.text or progress.finish_reason or progress.logprobs:
                choice = writer.delta(progress.text, progress.finish_reason, progress.logprobs)
                yield event([choice], **so_far())
    except ApiError as error:
        yield error.event()
        return
    if with_usage:
        yield event([], usage=reply.usage())
    yield b"data: [DONE]\n\n"
