"""Traces of generations for OpenTelemetry, by its conventions for generative AI.

https://opentelemetry.io/docs/specs/semconv/gen-ai/: what was asked for and what came of it in
numbers and names. No prompt, no reply, no header and no key is ever an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from paceline import __version__
from paceline.errors import ConfigError
from paceline.middleware.config import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
TRACE_HEADERS: Final = ("traceparent", "tracestate")
LEAST_ERROR: Final = 400
LEAST_FAULT: Final = 500
FLUSH_MILLISECONDS: Final = 3000
MOST_NAME: Final = 256
PROVIDER: Final = "paceline"


class _Asked(msgspec.Struct):
    """What a request says in numbers and names. Anything else in the fields is left out."""

    model: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    temperature: Any = None
    top_p: Any = None
    seed: Any = None
    stream: Any = None
    n: Any = None


_asked: Final = msgspec.json.Decoder(_Asked)


class Span(Protocol):
    """One generation's span.

    Attributes:
        headers: that tell an engine of it.
        trace_id: of its trace, 32 hexadecimal digits.
    """

    headers: Mapping[str, str]
    trace_id: str

    def end(
        self,
        *,
        request_id: str,
        status: int,
        engine: str,
        first_token_seconds: float | None,
        num_read: int | None,
        num_said: int | None,
    ) -> None:
        """The generation has ended.

        Args:
            request_id: of ours.
            status: of the answer.
            engine: that was asked last, "" for none.
            first_token_seconds: of a stream.
            num_read: tokens of the prompt, None if nothing told.
            num_said: of the reply, likewise.
        """


class Tracing:
    """Makes spans and hands them to a collector, on a thread of its own.

    Args:
        config: where the collector is.
        exporter: takes spans in place of the collector.

    Raises:
        ConfigError: OpenTelemetry is not installed.
    """

    def __init__(self, config: TracingConfig, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"tracing is configured and {error.name} is not installed: pip install "
                "'paceline[otel]', or leave tracing out"
            ) from error
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
            resource=Resource.create(
                {"service.name": config.service_name, "service.version": __version__}
            ),
            shutdown_on_exit=False,
        )
        exporter = exporter or OTLPSpanExporter(
            endpoint=config.endpoint, headers=dict(config.headers)
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("paceline.proxy", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, path: str, headers: Mapping[str, str], body: bytes, tenant: str, workload: str
    ) -> Span:
        """A generation is about to be answered; its span is the child of the client's, if any.

        O(body).
        """
        from opentelemetry.trace import SpanKind

        given = {name: headers[name] for name in TRACE_HEADERS if name in headers}
        asked = _attributes_of(body)
        operation = OPERATIONS.get(path, "chat")
        span = self._tracer.start_span(
            f"{operation} {asked.get('gen_ai.request.model', '')}".strip(),
            context=self._propagator.extract(given),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": PROVIDER,
                "paceline.tenant": tenant,
                "paceline.workload": workload[:MOST_NAME],
                **asked,
            },
        )
        return _OtelSpan(span, self._propagator)

    def close(self) -> None:
        """Hand over what is left; takes some seconds at most."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()


class _OtelSpan:
    def __init__(self, span: Any, propagator: Any) -> None:
        from opentelemetry.trace import format_trace_id, set_span_in_context

        headers: dict[str, str] = {}
        propagator.inject(headers, set_span_in_context(span))
        self.headers: Mapping[str, str] = headers
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        self._span = span

    def end(
        self,
        *,
        request_id: str,
        status: int,
        engine: str,
        first_token_seconds: float | None,
        num_read: int | None,
        num_said: int | None,
    ) -> None:
        from opentelemetry.trace import StatusCode

        found = {
            "gen_ai.usage.input_tokens": num_read,
            "gen_ai.usage.output_tokens": num_said,
            "gen_ai.response.time_to_first_chunk": first_token_seconds,
            "paceline.request_id": request_id or None,
            "paceline.engine": engine or None,
            "http.response.status_code": status,
        }
        for name, value in found.items():
            if value is not None:
                self._span.set_attribute(name, value)
        if status >= LEAST_ERROR:
            self._span.set_attribute("error.type", str(status))
        if status >= LEAST_FAULT:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _attributes_of(body: bytes) -> dict[str, str | int | float | bool]:
    """What a request's body says in numbers, and its model's name. O(body)."""
    try:
        asked = _asked.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    found: dict[str, str | int | float | bool] = {}
    if isinstance(asked.model, str):
        found["gen_ai.request.model"] = asked.model[:MOST_NAME]
    if isinstance(asked.stream, bool):
        found["gen_ai.request.stream"] = asked.stream
    for name, value in (
        ("max_tokens", asked.max_completion_tokens or asked.max_tokens),
        ("temperature", asked.temperature),
        ("top_p", asked.top_p),
        ("seed", asked.seed),
        ("choice.count", asked.n),
    ):
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[f"gen_ai.request.{name}"] = value
    return found
