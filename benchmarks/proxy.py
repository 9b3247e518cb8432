"""`paceline bench proxy`: what the proxy adds to a direct call, in one run.

The engine is a bare asyncio server that answers at once: a fixed 1 KB reply, or a stream of 200
events. It is asked directly, through the least that can be built on the same libraries (``bare``),
and through the proxy, in turns, so that a drifting machine touches all alike. CPU time is that of
the process in the middle alone.

With capture there is a fourth way: a proxy that asks the engine for token ids, takes them out of
the answers and publishes records to an embedded Valkey; its CPU time includes all of that.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
import yaml

from paceline.benchmarks.cpu_time import settled_cpu_seconds
from paceline.benchmarks.plain_client import chat_request, connection, read_whole
from paceline.benchmarks.report import Report, write_report
from paceline.caches.embedded_store import EmbeddedStore
from paceline.errors import ConfigError
from paceline.processes import ChildProcess, answers, free_port

REPLY_BYTES: Final = 1024
START_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyBenchSettings:
    """How much is asked.

    Attributes:
        rounds: turns of direct and proxied; the reported figures are medians over them.
        requests: whole replies asked for in each turn and way, one after the other.
        concurrent_requests: whole replies asked for in each turn at `concurrency`, for the rate.
        concurrency: connections at a time.
        streams: streams read in each turn and way, one after the other.
        chunks: events of a stream.
        capture: whether a proxy that records what it passes on is measured too.
    """

    rounds: int = 5
    requests: int = 400
    concurrent_requests: int = 2000
    concurrency: int = 16
    streams: int = 20
    chunks: int = 200
    capture: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the engine.

    Attributes:
        name: ``direct``, ``bare``, ``proxied`` or ``captured``.
        port: where its requests go.
        pid: process in the middle, None on the direct way.
    """

    name: str
    port: int
    pid: int | None


def run_proxy_bench(settings: ProxyBenchSettings) -> Report:
    """Measure; starts and stops an engine, the peer and a proxy of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        _servers(Path(scratch), settings) as ways,
    ):
        turns = asyncio.run(_measure(settings, ways))
    return Report(bench="proxy", settings=asdict(settings), figures=_figures(turns))


async def _measure(settings: ProxyBenchSettings, ways: list[Way]) -> list[dict[str, float]]:
    for way in ways:
        await _requests(way.port, settings.requests // 2)  # warm before anything counts
    return [
        {
            f"{way.name}_{figure}": value
            for way in ways
            for figure, value in (await _turn(settings, way)).items()
        }
        for _ in range(settings.rounds)
    ]


async def _turn(settings: ProxyBenchSettings, way: Way) -> dict[str, float]:
    """One way's figures in one turn; CPU figures on the ways with a process in the middle."""
    start = await settled_cpu_seconds(way.pid)
    p50_ms = 1e3 * median(await _requests(way.port, settings.requests))
    after_requests = await settled_cpu_seconds(way.pid)
    rate = await _rate(way.port, settings)
    before_streams = await settled_cpu_seconds(way.pid)
    for _ in range(settings.streams):
        await _stream(way.port)
    figures = {"p50_ms": p50_ms, "requests_per_second": rate}
    if way.pid is not None:
        request_seconds = (after_requests - start) / settings.requests
        stream_seconds = (await settled_cpu_seconds(way.pid) - before_streams) / settings.streams
        figures["cpu_ms_per_request"] = 1e3 * request_seconds
        figures["cpu_us_per_chunk"] = 1e6 * (stream_seconds - request_seconds) / settings.chunks
    return figures


