"""The command `paceline bench policy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from paceline.benchmarks.policy.contest import CONTESTANTS, ENGINE, Score, contest, round_us
from paceline.benchmarks.policy.recording import RoundTime, record_scope
from paceline.benchmarks.policy.rewards import (
    HALVES,
    RewardRow,
    read_rows,
    scenario_of,
    write_rows,
)
from paceline.benchmarks.policy.scenario import Scenario
from paceline.benchmarks.policy.synthetic import ARMS, SCENARIOS
from paceline.benchmarks.replay.command import find_sources, user_cache_folder
from paceline.benchmarks.replay.episodes import load_scopes
from paceline.benchmarks.replay.tokens import (
    TURN_END,
    TURN_START,
    Renderer,
    TokenCache,
    load_encoder,
)
from paceline.benchmarks.report import Report, write_json
from paceline.errors import ConfigError

BATCH: Final = 32
"""Requests in the round whose pulls and updates are timed."""

SOON: Final = 50
"""Requests within which a policy shall be back after a change."""
TIMED_CONTEXTS: Final = (1, 4, 32)
"""Contexts that the round's requests are in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyBenchSettings:
    """What is played.

    Attributes:
        policies: names of `CONTESTANTS`.
        scenarios: names of `SCENARIOS`.
        rewards: files of recorded rewards.
        half: of the episodes of recorded rewards, "" for all.
        seeds: runs of each policy on each scenario, with rewards and draws of their own.
        first_seed: of synthetic rewards: settings were chosen on 0 to 7.
        in_flight: requests that are pulled for before any of them is learned from.
        aside: whether policies are told what a pulled arm's rounds reveal of others.
        timed_rounds: rounds whose median is reported; 0 for no timing.
    """

    policies: tuple[str, ...] = tuple(CONTESTANTS)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    rewards: tuple[Path, ...] = ()
    half: str = ""
    seeds: int = 5
    first_seed: int = 0
    in_flight: int = 1
    aside: bool = True
    timed_rounds: int = 2000

    def __post_init__(self) -> None:
        if min(self.seeds, self.in_flight) < 1 or min(self.timed_rounds, self.first_seed) < 0:
            raise ConfigError(
                f"--seeds is {self.seeds}, --in-flight {self.in_flight}, --timed-rounds "
                f"{self.timed_rounds} and --first-seed {self.first_seed}; give 1 or more of the "
                "first two, 0 or more of the others"
            )

    def as_json(self) -> dict[str, Any]:
        """What the figures depend on."""
        return asdict(self) | {"rewards": [file.name for file in self.rewards]}


def run_policy_bench(settings: PolicyBenchSettings) -> Report:
    """Play every policy on everything.

    Raises:
        ConfigError: a file of rewards cannot be used.
    """
    played = list(_scenarios(settings))
    figures: dict[str, float] = {}
    names = [(policy, name, runs) for policy in settings.policies for name, runs in played]
    with click.progressbar(names, label="policies") as bar:
        for policy, name, runs in bar:
            scores = contest(
                CONTESTANTS[policy],
                runs,
                in_flight=settings.in_flight,
                with_aside=settings.aside,
                as_engine=policy == ENGINE,
            )
            figures |= {f"{name}/{policy}/{what}": v for what, v in summary(scores).items()}
    for policy in settings.policies if settings.timed_rounds else ():
        for num_contexts in TIMED_CONTEXTS:
            taken = round_us(
                CONTESTANTS[policy],
                ARMS,
                num_contexts=num_contexts,
                batch=BATCH,
                rounds=settings.timed_rounds,
            )
            for what, value in zip(("median", "mean"), taken, strict=True):
                figures[f"time/{policy}/contexts_{num_contexts}_{what}_us"] = value
    return Report("policy", settings.as_json(), figures)


