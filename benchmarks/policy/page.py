"""The command `paceline bench bandits`: every figure of docs/bandits.md, in the tables of it.

Synthetic rewards, simulated engines and, where traces are given, rewards that are recorded from
them. Everything is drawn from seeds: a second run prints the same, but for the times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from paceline.benchmarks.policy.command import (
    PolicyBenchSettings,
    RecordSettings,
    record_rewards,
    run_policy_bench,
)
from paceline.benchmarks.policy.contest import ENGINE
from paceline.benchmarks.policy.recording import RoundTime
from paceline.benchmarks.policy.rewards import write_rows
from paceline.benchmarks.policy.simulation import CASES, WAYS, simulate
from paceline.benchmarks.policy.synthetic import SCENARIOS
from paceline.benchmarks.replay.command import find_sources, user_cache_folder
from paceline.benchmarks.report import Report, write_json
from paceline.errors import ConfigError

POLICIES: Final = {
    "default": "**default**",
    ENGINE: "as engines run it",
    "ucb-no-change": "the same without looking for changes",
    "ucb-classic": "UCB, discount 0.95, nothing else",
    "thompson": "Thompson sampling",
    "thompson-classic": "Thompson, discount 0.95, nothing else",
    "linear": "linear",
    "exp3": "EXP3.S",
}
RECORDED: Final = ("default", "ucb-no-change", "thompson", "linear", "exp3")
BATCHES: Final = (1, 4, 16)
IN_FLIGHT: Final = 16
TIMED_ROUNDS: Final = 4000
PARTS: Final = ("synthetic", "engines", "recorded", "times")
FIXED_SECONDS, REQUEST_SECONDS, TOKEN_SECONDS = 0.03, 0.002, 0.001

Figures = dict[str, float]
Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BanditsBenchSettings:
    """What is run.

    Attributes:
        parts: of `PARTS`.
        traces: agent traces or folders of them, for ``recorded``.
        seeds: runs of each policy on synthetic rewards.
        first_seed: of these: settings were chosen on 0 to 23.
        engine_seed: of the simulated engines' noise.
        cases: of `CASES`, for ``engines``.
        num_turns: of each case, instead of its own; 0 for those.
        episodes: most recorded ones of each model.
        timed_rounds: whose median and mean are told.
        state: folder of token ids.
    """

    parts: tuple[str, ...] = PARTS
    traces: tuple[Path, ...] = ()
    seeds: int = 32
    first_seed: int = 200
    engine_seed: int = 0
    cases: tuple[str, ...] = tuple(CASES)
    num_turns: int = 0
    episodes: int = 12
    timed_rounds: int = TIMED_ROUNDS
    state: Path | None = None

    def __post_init__(self) -> None:
        if "recorded" in self.parts and not self.traces:
            raise ConfigError(
                "no traces are named, and --part recorded replays some; name files or folders of "
                "agent traces, or leave that part out"
            )
        if self.num_turns == 1 or self.num_turns < 0:
            raise ConfigError(f"--turns is {self.num_turns}; give 2 or more, or 0 for each case's")

    def as_json(self) -> dict[str, Any]:
        """What the figures depend on."""
        return asdict(self) | {"traces": [path.name for path in self.traces], "state": ""}


def run_bandits_bench(settings: BanditsBenchSettings) -> Report:
    """Run all parts.

    Raises:
        ConfigError: a trace is missing.
        PacelineError: a simulated engine says something else than its target.
    """
    figures: Figures = {}
    for name, run in RUNS.items():
        if name in settings.parts:
            figures |= {f"{name}/{what}": value for what, value in run(settings).items()}
    return Report("bandits", settings.as_json(), figures)


def _synthetic(settings: BanditsBenchSettings) -> Figures:
    told = PolicyBenchSettings(
        policies=tuple(POLICIES),
        seeds=settings.seeds,
        first_seed=settings.first_seed,
        timed_rounds=0,
    )
    return _both(told)


def _both(told: PolicyBenchSettings) -> Figures:
    """What is found where policies are told aside; and by all but the engine's where they are not.

    The latter's names end in ``/alone``.
    """
    figures = dict(run_policy_bench(told).figures)
    rest = tuple(name for name in told.policies if name != ENGINE)
    alone = run_policy_bench(replace(told, policies=rest, aside=False)).figures
    return figures | {f"{name}/alone": value for name, value in alone.items()}


def _engines(settings: BanditsBenchSettings) -> Figures:
    figures: Figures = {}
    cases = {name: CASES[name] for name in settings.cases}
    length = sum(case.num_runs * (1 + len(WAYS)) for case in cases.values())
    with click.progressbar(length=length, label="engines") as bar:
        for name, case in cases.items():
            found = simulate(
                case,
                seed=settings.engine_seed,
                num_turns=settings.num_turns,
                advance=lambda: bar.update(1),
            )
            figures |= {f"{name}/{way}": value for way, value in found.items()}
    return figures


def _recorded(settings: BanditsBenchSettings) -> Figures:
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="paceline-bandits-") as scratch:
        for batch in BATCHES:
            time = RoundTime(
                fixed_seconds=FIXED_SECONDS,
                request_seconds=REQUEST_SECONDS,
                token_seconds=TOKEN_SECONDS,
                batch=batch,
            )
            rows = record_rewards(
                RecordSettings(
                    sources=find_sources(settings.traces),
                    episodes=settings.episodes,
                    time=time,
                    state=settings.state or user_cache_folder(),
                )
            )
            file = Path(scratch) / f"b{batch}.jsonl"
            write_rows(rows, file)
            told = PolicyBenchSettings(
                policies=RECORDED,
                scenarios=(),
                rewards=(file,),
                half="reporting",
                timed_rounds=0,
            )
            figures |= _both(told)
            many = run_policy_bench(replace(told, policies=("default",), in_flight=IN_FLIGHT))
            figures |= {f"{name}/many": value for name, value in many.figures.items()}
    return figures


def _times(settings: BanditsBenchSettings) -> Figures:
    timed = PolicyBenchSettings(
        policies=("default",), scenarios=(), timed_rounds=settings.timed_rounds
    )
    figures = run_policy_bench(timed).figures
    return {name.removeprefix("time/"): value for name, value in figures.items()}


RUNS: Final[Mapping[str, Callable[[BanditsBenchSettings], Figures]]] = {
    "synthetic": _synthetic,
    "engines": _engines,
    "recorded": _recorded,
    "times": _times,
}


def page_tables(figures: Mapping[str, float]) -> str:
    """The tables of docs/bandits.md, as far as there are figures for them."""
    parts = (_synthetic_table, _engines_table, _recorded_table, _times_table)
    return "\n\n".join(text for part in parts if (text := part(figures)))


def _with_alone(figures: Mapping[str, float], name: str, digits: int, scale: float = 1.0) -> str:
    """A figure, and in brackets what it is where nothing is told aside."""
    value, alone = figures.get(name), figures.get(f"{name}/alone")
    if value is None:
        return ""
    text = f"{scale * value:.{digits}f}"
    return text if alone is None else f"{text} ({scale * alone:.{digits}f})"


def _synthetic_table(figures: Mapping[str, float]) -> str:
    def row(policy: str, label: str) -> Iterator[str]:
        yield label
        for scenario in SCENARIOS:
            yield _with_alone(figures, f"synthetic/{scenario}/{policy}/share_segments", 3)
        yield _with_alone(figures, f"synthetic/abrupt/{policy}/back_within_50", 1, 100.0)
        yield _with_alone(figures, f"synthetic/abrupt/{policy}/back_p90", 0)
        yield _with_alone(figures, f"synthetic/adversarial/{policy}/share_none", 2)

    head = ["share of the best", *(name.replace("_", " ") for name in SCENARIOS)]
    head += ["back within 50, %", "90 % back after", "adversarial, times none"]
    rows = [list(row(policy, label)) for policy, label in POLICIES.items()]
    return _markdown(head, [each for each in rows if each[1]])


def _engines_table(figures: Mapping[str, float]) -> str:
    rows = [
        [
            case.title,
            *(
                f"{figures[f'engines/{name}/{way}']:.2f} "
                f"({figures[f'engines/{name}/{way}_second_half']:.2f})"
                for way in WAYS
            ),
        ]
        for name, case in CASES.items()
        if f"engines/{name}/bandit" in figures
    ]
    return _markdown(["times without drafts", "by time alone", "with the bandit"], rows)


def _recorded_table(figures: Mapping[str, float]) -> str:
    def cell(batch: int, policy: str) -> str:
        where = f"recorded/b{batch}-named/{policy}"
        share = _with_alone(figures, f"{where}/share_fixed", 3)
        times = figures.get(f"{where}/share_none")
        many = figures.get(f"{where}/share_fixed/many")
        parts = [share, "" if times is None else f"{times:.2f}"]
        if many is not None:
            parts.append(f"{IN_FLIGHT} in flight {many:.3f}")
        return ", ".join(part for part in parts if part)

    rows = [[POLICIES[policy], *(cell(batch, policy) for batch in BATCHES)] for policy in RECORDED]
    head = ["share of the best fixed arm, times none", *(f"batch {batch}" for batch in BATCHES)]
    return _markdown(head, [row for row in rows if row[1]])


def _times_table(figures: Mapping[str, float]) -> str:
    rows = [
        [name.removeprefix("times/default/"), f"{value:.1f}"]
        for name, value in figures.items()
        if name.startswith("times/")
    ]
    return _markdown(["a round of 32 requests", "microseconds"], rows)


def _markdown(head: Sequence[str], rows: Rows) -> str:
    """A table; nothing without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command("bandits")
