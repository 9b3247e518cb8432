"""`paceline bench limits`: how exactly two proxies keep limits that they share, and what it costs.

Two real proxies and one Redis (an embedded Valkey) in front of an engine that streams at a given
speed. Tenant ``requests`` asks for far more requests a minute than it may, ``tokens`` for far more
tokens; both ask again and again at both proxies. Counted are, by this process' clock, the requests
that were let in and the tokens that were read and said, in every window of 60 s after the first two
minutes. Before, one after the other over one connection, come requests of a tenant without limits
and of one whose limits of all three kinds are never met: what they take longer is what limits cost.

`--simulate` compares rules for when tokens are charged (`paceline.benchmarks.limits_simulation`).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import aiohttp
import click
import redis
import yaml

from paceline.benchmarks.limits_simulation import RULES, Work, simulate
from paceline.benchmarks.report import Report, write_report
from paceline.caches.embedded_store import EmbeddedStore
from paceline.errors import ConfigError
from paceline.policies.tenants import hash_key
from paceline.processes import ChildProcess, answers, free_port

START_SECONDS: Final = 30.0
WINDOW_SECONDS: Final = 60.0
WARM_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.25
LEAST_WAIT_SECONDS: Final = 0.2
MOST_WAIT_SECONDS: Final = 0.5
"""Who was refused comes back when told to, but within these."""
OK: Final = 200
TOO_MANY_REQUESTS: Final = 429
NEVER_MET: Final = 10**9
SCRIPTS: Final = ("cmdstat_evalsha", "cmdstat_eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsBenchSettings:
    """How much is asked.

    Attributes:
        seconds: how long the overload lasts; windows are looked at after the first two minutes.
        requests_per_minute: limit of the tenant ``requests``.
        tokens_per_minute: limit of the tenant ``tokens``.
        askers: connections of each of both, half at each proxy.
        mean_read: tokens of a prompt of ``tokens``, uniform from nothing to twice that.
        mean_said: tokens of a reply, exponential.
        speed: tokens a second.
        probes: requests asked for with and without limits, alternating, before the overload.
    """

    seconds: float = 300.0
    requests_per_minute: int = 1_200
    tokens_per_minute: int = 600_000
    askers: int = 64
    mean_read: int = 300
    mean_said: int = 300
    speed: float = 150.0
    probes: int = 2_000


@dataclass(slots=True)
class Heard:
    """What reached this process.

    Attributes:
        requests: times at which requests were let in.
        tokens: times and numbers of tokens read and said.
        num_refused: requests of each tenant that had to wait.
    """

    requests: list[float] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)
    num_refused: dict[str, int] = field(default_factory=dict)


def run_limits_bench(settings: LimitsBenchSettings) -> Report:
    """Measure; starts and stops an engine, a Valkey and two proxies of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        _servers(Path(scratch), settings) as (urls, redis_url),
    ):
        figures = asyncio.run(_measure(settings, urls, redis_url))
    return Report(bench="limits", settings=asdict(settings), figures=figures)


async def _measure(
    settings: LimitsBenchSettings, urls: Sequence[str], redis_url: str
) -> dict[str, float]:
    async with _session() as session:
        figures = await _cost(session, settings, urls, redis_url)
        heard = Heard()
        started = time.monotonic()
        until = started + settings.seconds
        rng = random.Random(1)  # noqa: S311  load, no secret
        askers = [
            work(session, settings, urls[number % len(urls)], heard, until, rng)
            for number in range(settings.askers)
            for work in (_ask_requests, _ask_tokens)
        ]
        await asyncio.gather(*askers)
        name = "paceline_proxy_limit_redis_lost_total"
        figures["redis_lost"] = sum([await _metric(session, url, name) for url in urls])
    return figures | _exactness(settings, heard, started)


