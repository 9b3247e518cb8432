"""`paceline bench reload`: what changing the policy file costs requests that are under way.

A real proxy in front of an engine that answers at once, asked at a steady rate over several
connections whatever becomes of earlier answers, so that who waits behind a slow one counts too.
Meanwhile the policy file is replaced by a rename, again and again, by a right one and by a wrong
one in turns, with as long without a change in between: latencies around changes are compared with
those of the same run around none. A connection of its own asks, one request after the other, under
which policy it is answered: the first answer under the new one ends the time of a reload.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import aiohttp
import click
import yaml

from paceline.benchmarks.plain_client import chat_request, connection, read_whole
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError
from paceline.policies.tenants import hash_key
from paceline.processes import ChildProcess, answers, free_port

START_SECONDS: Final = 30.0
KINDS: Final = ("quiet", "changed", "broken")
AROUND_SECONDS: Final = 0.6
"""Behind a change: a look at the file each 0.2 s, two of which have to agree."""
PROBE_SECONDS: Final = 0.005
BODY_BYTES: Final = 1024
KEY: Final = "tenant-0"
MOST_DRAFTED: Final = 128
BROKEN: Final = (
    "tenants: [\n",
    "tenants: [{name: a, colour: red}]\n",
    "tenants: [{name: a}, {name: a}]\n",
    "defaults: {speculation: {draft_tokens: 1000}}\ntenants: [{name: a}]\n",
    "",
    None,
)
"""Files that are no policy; None removes the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadBenchSettings:
    """How much is asked and changed.

    Attributes:
        reloads: right files; as many wrong ones come besides.
        tenants: of the policy, with limits of their own.
        rate: requests a second, over all connections.
        connections: that they come over.
        window_seconds: from one change to the next.
    """

    reloads: int = 30
    tenants: int = 100
    rate: float = 200.0
    connections: int = 8
    window_seconds: float = 1.5

    def __post_init__(self) -> None:
        for name, least in (("reloads", 1), ("tenants", 1), ("connections", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}; give at least {least}")
        if self.rate <= 0:
            raise ConfigError(f"--rate is {self.rate:g}; give requests a second, above 0")
        if self.window_seconds < AROUND_SECONDS:
            raise ConfigError(
                f"window_seconds is {self.window_seconds:g}; give at least {AROUND_SECONDS:g}"
            )


@dataclass(slots=True)
class Heard:
    """What reached this process, by its monotonic clock.

    Attributes:
        answered: of each request, when it was due and what it took from then on.
        num_lost: requests without a whole answer.
        seen: when answers came to who asks under which policy, and its number of drafted tokens.
        windows: kind and beginning of each stretch of time.
        reload_seconds: from each rename to the first answer under the new policy.
    """

    answered: list[tuple[float, float]] = field(default_factory=list)
    num_lost: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)
    windows: list[tuple[str, float]] = field(default_factory=list)
    reload_seconds: list[float] = field(default_factory=list)


class PolicyOnDisk:
    """A policy file, and what to put in its place.

    Args:
        path: of the file, which is written.
        num_tenants: of the policy.
    """

    def __init__(self, path: Path, num_tenants: int) -> None:
        self.path = path
        tenants = [
            {
                "name": f"tenant-{number}",
                "keys": [hash_key(f"tenant-{number}")],
                "limits": {"requests_per_minute": 100_000_000},
                "workloads": {"sql-*": {"speculation": {"sources": ["memory"]}}},
            }
            for number in range(num_tenants)
        ]
        # once: writing YAML takes longer than many requests
        self._text = yaml.safe_dump(
            {"defaults": {"speculation": {"draft_tokens": 1}}, "tenants": tenants}
        )
        self.put(self._text)

    def drafting(self, num_tokens: int) -> str:
        """The policy under which so many tokens are drafted. O(its length)."""
        return self._text.replace("draft_tokens: 1\n", f"draft_tokens: {num_tokens}\n", 1)

    def put(self, text: str | None) -> None:
        """Rename a whole file into the place; None removes what is there."""
        if text is None:
            self.path.unlink()
            return
        written = self.path.with_suffix(".new")
        written.write_text(text, encoding="utf-8")
        written.replace(self.path)