def _figures(turns: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the turns, of differences and ratios within a turn."""

    def difference(name: str, base: str) -> float:
        return median(turn[name] - turn[base] for turn in turns)

    def ratio(name: str, base: str) -> float:
        return median(turn[name] / turn[base] if turn[base] else math.nan for turn in turns)

    flat = {name: median(turn[name] for turn in turns) for name in turns[0]}
    ways = [name.removesuffix("_p50_ms") for name in turns[0] if name.endswith("_p50_ms")]
    for way in ways[1:]:
        flat[f"{way}_added_p50_ms"] = difference(f"{way}_p50_ms", "direct_p50_ms")
    for name in ("cpu_ms_per_request", "cpu_us_per_chunk"):
        flat[f"{name}_over_bare"] = ratio(f"proxied_{name}", f"bare_{name}")
        if "captured" in ways:
            flat[f"captured_{name}_over_proxied"] = ratio(f"captured_{name}", f"proxied_{name}")
    return flat


async def _requests(port: int, count: int) -> list[float]:
    """Seconds of each of `count` whole replies over one connection."""
    seconds = []
    async with connection(port) as (reader, writer):
        request = chat_request(port, num_bytes=REPLY_BYTES)
        for _ in range(count):
            started = time.perf_counter()
            writer.write(request)
            await read_whole(reader)
            seconds.append(time.perf_counter() - started)
    return seconds


async def _rate(port: int, settings: ProxyBenchSettings) -> float:
    """Whole replies per second over several connections."""
    each = settings.concurrent_requests // settings.concurrency
    started = time.perf_counter()
    await asyncio.gather(*(_requests(port, each) for _ in range(settings.concurrency)))
    return each * settings.concurrency / (time.perf_counter() - started)


async def _stream(port: int) -> None:
    async with connection(port) as (reader, writer):
        writer.write(chat_request(port, num_bytes=REPLY_BYTES, stream=True))
        await reader.readuntil(b"data: [DONE]\n\n")


@contextmanager
def _servers(folder: Path, settings: ProxyBenchSettings) -> Iterator[list[Way]]:
    """The ways to a running engine."""
    engine, peer = free_port(), free_port()
    url = f"http://127.0.0.1:{engine}"
    with ExitStack() as stack:

        def start(port: int, module: str, *arguments: str) -> int:
            process = ChildProcess(
                module,
                [sys.executable, "-m", f"paceline.{module}", *arguments],
                log=folder / f"{module}.{port}.log",
            )
            stack.enter_context(process)
            process.wait_until(
                lambda: answers(f"http://127.0.0.1:{port}/health"), timeout_seconds=START_SECONDS
            )
            return process.pid

        def proxy(name: str, **more: object) -> Way:
            port, config = free_port(), folder / f"{name}.yaml"
            upstreams = [{"name": "engine", "url": url}]
            config.write_text(
                yaml.safe_dump({"listen": {"port": port}, "upstreams": upstreams} | more)
            )
            pid = start(port, "middleware.cli", "proxy", "--config", str(config))
            return Way(name, port, pid)

        start(engine, "benchmarks.proxy_engine", str(engine), str(settings.chunks))
        ways = [
            Way("direct", engine, None),
            Way("bare", peer, start(peer, "benchmarks.proxy_peer", str(peer), url)),
            proxy("proxied"),
        ]
        if settings.capture:
            store = EmbeddedStore(folder / "store")
            stack.callback(store.stop)
            ways.append(proxy("captured", capture=_capture_block(folder, store.start())))
        yield ways


def _capture_block(folder: Path, redis_url: str) -> dict[str, str]:
    """A capture's settings; whose tokens they are matters to nobody here."""
    tokenizer = folder / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    tokenizer.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return {"redis_url": redis_url, "model": "m", "tokenizer": str(tokenizer)}


@click.command("proxy")
@click.option(
    "--rounds", default=5, show_default=True, help="Turns; figures are medians over them."
)
@click.option(
    "--capture", is_flag=True, help="Measure a proxy that records what it passes on, too."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def proxy(rounds: int, capture: bool, json_file: Path | None) -> None:
    """What the proxy adds to a direct call: latency, CPU a request and a stream chunk."""
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; give at least 1")
    settings = ProxyBenchSettings(rounds=rounds, capture=capture)
    write_report(run_proxy_bench(settings), json_file)