def _exactness(settings: LimitsBenchSettings, heard: Heard, started: float) -> dict[str, float]:
    """What windows of 60 s held, as a part of the limit; NaN if the run was too short for one."""
    figures: dict[str, float] = {}
    first = started + min(WARM_SECONDS, settings.seconds / 2)
    last = started + settings.seconds
    num_looks = max(int((last - first - WINDOW_SECONDS) / LOOK_SECONDS) + 1, 0)
    begins = [first + LOOK_SECONDS * i for i in range(num_looks)]
    for name, counted, limit in (
        ("requests", [(t, 1) for t in heard.requests], settings.requests_per_minute),
        ("tokens", sorted(heard.tokens), settings.tokens_per_minute),
    ):
        times = [t for t, _ in counted]
        sums = [0, *accumulate(count for _, count in counted)]
        held = [
            sums[bisect_left(times, begin + WINDOW_SECONDS)] - sums[bisect_left(times, begin)]
            for begin in begins
        ]
        total = sums[bisect_left(times, last)] - sums[bisect_left(times, first)]
        figures |= {
            f"{name}_least_window": min(held, default=math.nan) / limit,
            f"{name}_most_window": max(held, default=math.nan) / limit,
            f"{name}_mean_minute": total / limit * WINDOW_SECONDS / (last - first),
            f"{name}_refused": heard.num_refused.get(name, 0),
        }
    return figures | {"windows": num_looks}


