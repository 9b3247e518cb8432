"""`paceline bench proxy`: what the proxy adds to a direct call, beside other proxies, in one run.

The engine is a bare server that answers at once: a fixed reply of a kilobyte, or a stream. It is
asked directly, through the least that can be built on uvicorn and aiohttp (``bare``), through the
proxy, and through the peers that are there, in turns, so that a drifting machine touches all alike.
What is in the middle runs on one core, client and engine on the others; CPU time is that of the
process in the middle alone.

With capture there is a further way: a proxy that asks the engine for token ids, takes them out of
the answers and publishes records to an embedded Valkey; its CPU time includes all of that.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import click
import uvloop

from paceline.benchmarks.proxy import endurance
from paceline.benchmarks.proxy.endurance import EnduranceSettings
from paceline.benchmarks.proxy.sections import SECTIONS, Figures, Section, TurnSettings, named
from paceline.benchmarks.proxy.ways import Peers, Way, divided_cores, running_ways
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError

OURS: Final = ("proxied", "captured")
BASES: Final = {
    "proxied": ("bare", "vllm_router", "litellm"),
    "captured": ("proxied",),
}
"""What a way's CPU time is compared with, if that is there."""
WARM_SHARE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyBenchSettings:
    """What is measured.

    Attributes:
        rounds: turns of all ways; the reported figures are medians over them.
        sections: what is measured in each, by name.
        turn: how much is asked for that.
        endurance: what is asked once.
        peers: which proxies are measured beside ours.
    """

    rounds: int = 5
    sections: Sequence[str] = tuple(SECTIONS)
    turn: TurnSettings = field(default_factory=TurnSettings)
    endurance: EnduranceSettings = field(default_factory=EnduranceSettings)
    peers: Peers = field(default_factory=Peers)

    def told(self) -> dict[str, object]:
        """What a report says of them; of a peer, whether it was there."""
        peers = {name: bool(value) for name, value in asdict(self.peers).items()}
        middle, _ = divided_cores()
        return {
            "rounds": self.rounds,
            "sections": list(named(self.sections)),
            **asdict(self.turn),
            **asdict(self.endurance),
            **peers,
            "is_pinned": bool(middle),
        }


def run_proxy_bench(settings: ProxyBenchSettings) -> Report:
    """Measure; starts and stops an engine, the peers and a proxy of its own.

    Raises:
        ConfigError: so many files cannot be opened as slow streams need.
        PacelineError: a server did not start, or lost what it was given.
    """
    endurance.allow_files(2 * settings.endurance.slow_streams)
    told = settings.told()
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        running_ways(Path(scratch), settings.peers) as ways,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        turns = runner.run(_turns(settings, ways))
        once = runner.run(_once(settings.endurance, ways))
    figures = _figures(turns, [way.name for way in ways]) | once
    return Report(bench="proxy", settings=told, figures=figures)


async def _turns(settings: ProxyBenchSettings, ways: list[Way]) -> list[Figures]:
    sections = named(settings.sections)
    if not sections:
        return []
    for way in ways:  # warm before anything counts
        few = TurnSettings(
            requests=settings.turn.requests // WARM_SHARE,
            concurrent_requests=settings.turn.concurrency,
            concurrency=settings.turn.concurrency,
        )
        await SECTIONS["requests"](few, way)
    return [await _turn(settings.turn, sections, ways) for _ in range(settings.rounds)]


async def _turn(
    settings: TurnSettings, sections: Mapping[str, Section], ways: list[Way]
) -> Figures:
    """All ways' figures in one turn."""
    figures: Figures = {}
    for section in sections.values():
        for way in ways:
            found = await section(settings, way)
            figures |= {f"{way.name}_{name}": value for name, value in found.items()}
    return figures


async def _once(settings: EnduranceSettings, ways: list[Way]) -> Figures:
    """What is asked once, of proxies of ours."""
    figures: Figures = {}
    for way in ways:
        found: Figures = {}
        if way.name in OURS and settings.requests:
            found |= await endurance.memory(settings, way)
        if way.name in OURS and settings.slow_streams:
            found |= await endurance.slow_streams(settings, way)
        figures |= {f"{way.name}_{name}": value for name, value in found.items()}
    return figures


def _figures(turns: list[Figures], ways: Sequence[str]) -> Figures:
    """Medians over the turns: of figures, and of differences and ratios within a turn."""
    flat = {name: median(turn[name] for turn in turns) for name in (turns[0] if turns else {})}
    for way in ways:
        for name in ("p50_ms", "crowd_p99_ms"):
            if way != "direct" and f"{way}_{name}" in flat:
                added = [turn[f"{way}_{name}"] - turn[f"direct_{name}"] for turn in turns]
                flat[f"{way}_added_{name}"] = median(added)
        for name in ("cpu_ms_per_request", "large_cpu_ms_per_request", "cpu_us_per_chunk"):
            for base in BASES.get(way, ()):
                if f"{way}_{name}" in flat and f"{base}_{name}" in flat:
                    ratio = _ratio(turns, f"{way}_{name}", f"{base}_{name}")
                    flat[f"{way}_{name}_over_{base}"] = ratio
    return flat


def _ratio(turns: list[Figures], name: str, base: str) -> float:
    return median(turn[name] / turn[base] if turn[base] else math.nan for turn in turns)


@click.command("proxy")
@click.option(
    "--rounds", default=5, show_default=True, help="Turns; figures are medians over them."
)
@click.option(
    "--section",
    "sections",
    type=click.Choice(list(SECTIONS)),
    multiple=True,
    help="What is measured in each turn; may be given several times. Left out, all.",
)
@click.option(
    "--capture", is_flag=True, help="Measure a proxy that records what it passes on, too."
)
@click.option(
    "--litellm",
    type=click.Path(path_type=Path),
    help="LiteLLM's command, to measure its proxy too.",
)
@click.option(
    "--vllm-router",
    type=click.Path(path_type=Path),
    help="vllm-router's command, to measure it too.",
)
@click.option(
    "--slow-streams",
    default=0,
    show_default=True,
    help="After the turns, hold so many slow streams at once; 0 for none.",
)
@click.option(
    "--requests",
    default=0,
    show_default=True,
    help="After the turns, send so many requests and look at the memory; 0 for none.",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def proxy(
    *,
    rounds: int,
    sections: tuple[str, ...],
    capture: bool,
    litellm: Path | None,
    vllm_router: Path | None,
    slow_streams: int,
    requests: int,
    json_file: Path | None,
) -> None:
    """What the proxy adds to a direct call, beside other proxies.

    Latency, rate, CPU time a request and a stream's chunk, bodies of a kilobyte and of 250, 64
    streams at once, and how soon an engine sees that a client has left. With --rounds 0 there is
    only what --slow-streams and --requests ask for.
    """
    for name, value in (("slow-streams", slow_streams), ("requests", requests)):
        if value < 0:
            raise ConfigError(f"--{name} is {value}; give at least 0")
    least = 0 if slow_streams or requests else 1
    if rounds < least:
        raise ConfigError(f"--rounds is {rounds}; give at least {least}")
    for option, program in (("litellm", litellm), ("vllm-router", vllm_router)):
        if program is not None and not program.is_file():
            raise ConfigError(f"--{option} is {program}, which is no file; name the command itself")
    settings = ProxyBenchSettings(
        rounds=rounds,
        sections=(sections or tuple(SECTIONS)) if rounds else (),
        endurance=EnduranceSettings(slow_streams=slow_streams, requests=requests),
        peers=Peers(litellm, vllm_router, capture),
    )
    write_report(run_proxy_bench(settings), json_file)