def run_reload_bench(settings: ReloadBenchSettings) -> Report:
    """Measure; starts and stops an engine and a proxy of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        _servers(Path(scratch), settings) as (port, policy),
    ):
        heard, counted = asyncio.run(_measure(settings, port, policy))
    return Report(bench="reload", settings=asdict(settings), figures=_figures(heard) | counted)


async def _measure(
    settings: ReloadBenchSettings, port: int, policy: PolicyOnDisk
) -> tuple[Heard, dict[str, float]]:
    await _load(
        settings, port, Heard(), asyncio.Event(), seconds=1.0
    )  # warm before anything counts
    heard, stop = Heard(), asyncio.Event()
    asking = [
        asyncio.create_task(_load(settings, port, heard, stop)),
        asyncio.create_task(_probe(port, heard, stop)),
    ]
    try:
        await _change(settings, policy, heard)
    finally:
        stop.set()
        await asyncio.gather(*asking)
    async with aiohttp.ClientSession() as session:
        name = "paceline_proxy_policy_reloads_total"
        async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
            lines = (await response.text()).splitlines()
    return heard, {
        result: float(next(v for n, _, v in (x.rpartition(" ") for x in lines) if n == label))
        for result in ("taken", "refused")
        for label in [f'{name}{{result="{result}"}}']
    }


async def _change(settings: ReloadBenchSettings, policy: PolicyOnDisk, heard: Heard) -> None:
    """Window after window: nothing, a right file, a wrong one."""
    for number in range(settings.reloads):
        wanted = 1 + (number + 1) % MOST_DRAFTED
        for kind in KINDS:
            began_at = time.monotonic()
            if kind == "changed":
                policy.put(policy.drafting(wanted))
                began_at = time.monotonic()
            elif kind == "broken":
                policy.put(BROKEN[number % len(BROKEN)])
            heard.windows.append((kind, began_at))
            await asyncio.sleep(began_at + settings.window_seconds - time.monotonic())
            if kind == "changed":
                first = bisect_left(heard.seen, (began_at, 0))
                found = [at for at, drafted in heard.seen[first:] if drafted == wanted]
                if not found:
                    raise ConfigError(
                        f"the proxy did not take over a policy within {settings.window_seconds:g} "
                        "s; is the machine overloaded?"
                    )
                heard.reload_seconds.append(found[0] - began_at)


async def _load(
    settings: ReloadBenchSettings,
    port: int,
    heard: Heard,
    stop: asyncio.Event,
    *,
    seconds: float = float("inf"),
) -> None:
    """Ask at a steady rate until stopped, or for so many seconds."""
    began_at = time.monotonic()
    every = settings.connections / settings.rate
    request = chat_request(port, num_bytes=BODY_BYTES, headers={"x-api-key": KEY})

    async def ask(due: float) -> None:
        while not stop.is_set() and due < began_at + seconds:
            with suppress(OSError):
                async with connection(port) as (reader, writer):
                    while not stop.is_set() and due < began_at + seconds:
                        await asyncio.sleep(due - time.monotonic())
                        due += every
                        try:
                            writer.write(request)
                            await read_whole(reader)
                        except (OSError, EOFError, ConfigError):
                            heard.num_lost += 1
                            break  # over a new connection
                        heard.answered.append((due - every, time.monotonic() - (due - every)))

    starts = [began_at + number / settings.rate for number in range(settings.connections)]
    await asyncio.gather(*map(ask, starts))


async def _probe(port: int, heard: Heard, stop: asyncio.Event) -> None:
    """Ask again and again under which policy one is answered."""
    headers = {"x-api-key": KEY, "x-paceline-explain": "on"}
    request = chat_request(port, num_bytes=1, headers=headers)
    async with connection(port) as (reader, writer):
        while not stop.is_set():
            writer.write(request)
            head = await read_whole(reader)
            drafted = head.partition(b"draft_tokens=")[2].partition(b"\r\n")[0]
            heard.seen.append((time.monotonic(), int(drafted)))
            await asyncio.sleep(PROBE_SECONDS)


def _figures(heard: Heard) -> dict[str, float]:
    """Latencies by kind of window, and how long reloads took."""
    figures: dict[str, float] = {
        "requests": len(heard.answered) + heard.num_lost,
        "lost": heard.num_lost,
        "policies_out_of_turn": _out_of_turn(heard.seen),
        "reload_median_seconds": median(heard.reload_seconds),
        "reload_max_seconds": max(heard.reload_seconds),
    }
    answered = sorted(heard.answered)
    for kind in KINDS:
        seconds = [
            took
            for name, began_at in heard.windows
            if name == kind
            for due, took in answered[
                bisect_left(answered, (began_at, 0.0)) : bisect_left(
                    answered, (began_at + AROUND_SECONDS, 0.0)
                )
            ]
        ]
        cuts = quantiles(seconds, n=100) if len(seconds) > 1 else [float("nan")] * 99
        figures |= {
            f"{kind}_requests": len(seconds),
            f"{kind}_p50_ms": 1e3 * cuts[49],
            f"{kind}_p99_ms": 1e3 * cuts[98],
            f"{kind}_max_ms": 1e3 * max(seconds, default=float("nan")),
        }
    return figures


def _out_of_turn(seen: Sequence[tuple[float, int]]) -> int:
    """Answers under another policy than the last one's or the next one's."""
    return sum(
        drafted not in (before, 1 + before % MOST_DRAFTED)
        for (_, before), (_, drafted) in pairwise(seen)
    )


@contextmanager
def _servers(folder: Path, settings: ReloadBenchSettings) -> Iterator[tuple[int, PolicyOnDisk]]:
    """Port of a proxy in front of an engine, and its policy file."""
    engine, port = free_port(), free_port()
    policy, config = PolicyOnDisk(folder / "policy.yaml", settings.tenants), folder / "proxy.yaml"
    config.write_text(
        yaml.safe_dump({
            "listen": {"port": port},
            "upstreams": [{"name": "engine", "url": f"http://127.0.0.1:{engine}"}],
            "policy_file": str(policy.path),
        })
    )  # fmt: skip
    with ExitStack() as stack:
        for name, at, command in (
            ("engine", engine, ["benchmarks.proxy.engine", str(engine)]),
            ("proxy", port, ["middleware.cli", "proxy", "--config", str(config)]),
        ):
            module, *arguments = command
            process = ChildProcess(
                name,
                [sys.executable, "-m", f"paceline.{module}", *arguments],
                log=folder / f"{name}.log",
            )
            stack.enter_context(process)
            process.wait_until(
                lambda at=at: answers(f"http://127.0.0.1:{at}/health"),  # type: ignore[misc]
                timeout_seconds=START_SECONDS,
            )
        yield port, policy


@click.command("reload")
@click.option("--reloads", default=30, show_default=True, help="Right files that are put in place.")
@click.option("--tenants", default=100, show_default=True, help="Tenants of the policy.")
@click.option("--rate", default=200.0, show_default=True, help="Requests a second.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def reload(reloads: int, tenants: int, rate: float, json_file: Path | None) -> None:
    """What changing the policy file under load costs, and when it holds."""
    settings = ReloadBenchSettings(reloads=reloads, tenants=tenants, rate=rate)
    write_report(run_reload_bench(settings), json_file)