def _scenarios(settings: PolicyBenchSettings) -> Iterator[tuple[str, Sequence[Scenario]]]:
    """Name and one scenario for each seed."""
    for name in settings.scenarios:
        make = SCENARIOS[name]
        seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
        yield name, [make(np.random.default_rng(seed)) for seed in seeds]
    for file in settings.rewards:
        rows = [row for row in read_rows(file) if settings.half in ("", row.half)]
        for kind, named in (("named", True), ("unnamed", False)):
            name = f"{file.stem}-{kind}"
            yield name, [scenario_of(name, rows, named=named)] * settings.seeds


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Means over seeds; of requests until back, median, 90th percentile and share within 50."""
    figures = {
        name: float(np.mean([getattr(each, name) for each in scores]))
        for name in (
            *("share_fixed", "share_segments", "share_none"),
            *("regret_fixed", "regret_segments", "num_switches"),
        )
    }
    figures["share_segments_worst"] = min(each.share_segments for each in scores)
    figures["share_none_worst"] = min(each.share_none for each in scores)
    if back := [requests for each in scores for requests in each.back]:
        figures["back_median"] = float(np.median(back))
        figures["back_p90"] = float(np.quantile(back, 0.9))
        figures["back_within_50"] = float(np.mean(np.array(back) <= SOON))
    return figures


COLUMNS: Final = (
    ("fixed", "share_fixed", 3),
    ("segm.", "share_segments", 3),
    ("worst", "share_segments_worst", 3),
    ("x none", "share_none", 3),
    ("regret", "regret_segments", 2),
    ("back", "back_median", 0),
    ("p90", "back_p90", 0),
    ("<=50", "back_within_50", 2),
    ("switch", "num_switches", 1),
)


def tables(report: Report) -> str:
    """What a terminal shows: a table for each scenario, a policy a line, and the times."""
    policies = report.settings["policies"]
    places = dict.fromkeys(name.split("/")[0] for name in report.figures)
    return "\n\n".join(_table(report.figures, place, policies) for place in places)


def _table(figures: Mapping[str, float], place: str, policies: Sequence[str]) -> str:
    columns: Sequence[tuple[str, str, int]] = COLUMNS
    if place == "time":
        columns = [
            (f"{n}c {what}", f"contexts_{n}_{what}_us", 1)
            for n in TIMED_CONTEXTS
            for what in ("median", "mean")
        ]
    lines = [f"{place:<22}" + "".join(f"{title:>12}" for title, _, _ in columns)]
    for policy in policies:
        values = [(figures.get(f"{place}/{policy}/{name}"), digits) for _, name, digits in columns]
        cells = ["" if value is None else f"{value:.{digits}f}" for value, digits in values]
        lines.append(f"{policy:<22}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSettings:
    """Which agent traces become rewards.

    Attributes:
        sources: (folder, name) of each trace file.
        episodes: most episodes of each model.
        time: what rounds take.
        tokenizer: Hugging Face folder or name; None: the packaged SmolLM2's.
        turn_start: special token before a role.
        turn_end: special token after a body.
        state: folder of token ids.
    """

    sources: tuple[tuple[Path, str], ...]
    episodes: int
    time: RoundTime
    tokenizer: str | None = None
    turn_start: str = TURN_START
    turn_end: str = TURN_END
    state: Path


def record_rewards(settings: RecordSettings) -> list[RewardRow]:
    """Rewards of every scope, one after the other.

    Raises:
        ConfigError: a source is missing.
    """
    renderer = Renderer(
        load_encoder(settings.tokenizer),
        turn_start=settings.turn_start,
        turn_end=settings.turn_end,
    )
    cache = TokenCache(settings.state / "tokens", renderer)
    scopes = [
        scope
        for folder, source in settings.sources
        for scope in load_scopes(folder, source, cache, num_episodes=settings.episodes)
    ]
    rows: list[RewardRow] = []
    total = sum(scope.num_output_tokens for scope in scopes)
    with click.progressbar(length=total, label="replay") as bar:
        for scope in scopes:
            rows += record_scope(scope, settings.time, advance=bar.update)
    return rows


@click.command("policy")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(list(CONTESTANTS)),
    help="May be repeated.  [default: all]",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice([*SCENARIOS, "none"]),
    help="Synthetic rewards; may be repeated.  [default: all]",
)
@click.option(
    "--rewards",
    multiple=True,
    type=click.Path(path_type=Path),
    help="File of recorded rewards; may be repeated.",
)
@click.option("--half", type=click.Choice(HALVES), help="Only that half of recorded episodes.")
@click.option("--seeds", default=5, show_default=True, help="Runs of each policy.")
@click.option("--first-seed", default=0, show_default=True, help="Of synthetic rewards.")
@click.option("--in-flight", default=1, show_default=True, help="Pulls before the first update.")
@click.option("--aside/--no-aside", default=True, help="Tell what long drafts say of shorter ones.")
@click.option("--timed-rounds", default=2000, show_default=True, help="0 for no timing.")
@click.option(
    "--record",
    "traces",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Agent traces, or folders of them: write their rewards to --to, and play nothing.",
)
@click.option("--to", "to_file", type=click.Path(path_type=Path), help="With --record.")
@click.option(
    "--episodes",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="With --record: most episodes of each model.",
)
@click.option("--fixed-seconds", default=0.03, show_default=True, help="With --record: a round.")
@click.option(
    "--request-seconds", default=0.002, show_default=True, help="With --record: a request of it."
)
@click.option(
    "--token-seconds", default=0.001, show_default=True, help="With --record: a verified token."
)
@click.option("--batch", default=1, show_default=True, help="With --record: requests in a round.")
@click.option("--tokenizer", help="With --record: Hugging Face folder or name. [default: SmolLM2]")
@click.option("--turn-start", default=TURN_START, show_default=True, help="With --record.")
@click.option("--turn-end", default=TURN_END, show_default=True, help="With --record.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="With --record: folder for token ids.  [default: ~/.cache/paceline/replay]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
def policy(
    policies: tuple[str, ...],
    scenarios: tuple[str, ...],
    rewards: tuple[Path, ...],
    half: str | None,
    seeds: int,
    first_seed: int,
    in_flight: int,
    aside: bool,
    timed_rounds: int,
    traces: tuple[Path, ...],
    to_file: Path | None,
    episodes: int,
    fixed_seconds: float,
    request_seconds: float,
    token_seconds: float,
    batch: int,
    tokenizer: str | None,
    turn_start: str,
    turn_end: str,
    state: Path | None,
    json_file: Path | None,
) -> None:
    """Which policy chooses arms best, on synthetic rewards and recorded ones; no model runs."""
    if bool(traces) != bool(to_file):
        raise click.UsageError("--record says what becomes rewards and --to where; give both")
    if to_file is not None:
        settings = RecordSettings(
            sources=find_sources(traces),
            episodes=episodes,
            time=RoundTime(
                fixed_seconds=fixed_seconds,
                request_seconds=request_seconds,
                token_seconds=token_seconds,
                batch=batch,
            ),
            tokenizer=tokenizer,
            turn_start=turn_start,
            turn_end=turn_end,
            state=state or user_cache_folder(),
        )
        rows = record_rewards(settings)
        write_rows(rows, to_file)
        click.echo(f"{len(rows)} requests: {to_file} written")
        return
    report = run_policy_bench(
        PolicyBenchSettings(
            policies=policies or tuple(CONTESTANTS),
            scenarios=tuple(n for n in scenarios if n != "none") if scenarios else tuple(SCENARIOS),
            rewards=rewards,
            half=half or "",
            seeds=seeds,
            first_seed=first_seed,
            in_flight=in_flight,
            aside=aside,
            timed_rounds=timed_rounds,
        )
    )
    click.echo(tables(report))
    if json_file is not None:
        write_json(report, json_file)
