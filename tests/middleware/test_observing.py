"""Traces and logs of a running proxy: what happened, and not a word of what was said."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from paceline.middleware.json_log import JsonFormatter, json_logging
from paceline.policies.tenants import hash_key
from paceline.processes import ChildProcess, answers, free_port
from waiting import wait_until

PROMPT, KEY, HEADER, REPLY = (
    "my-secret-plan",
    "my-secret-key",
    "my-secret-header",
    "my-secret-reply",
)
SECRETS = (PROMPT, KEY, HEADER, REPLY)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
TENANT = f"tenants: [{{name: shop, keys: ['{hash_key(KEY)}']}}]"


async def reply(request: Any, _reader: Any, writer: Any) -> None:
    """A whole answer or a stream, with the tokens that it took."""
    if not request.json.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": REPLY}}
        body = json.dumps({"id": "1", "choices": [choice], "usage": USAGE}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        return
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"content": REPLY}}]}] * 3
    events = [json.dumps(chunk) for chunk in (*chunks, {"choices": [], "usage": USAGE})]
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    for event in (*events, "[DONE]"):
        writer.write(f"data: {event}\n\n".encode())
        await writer.drain()
    raise ConnectionResetError  # the stream's end is the connection's


async def die(_request: Any, _reader: Any, _writer: Any) -> None:
    raise ConnectionResetError


class Collector:
    """A collector of traces that keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    @contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def spans(self) -> list[Any]:
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().running() as running:
        yield running


def ask(url: str, *, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=9,
            temperature=0.5,
            stream=stream,
            extra_headers={
                "x-paceline-workload": "sql",
                "traceparent": PARENT,
                "x-other": HEADER,
            },
        )
        if stream:
            list(answer)


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def test_generations_are_spans_of_the_clients_trace(
    engines: Callable[..., Any], proxies: Callable[..., Any], collector: Collector, tmp_path: Path
) -> None:
    """By the conventions for generative AI, told to the engine too, without what was said."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(TENANT)
    engine = engines(reply)
    proxy = proxies(engine.url, policy_file=policy, tracing={"endpoint": collector.endpoint})
    for stream in (False, True):
        ask(proxy.url, stream=stream)
    wait_until(lambda: len(collector.spans()) == 2, 20)
    whole, streamed = collector.spans()
    for span, seen in zip((whole, streamed), engine.seen, strict=True):
        assert span.name == "chat m"
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id.hex() == PARENT.split("-")[2]
        assert seen.headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
        found = attributes(span)
        request_id = found.pop("paceline.request_id")
        assert request_id == seen.headers["x-request-id"]
        first = found.pop("gen_ai.response.time_to_first_chunk", None)
        assert (first is None) == (span is whole)
        assert found == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "paceline",
            "gen_ai.request.model": "m",
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.request.stream": span is streamed,
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 7,
            "paceline.tenant": "shop",
            "paceline.workload": "sql",
            "paceline.engine": "e0",
            "http.response.status_code": 200,
        }
    for secret in SECRETS:
        assert all(secret.encode() not in body for body in collector.bodies)


def test_failures_are_told(
    engines: Callable[..., Any], proxies: Callable[..., Any], collector: Collector
) -> None:
    """An engine that fails leaves a span with its status and an error."""
    proxy = proxies(engines(die).url, tracing={"endpoint": collector.endpoint})
    with pytest.raises(openai.InternalServerError):
        ask(proxy.url, stream=True)
    wait_until(lambda: bool(collector.spans()), 20)
    (span,) = collector.spans()
    assert attributes(span)["error.type"] == "502"
    assert span.status.code == span.status.STATUS_CODE_ERROR


def test_a_client_may_leave_itself_out(
    engines: Callable[..., Any], proxies: Callable[..., Any], collector: Collector
) -> None:
    """No sampling, no span; requests are answered as ever, also where the collector is away."""
    engine = engines(reply).url
    for tracing in (
        {"endpoint": collector.endpoint, "sample_ratio": 0.0},
        {"endpoint": f"http://127.0.0.1:{free_port()}/v1/traces"},
    ):
        proxy = proxies(engine, tracing=tracing)
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client:
            said = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": PROMPT}]
            )
            assert said.choices[0].message.content == REPLY
    assert not collector.bodies


def test_the_log_is_an_object_a_line_without_secrets(
    engines: Callable[..., Any], tmp_path: Path
) -> None:
    """`paceline proxy` with ``log_format: json``: a line for each request, all of it JSON."""
    port, log = free_port(), tmp_path / "log"
    (tmp_path / "policy.yaml").write_text(TENANT)
    urls = {"gpu-0": engines(reply).url, "gpu-1": engines(die).url}
    config = {
        "listen": {"port": port},
        "upstreams": [{"name": name, "url": url} for name, url in urls.items()],
        "policy_file": "policy.yaml",
        "log_format": "json",
    }
    (tmp_path / "proxy.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "paceline.middleware.cli", "proxy", "--config"]
    with ChildProcess("proxy", [*command, str(tmp_path / "proxy.yaml")], log=log) as process:
        url = f"http://127.0.0.1:{port}"
        process.wait_until(lambda: answers(f"{url}/ready"), timeout_seconds=60)
        for stream in (False, True):
            ask(url, stream=stream)
        wait_until(lambda: log.read_text().count('"request_id"') == 2, 20)
    text = log.read_text()
    assert not [secret for secret in SECRETS if secret in text]
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    whole, streamed = [line for line in lines if line["logger"] == "paceline.requests"]
    for line in (whole, streamed):
        assert line["level"] == "info"
        assert line["message"] == "request"
        assert line["request_id"].startswith("pace-")
        assert (line["tenant"], line["workload"], line["status"]) == ("shop", "sql", 200)
        assert line["route"] == "/v1/chat/completions"
        assert line["engine"] == "gpu-0"
        assert 0 < line["queue_seconds"] <= line["seconds"] < 20
    assert "first_token_seconds" not in whole
    assert 0 < streamed["first_token_seconds"] <= streamed["seconds"]
    assert whole["pieces"] == 0
    assert 1 <= streamed["pieces"] <= 4  # what comes at once is one piece


def test_an_exception_is_told_without_what_it_quotes() -> None:
    """Its type and where it was raised; and fields that are no JSON are written as text."""
    stream = io.StringIO()
    logger = logging.getLogger("paceline.test")
    with json_logging(stream):
        try:
            raise ValueError(PROMPT)
        except ValueError:
            logger.exception("a request failed", extra={"where": Path("/there")})
        logger.info("not told")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["error"] == "ValueError"
    assert line["where"] == "/there"
    assert "test_an_exception" in line["raised_at"][0]
    assert PROMPT not in stream.getvalue()
    assert not logging.getLogger("paceline.requests").isEnabledFor(logging.INFO)
    plain = logging.makeLogRecord({"name": "n", "msg": "%d of %d", "args": (1, 2)})
    assert json.loads(JsonFormatter().format(plain))["message"] == "1 of 2"
