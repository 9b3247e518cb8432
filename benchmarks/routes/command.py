"""`paceline bench routes TRACES`: the proxy's ways of placing requests, replayed side by side.

Recorded agents begin at times drawn at random, and each asks again when it has been answered; with
`--arrivals` requests come as a service recorded them instead. Engines are modelled
(`paceline.benchmarks.routes.simulation`); the policies are the proxy's own. Told are, for each
policy, the share of prompt tokens that engines held, the busiest engine's work against the mean,
and the time to the first token as far as the model goes. `--cost` times the choice itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, get_args

import click

from paceline.benchmarks.report import Report, write_report
from paceline.benchmarks.routes.cost import placing_costs
from paceline.benchmarks.routes.simulation import FleetSettings, simulate
from paceline.benchmarks.routes.work import Session, agent_sessions, arrived_sessions
from paceline.errors import ConfigError
from paceline.middleware.placement import RoutePolicy

POLICIES: Final[tuple[RoutePolicy, ...]] = get_args(RoutePolicy)
SOURCES: Final = ("tau-bench", "mini-swe-agent", "intercode-sql")
SEED: Final = 1


def compare(
    sessions: Sequence[Session], policies: Sequence[RoutePolicy], settings: FleetSettings
) -> dict[str, float]:
    """Figures of each policy on the same requests, and how many there are.

    Raises:
        ConfigError: there are none.
    """
    num_requests = sum(len(session.turns) for session in sessions)
    if not num_requests:
        raise ConfigError("the traces have no recorded replies; name other sources")
    figures: dict[str, float] = {"requests": num_requests, "sessions": len(sessions)}
    for policy in policies:
        found = simulate(policy, sessions, settings).figures()
        figures |= {f"{policy}_{name}": value for name, value in found.items()}
    return figures


@click.command("routes")
@click.argument("traces", type=click.Path(path_type=Path), required=False)
@click.option(
    "--source", "sources", multiple=True, default=SOURCES, show_default=True, help="A trace file."
)
@click.option("--episodes", default=60, show_default=True, help="Episodes of each source, at most.")
@click.option("--per-second", default=0.5, show_default=True, help="Sessions that begin a second.")
@click.option("--arrivals", help="A file of TRACES/arrivals with hashes of blocks, instead.")
@click.option("--requests", default=4000, show_default=True, help="Requests of it.")
@click.option("--speed", default=1.0, show_default=True, help="How much faster they come.")
@click.option("--replicas", default=4, show_default=True, help="Engines.")
@click.option("--proxies", default=1, show_default=True, help="Proxies, asked in turns.")
@click.option("--cache-tokens", default=200_000, show_default=True, help="An engine's cache.")
@click.option("--cost", is_flag=True, help="What placing a request takes, instead; no TRACES.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def routes(
    traces: Path | None,
    sources: tuple[str, ...],
    episodes: int,
    per_second: float,
    arrivals: str | None,
    requests: int,
    speed: float,
    replicas: int,
    proxies: int,
    cache_tokens: int,
    cost: bool,
    json_file: Path | None,
) -> None:
    """Which way of placing requests finds what engines have cached, and how evenly."""
    if cost:
        write_report(Report(bench="routes-cost", settings={}, figures=placing_costs()), json_file)
        return
    if traces is None:
        raise ConfigError("no folder of traces is named; give TRACES, or --cost")
    for name, value in (
        *(("--per-second", per_second), ("--speed", speed), ("--replicas", replicas)),
        *(("--proxies", proxies), ("--cache-tokens", cache_tokens)),
    ):
        if value <= 0:
            raise ConfigError(f"{name} is {value:g}; give more than 0")
    settings = FleetSettings(replicas=replicas, proxies=proxies, cache_tokens=cache_tokens)
    if arrivals is None:
        sessions = agent_sessions(
            traces, sources, episodes=episodes, per_second=per_second, seed=SEED
        )
        told = {"sources": list(sources), "episodes": episodes, "per_second": per_second}
    else:
        sessions = arrived_sessions(traces, arrivals, requests=requests, speed=speed)
        told = {"arrivals": arrivals, "requests": requests, "speed": speed}
    figures = compare(sessions, POLICIES, settings)
    write_report(
        Report(bench="routes", settings=told | asdict(settings), figures=figures), json_file
    )