async def _cost(
    session: aiohttp.ClientSession,
    settings: LimitsBenchSettings,
    urls: Sequence[str],
    redis_url: str,
) -> dict[str, float]:
    """Latency with limits and without, in turns, and calls to Redis for each request."""
    seconds: dict[str, list[float]] = {"free": [], "limited": []}
    for key in seconds:  # warm before anything counts
        for _ in range(settings.probes // 10):
            await _whole(session, urls[0], key)
    with redis.Redis.from_url(redis_url) as client:
        before = _num_calls(client)
        for _ in range(settings.probes):
            for key, times in seconds.items():
                begun = time.perf_counter()
                status = await _whole(session, urls[0], key)
                times.append(time.perf_counter() - begun)
                if status != OK:
                    raise ConfigError(f"the benchmark's proxy answered {status}; is a port taken?")
        await asyncio.sleep(LOOK_SECONDS)
        num_calls = _num_calls(client) - before
    figures: dict[str, float] = {}
    for key, times in seconds.items():
        cuts = quantiles(times, n=100)
        figures |= {f"{key}_p50_ms": 1e3 * cuts[49], f"{key}_p99_ms": 1e3 * cuts[98]}
    for cut in ("p50", "p99"):
        figures[f"added_{cut}_ms"] = figures[f"limited_{cut}_ms"] - figures[f"free_{cut}_ms"]
    figures["redis_calls_per_request"] = num_calls / settings.probes
    return figures


def _num_calls(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(int(stats.get(name, {"calls": 0})["calls"]) for name in SCRIPTS)


async def _whole(session: aiohttp.ClientSession, url: str, key: str) -> int:
    body = {"model": "m", "prompt": "x" * 400}
    async with session.post(f"{url}/v1/completions", json=body, headers=_as(key)) as response:
        await response.read()
        return response.status


async def _ask_requests(
    session: aiohttp.ClientSession,
    settings: LimitsBenchSettings,
    url: str,
    heard: Heard,
    until: float,
    rng: random.Random,
) -> None:
    # each asker alone would take a share of the limit as large as all have together
    pause = 60.0 * settings.askers / settings.requests_per_minute / 3
    while time.monotonic() < until:
        await asyncio.sleep(pause * rng.uniform(0.5, 1.5))
        if await _whole(session, url, "requests") == OK:
            heard.requests.append(time.monotonic())
        else:
            heard.num_refused["requests"] = heard.num_refused.get("requests", 0) + 1


async def _ask_tokens(
    session: aiohttp.ClientSession,
    settings: LimitsBenchSettings,
    url: str,
    heard: Heard,
    until: float,
    rng: random.Random,
) -> None:
    while time.monotonic() < until:
        body = {
            "model": "m",
            "prompt": "x" * 4 * rng.randint(1, 2 * settings.mean_read),
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "say": int(rng.expovariate(1 / settings.mean_said)) + 1,
            "speed": settings.speed,
        }
        headers = _as("tokens")
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
            if response.status == TOO_MANY_REQUESTS:
                heard.num_refused["tokens"] = heard.num_refused.get("tokens", 0) + 1
                wait = float(response.headers["retry-after-ms"]) / 1e3
            else:
                wait = 0.0
                await _listen(response, heard)
        if wait:
            most = max(wait, LEAST_WAIT_SECONDS)
            await asyncio.sleep(min(most, MOST_WAIT_SECONDS) * rng.uniform(0.5, 1.0))


async def _listen(response: aiohttp.ClientResponse, heard: Heard) -> None:
    known = 0
    async for line in response.content:
        if line.startswith(b"data: {"):
            total = int(json.loads(line[6:])["usage"]["total_tokens"])
            heard.tokens.append((time.monotonic(), total - known))
            known = total


def _as(key: str) -> dict[str, str]:
    return {"x-api-key": key}


async def _metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    async with session.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


@contextmanager
def _servers(folder: Path, settings: LimitsBenchSettings) -> Iterator[tuple[list[str], str]]:
    """URLs of two proxies, and of the Valkey that they share."""
    engine = free_port()
    with ExitStack() as stack:

        def start(port: int, module: str, *arguments: str) -> str:
            process = ChildProcess(
                module,
                [sys.executable, "-m", f"paceline.{module}", *arguments],
                log=folder / f"{module}.{port}.log",
            )
            stack.enter_context(process)
            url = f"http://127.0.0.1:{port}"
            process.wait_until(lambda: answers(f"{url}/health"), timeout_seconds=START_SECONDS)
            return url

        store = EmbeddedStore(folder / "store")
        stack.callback(store.stop)
        redis_url = store.start()
        url = start(engine, "benchmarks.limits_engine", str(engine))
        policy = folder / "tenants.yaml"
        policy.write_text(yaml.safe_dump({"tenants": _tenants(settings)}))
        proxies = []
        for number in range(2):
            port, config = free_port(), folder / f"proxy-{number}.yaml"
            config.write_text(
                yaml.safe_dump(
                    {
                        "listen": {"port": port},
                        "upstreams": [{"name": "engine", "url": url}],
                        "policy_file": str(policy),
                        "limits": {"redis_url": redis_url},
                    }
                )
            )
            proxies.append(start(port, "middleware.cli", "proxy", "--config", str(config)))
        yield proxies, redis_url


def _tenants(settings: LimitsBenchSettings) -> list[dict[str, Any]]:
    limits: dict[str, dict[str, int]] = {
        "free": {},
        "limited": {
            "requests_per_minute": NEVER_MET,
            "tokens_per_minute": NEVER_MET,
            "concurrency": NEVER_MET,
        },
        "requests": {"requests_per_minute": settings.requests_per_minute},
        "tokens": {"tokens_per_minute": settings.tokens_per_minute},
    }
    return [{"name": name, "keys": [hash_key(name)], "limits": own} for name, own in limits.items()]


def run_simulation(minutes: int) -> Report:
    """Compare the rules for charging tokens."""
    work = Work()
    figures = {
        f"{rule}_{what}": value
        for rule in RULES
        for what, value in zip(
            ("least_window", "mean_minute", "most_window"),
            simulate(rule, work, minutes=minutes),
            strict=True,
        )
    }
    return Report(
        bench="limits-simulation", settings=asdict(work) | {"minutes": minutes}, figures=figures
    )


@click.command("limits")
@click.option(
    "--seconds", default=300.0, show_default=True, help="How long the overload lasts; at least 180."
)
@click.option("--simulate", "simulated", is_flag=True, help="Compare rules for charging instead.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def limits(seconds: float, simulated: bool, json_file: Path | None) -> None:
    """How exactly two proxies keep limits that they share, and what it costs a request."""
    if simulated:
        write_report(run_simulation(minutes=23), json_file)
        return
    least = WARM_SECONDS + WINDOW_SECONDS
    if seconds < least:
        raise ConfigError(f"--seconds is {seconds:g}; give at least {least:g}: one whole window")
    write_report(run_limits_bench(LimitsBenchSettings(seconds=seconds)), json_file)
