"""Recorded streams through a real proxy, once for each way in which it can shape them."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from paceline.benchmarks.cpu_time import settled_cpu_seconds
from paceline.benchmarks.leak.eavesdropper import Trace, listen
from paceline.benchmarks.leak.recordings import Recording, Recordings, write_recordings
from paceline.policies.tenants import new_key
from paceline.processes import ChildProcess, answers, free_port

SHAPES: Final = ("open", "aggregate", "padded")
WAYS: Final = ("undrafted", *SHAPES)
"""``undrafted``: streams of the engine without speculation, passed on as they come."""
START_SECONDS: Final = 30.0
STAGGER_SECONDS: Final = 1.0
FIRST_EVENT: Final = 1
"""The first event has the role alone; it comes before any token."""
LAST_EVENT: Final = -2
"""The last one before ``[DONE]``."""


class Shaping(msgspec.Struct, frozen=True, kw_only=True):
    """The proxy's settings; see `paceline.middleware.config.ShapingConfig`."""

    interval_ms: int = 100
    bytes_per_tick: int = 4096
    round_ticks: int = 10


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy in a process of its own.

    Attributes:
        port: where it listens.
        pid: its process.
        keys: a key of a tenant for each shape.
    """

    port: int
    pid: int
    keys: dict[str, str]

    def num_ticks(self, shape: str) -> float:
        """Writes of shaped streams so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "paceline_proxy_shaping_ticks_total"
            and sample.labels["tenant"] == shape
        )


@dataclass(frozen=True, slots=True)
class WayResult:
    """What was seen on one way.

    Attributes:
        recordings: the streams that were replayed.
        traces: what was read of each.
        cpu_seconds: CPU time of the proxy for all of them.
    """

    recordings: list[Recording]
    traces: list[Trace]
    cpu_seconds: float

    @property
    def num_differing(self) -> int:
        """Streams that do not say, comments left out, what the engine said."""
        pairs = zip(self.traces, self.recordings, strict=True)
        return sum(trace.said != recording.body for trace, recording in pairs)


@contextmanager
def running(recordings: Recordings, shaping: Shaping, folder: Path) -> Iterator[RunningProxy]:
    """A proxy in front of a server that replays the recordings; both end with the block."""
    upstream, port = free_port(), free_port()
    keys = {}
    tenants = []
    for shape in SHAPES:
        keys[shape], hashed = new_key()
        tenants.append({"name": shape, "keys": [hashed], "side_channel": shape})
    policy, config, file = folder / "policy.json", folder / "proxy.json", folder / "recordings.bin"
    policy.write_text(json.dumps({"tenants": tenants}))
    settings = {
        "listen": {"port": port},
        "upstreams": [{"name": "replay", "url": f"http://127.0.0.1:{upstream}"}],
        "policy_file": str(policy),
        "shaping": msgspec.to_builtins(shaping),
    }
    config.write_text(json.dumps(settings))
    write_recordings(recordings, file)
    with ExitStack() as stack:

        def start(port: int, module: str, *arguments: str) -> int:
            command = [sys.executable, "-m", f"paceline.{module}", *arguments]
            process = ChildProcess(module, command, log=folder / f"{module}.log")
            stack.enter_context(process)
            process.wait_until(
                lambda: answers(f"http://127.0.0.1:{port}/health"), timeout_seconds=START_SECONDS
            )
            return process.pid

        start(upstream, "benchmarks.leak.replay_server", str(upstream), str(file))
        pid = start(port, "middleware.cli", "proxy", "--config", str(config))
        yield RunningProxy(port, pid, keys)


async def go(
    proxy: RunningProxy,
    recordings: Recordings,
    way: str,
    *,
    concurrency: int,
    on_done: Callable[[int], None] = lambda _count: None,
) -> WayResult:
    """Replay the streams that belong to a way, some at a time, and listen.

    In an order of chance: streams that run side by side disturb each other's times, and must not be
    known by that.
    """
    shape = "open" if way == "undrafted" else way
    streams, drafted = recordings.streams, way != "undrafted"
    numbers = [n for n, stream in enumerate(streams) if stream.speculated == drafted]
    slots = asyncio.Semaphore(concurrency)

    async def trace(number: int) -> Trace:
        async with slots:
            reads = await listen(proxy.port, proxy.keys[shape], number)
        on_done(1)
        times, parts = zip(*reads, strict=True)
        stream = streams[number]
        return Trace(stream.prompt, stream.repeat, times, tuple(map(len, parts)), b"".join(parts))

    before = await settled_cpu_seconds(proxy.pid)
    order = random.Random(0).sample(numbers, len(numbers))  # noqa: S311  no secret
    found = dict(zip(order, await asyncio.gather(*map(trace, order)), strict=True))
    cpu_seconds = await settled_cpu_seconds(proxy.pid) - before
    return WayResult(
        [streams[number] for number in numbers], [found[number] for number in numbers], cpu_seconds
    )


def costs(result: WayResult, base: WayResult) -> dict[str, float]:
    """What a way adds to another one on the same streams; medians over streams."""
    pairs = list(zip(result.traces, base.traces, strict=True))

    def added_ms(event: int) -> float:
        return 1e3 * median(a.seconds_of(event) - b.seconds_of(event) for a, b in pairs)

    return {
        "added_first_ms": added_ms(FIRST_EVENT),
        "added_last_event_ms": added_ms(LAST_EVENT),
        "added_end_ms": 1e3 * median(a.seconds - b.seconds for a, b in pairs),
        "bytes_times": sum(len(a.raw) for a, _ in pairs) / sum(len(b.raw) for _, b in pairs),
        "reads_per_stream": sum(len(a.sizes) for a, _ in pairs) / len(pairs),
        "cpu_ms_per_stream": 1e3 * result.cpu_seconds / len(pairs),
    }


async def crowd(proxy: RunningProxy, number: int, shape: str, count: int) -> dict[str, float]:
    """One recording `count` times at once: what a tick costs the proxy, and how late ticks are.

    Streams begin spread over a second. Client, proxy and replaying server share the machine.
    """
    gaps: list[float] = []

    async def one(position: int) -> None:
        await asyncio.sleep(STAGGER_SECONDS * position / count)
        reads = await listen(proxy.port, proxy.keys[shape], number)
        gaps.extend(np.diff([seconds for seconds, _ in reads]))

    ticks = await asyncio.to_thread(proxy.num_ticks, shape)
    before = await settled_cpu_seconds(proxy.pid)
    await asyncio.gather(*map(one, range(count)))
    cpu_seconds = await settled_cpu_seconds(proxy.pid) - before
    ticks = await asyncio.to_thread(proxy.num_ticks, shape) - ticks
    figures = {"cpu_ms_per_stream": 1e3 * cpu_seconds / count}
    if ticks:
        figures["cpu_us_per_tick"] = 1e6 * cpu_seconds / ticks
    if shape == "padded":  # elsewhere gaps are the engine's too
        figures["gap_p99_ms"] = 1e3 * float(np.quantile(gaps, 0.99))
    return figures
