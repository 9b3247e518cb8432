"""`paceline bench proxy`: what the proxy adds to a direct call, in one run.

The engine is a bare asyncio server that answers at once: a fixed 1 KB reply, or a stream of 200
events. Direct and proxied rounds take turns, so that a drifting machine touches both alike. CPU
time is that of the proxy's process alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import click
import yaml

from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError
from paceline.processes import ChildProcess, answers, free_port

REPLY_BYTES: Final = 1024
START_SECONDS: Final = 30.0
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


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
    """

    rounds: int = 5
    requests: int = 400
    concurrent_requests: int = 2000
    concurrency: int = 16
    streams: int = 20
    chunks: int = 200


def run_proxy_bench(settings: ProxyBenchSettings) -> Report:
    """Measure; starts and stops an engine and a proxy of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        _servers(Path(scratch), settings) as (direct, proxied, pid),
    ):
        figures = asyncio.run(_measure(settings, direct, proxied, pid))
    return Report(bench="proxy", settings=asdict(settings), figures=figures)


async def _measure(
    settings: ProxyBenchSettings, direct: int, proxied: int, pid: int
) -> dict[str, float]:
    await _requests(proxied, 200)  # both ends get warm before anything counts
    await _requests(direct, 200)
    turns: list[dict[str, float]] = []
    for _ in range(settings.rounds):
        turn: dict[str, float] = {}
        for way, port in (("direct", direct), ("proxied", proxied)):
            before = _cpu_seconds(pid)
            turn[f"{way}_p50_ms"] = 1e3 * median(await _requests(port, settings.requests))
            turn[f"{way}_request_cpu"] = _cpu_seconds(pid) - before
            turn[f"{way}_rps"] = await _rate(port, settings)
            before = _cpu_seconds(pid)
            for _ in range(settings.streams):
                await _stream(port)
            turn[f"{way}_stream_cpu"] = _cpu_seconds(pid) - before
        turns.append(turn)
    middle = {name: median(turn[name] for turn in turns) for name in turns[0]}
    request_ms = 1e3 * middle["proxied_request_cpu"] / settings.requests
    stream_us = 1e6 * middle["proxied_stream_cpu"] / settings.streams - 1e3 * request_ms
    return {
        "direct_p50_ms": middle["direct_p50_ms"],
        "proxied_p50_ms": middle["proxied_p50_ms"],
        "added_p50_ms": median(t["proxied_p50_ms"] - t["direct_p50_ms"] for t in turns),
        "cpu_ms_per_request": request_ms,
        "cpu_us_per_chunk": max(0.0, stream_us) / settings.chunks,
        "direct_requests_per_second": middle["direct_rps"],
        "proxied_requests_per_second": middle["proxied_rps"],
    }


async def _requests(port: int, count: int) -> list[float]:
    """Seconds of each of `count` whole replies over one connection."""
    seconds = []
    async with _connection(port) as (reader, writer):
        request = _request(port, stream=False)
        for _ in range(count):
            started = time.perf_counter()
            writer.write(request)
            await _read_whole(reader)
            seconds.append(time.perf_counter() - started)
    return seconds


async def _rate(port: int, settings: ProxyBenchSettings) -> float:
    """Whole replies per second over several connections."""
    each = settings.concurrent_requests // settings.concurrency
    started = time.perf_counter()
    await asyncio.gather(*(_requests(port, each) for _ in range(settings.concurrency)))
    return each * settings.concurrency / (time.perf_counter() - started)


async def _stream(port: int) -> None:
    async with _connection(port) as (reader, writer):
        writer.write(_request(port, stream=True))
        await reader.readuntil(b"data: [DONE]\n\n")


async def _read_whole(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise ConfigError(f"the benchmark's server answered {head[:80]!r}; is the port taken?")
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))


def _request(port: int, *, stream: bool) -> bytes:
    content = "x" * REPLY_BYTES
    flag = "true" if stream else "false"
    body = (
        f'{{"model":"m","stream":{flag},"messages":[{{"role":"user","content":"{content}"}}]}}'
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def _connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


def _cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used, user and system (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@contextmanager
def _servers(folder: Path, settings: ProxyBenchSettings) -> Iterator[tuple[int, int, int]]:
    """Port of the engine, port of the proxy, process id of the proxy."""
    engine_port, proxy_port = free_port(), free_port()
    config = folder / "proxy.yaml"
    upstream = {"name": "engine", "url": f"http://127.0.0.1:{engine_port}"}
    config.write_text(yaml.safe_dump({"listen": {"port": proxy_port}, "upstreams": [upstream]}))
    paceline = [sys.executable, "-m", "paceline.middleware.cli"]
    engine = [sys.executable, "-m", "paceline.benchmarks.proxy_engine"]
    with (
        ChildProcess(
            "the benchmark's engine",
            [*engine, str(engine_port), str(settings.chunks)],
            log=folder / "engine.log",
        ) as one,
        ChildProcess(
            "the proxy", [*paceline, "proxy", "--config", str(config)], log=folder / "proxy.log"
        ) as two,
    ):
        one.wait_until(
            lambda: answers(f"http://127.0.0.1:{engine_port}/health"), timeout_seconds=START_SECONDS
        )
        two.wait_until(
            lambda: answers(f"http://127.0.0.1:{proxy_port}/ready"), timeout_seconds=START_SECONDS
        )
        yield engine_port, proxy_port, two.pid


@click.command("proxy")
@click.option(
    "--rounds", default=5, show_default=True, help="Turns; figures are medians over them."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def proxy(rounds: int, json_file: Path | None) -> None:
    """What the proxy adds to a direct call: latency, CPU a request and a stream chunk."""
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; give at least 1")
    write_report(run_proxy_bench(ProxyBenchSettings(rounds=rounds)), json_file)