@click.argument("traces", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(PARTS),
    help="May be repeated.  [default: all; without TRACES all but recorded]",
)
@click.option("--seeds", default=32, show_default=True, help="Runs on synthetic rewards.")
@click.option("--first-seed", default=200, show_default=True, help="Of these.")
@click.option("--engine-seed", default=0, show_default=True, help="Of simulated engines' noise.")
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(list(CASES)),
    help="Of simulated engines; may be repeated.  [default: all]",
)
@click.option("--turns", default=0, help="Of each case.  [default: 30 or 80, each case's own]")
@click.option("--episodes", default=12, show_default=True, help="Most recorded ones of each model.")
@click.option("--timed-rounds", default=TIMED_ROUNDS, show_default=True, help="For times.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for token ids.  [default: ~/.cache/paceline/replay]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
def bandits(
    traces: tuple[Path, ...],
    parts: tuple[str, ...],
    seeds: int,
    first_seed: int,
    engine_seed: int,
    cases: tuple[str, ...],
    turns: int,
    episodes: int,
    timed_rounds: int,
    state: Path | None,
    json_file: Path | None,
) -> None:
    """Every figure of docs/bandits.md: policies on made-up and recorded rewards, and in engines.

    The engines are the embedded one with a small random model and a clock that passes alone move.
    TRACES are files of recorded agents or folders of them.
    """
    settings = BanditsBenchSettings(
        parts=parts or tuple(name for name in PARTS if traces or name != "recorded"),
        traces=traces,
        seeds=seeds,
        first_seed=first_seed,
        engine_seed=engine_seed,
        cases=cases or tuple(CASES),
        num_turns=turns,
        episodes=episodes,
        timed_rounds=timed_rounds,
        state=state,
    )
    report = run_bandits_bench(settings)
    click.echo(page_tables(report.figures))
    if json_file is not None:
        write_json(report, json_file)
