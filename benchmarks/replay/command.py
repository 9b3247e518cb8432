"""The command `paceline bench replay`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from paceline.benchmarks.peers.arctic import default_folder
from paceline.benchmarks.replay.episodes import AGENT_SOURCES, Scope, bounded, load_scopes
from paceline.benchmarks.replay.fusion import FusionSettings, fusion_specs
from paceline.benchmarks.replay.plot import draw
from paceline.benchmarks.replay.registry import NAMES, DrafterSpec, Selection, select
from paceline.benchmarks.replay.run import ResultStore, UnitResult, replay_scope, unit_key
from paceline.benchmarks.replay.summary import MACRO, figures
from paceline.benchmarks.replay.tenants import tenants_of
from paceline.benchmarks.replay.tokens import (
    TURN_END,
    TURN_START,
    Renderer,
    TokenCache,
    load_encoder,
)
from paceline.benchmarks.report import Report, write_json
from paceline.errors import ConfigError

SUFFIX: Final = ".jsonl.gz"
MIN_PROBABILITIES: Final = (0.1,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What is replayed, and with what.

    Attributes:
        sources: (folder, name) of each trace file.
        drafters: names of `registry.NAMES`.
        min_probabilities: Paceline is run once with each.
        controls: sources kept out of the macro average.
        tenants: each model with several workloads over all sources is a scope, instead of each
            model of each source.
        episodes: most episodes of each model; None: as many as the protocol takes.
        requests: most replies of each episode, the first ones; None: all.
        context_tokens: longest prompt; None: the protocol's.
        fusion: the ablation with a model that drafts, instead of the drafters; None: no model runs.
        tokenizer: Hugging Face folder or name; None: the packaged SmolLM2's.
        turn_start: special token before a role.
        turn_end: special token after a body.
        state: folder of token ids and finished units.
        peers: folder of peers that are built on first use.
    """

    sources: tuple[tuple[Path, str], ...]
    drafters: tuple[str, ...] = NAMES
    min_probabilities: tuple[float, ...] = MIN_PROBABILITIES
    controls: tuple[str, ...] = ()
    tenants: bool = False
    episodes: int | None = None
    requests: int | None = None
    context_tokens: int | None = None
    fusion: FusionSettings | None = None
    tokenizer: str | None = None
    turn_start: str = TURN_START
    turn_end: str = TURN_END
    state: Path
    peers: Path

    def as_json(self) -> dict[str, Any]:
        """What the figures depend on; where files lie on this machine tells a reader nothing."""
        facts = asdict(self)
        del facts["state"], facts["peers"]
        if self.fusion is not None:
            facts["fusion"] = self.fusion.as_json()
        return facts | {
            "sources": [name for _, name in self.sources],
            "tokenizer": Path(self.tokenizer).name if self.tokenizer else "SmolLM2",
        }


def run_replay(settings: ReplaySettings) -> tuple[Report, Mapping[str, str]]:
    """Replay every source with every drafter; finished units are taken from the state folder.

    Returns:
        The report, and for each drafter that could not be run the reason.
    """
    selection = _selection(settings)
    scopes = load_all_scopes(settings)
    store = ResultStore(settings.state / "units")
    results = [
        result for spec in selection.specs for result in _replay_drafter(spec, scopes, store)
    ]
    facts = settings.as_json() | {
        "sources": list(dict.fromkeys(scope.source for scope in scopes)),
        "drafters": [spec.name for spec in selection.specs],
        "missing": dict(selection.missing),
    }
    pass_cost = settings.fusion.pass_cost if settings.fusion else 0.0
    flat = figures(results, controls=settings.controls, pass_cost=pass_cost)
    return Report(bench="replay", settings=facts, figures=flat), selection.missing


def _selection(settings: ReplaySettings) -> Selection:
    if settings.fusion is not None:
        return Selection(fusion_specs(settings.fusion, settings.min_probabilities), {})
    return select(
        settings.drafters, peers=settings.peers, min_probabilities=settings.min_probabilities
    )


def load_all_scopes(settings: ReplaySettings) -> list[Scope]:
    """Every source's scopes; token ids are kept in the state folder."""
    renderer = Renderer(
        load_encoder(settings.tokenizer),
        turn_start=settings.turn_start,
        turn_end=settings.turn_end,
    )
    cache = TokenCache(settings.state / "tokens", renderer)
    scopes = []
    with click.progressbar(settings.sources, label="tokens", item_show_func=_source_name) as bar:
        for folder, source in bar:
            scopes += load_scopes(folder, source, cache, num_episodes=settings.episodes)
    if settings.requests is not None or settings.context_tokens is not None:
        turns, longest = settings.requests, settings.context_tokens
        scopes = [bounded(s, num_turns=turns, max_prompt_tokens=longest) for s in scopes]
    return tenants_of(scopes) if settings.tenants else scopes


def _source_name(source: tuple[Path, str] | None) -> str:
    return source[1] if source else ""


def _replay_drafter(
    spec: DrafterSpec, scopes: Sequence[Scope], store: ResultStore
) -> list[UnitResult]:
    """All units of one drafter; each is kept as soon as it is finished."""
    results = []
    total = sum(scope.num_output_tokens for scope in scopes)
    with click.progressbar(length=total, label=f"{spec.name:<18}") as bar:
        for scope in scopes:
            key = unit_key(spec.fingerprint, scope.digest)
            result = store.load(key)
            if result is None:
                result = replay_scope(spec.make(), spec.name, scope, advance=bar.update)
                store.save(key, result)
            else:
                bar.update(scope.num_output_tokens)
            results.append(result)
    return results


def tables(report: Report) -> str:
    """What a terminal shows: macro and each source, a drafter a line."""
    drafters, sources = report.settings["drafters"], report.settings["sources"]
    return "\n\n".join(
        _table(report.figures, place, drafters)
        for place in ([MACRO, *sources] if len(sources) > 1 else sources)
    )


COLUMNS: Final = (
    ("tok/step", "tokens_per_step", 2),
    ("drafted", "drafted_per_step", 2),
    ("accept", "acceptance", 3),
    ("passes", "passes_per_step", 2),
    ("@.005", "speedup_at_0.005", 2),
    ("@.02", "speedup_at_0.02", 2),
    ("@.05", "speedup_at_0.05", 2),
    ("seen", "seen/tokens_per_step", 2),
    ("new", "new/tokens_per_step", 2),
    ("tuning", "tuning/tokens_per_step", 2),
    ("report", "reporting/tokens_per_step", 2),
    ("start", "start_mean_us", 0),
    ("propose", "propose_mean_us", 1),
    ("p50", "propose_p50_us", 1),
    ("p99", "propose_p99_us", 1),
    ("commit", "commit_mean_us", 1),
    ("finish", "finish_mean_us", 0),
    ("B/token", "bytes_per_token", 0),
    ("ECE", "calibration_error", 3),
    ("s", "replay_seconds", 0),
)


def _table(flat: Mapping[str, float], place: str, drafters: Sequence[str]) -> str:
    lines = [f"{place:<18}" + "".join(f"{title:>9}" for title, _, _ in COLUMNS)]
    for drafter in drafters:
        values = [(flat.get(f"{place}/{drafter}/{name}"), digits) for _, name, digits in COLUMNS]
        cells = ["" if v is None or v != v else f"{v:.{d}f}" for v, d in values]  # noqa: PLR0124  NaN
        lines.append(f"{drafter:<18}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def find_sources(traces: Sequence[Path]) -> tuple[tuple[Path, str], ...]:
    """(folder, name) of the trace files meant: a file itself, a folder's known agent sources.

    Raises:
        ConfigError: a path is neither, or a folder holds none of the known sources.
    """
    found: list[tuple[Path, str]] = []
    for path in traces:
        if path.is_dir():
            names = [name for name in AGENT_SOURCES if (path / f"{name}{SUFFIX}").is_file()]
            if not names:
                raise ConfigError(
                    f"{path} holds none of {', '.join(AGENT_SOURCES)}; name trace files "
                    f"(*{SUFFIX}) themselves"
                )
            found += [(path, name) for name in names]
        elif path.is_file() and path.name.endswith(SUFFIX):
            found.append((path.parent, path.name.removesuffix(SUFFIX)))
        else:
            raise ConfigError(f"{path} is neither a folder nor a file that ends in {SUFFIX}")
    names = [name for _, name in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{twice[0]} is named twice; a source's name must be unique in a run")
    return tuple(found)


def user_cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """``$XDG_CACHE_HOME/paceline/replay`` or ``~/.cache/paceline/replay``."""
    return default_folder(environment).parent / "replay"


@click.command("replay")
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--drafter", "drafters", multiple=True, type=click.Choice(NAMES), help="May be repeated."
)
@click.option(
    "--min-probability",
    "min_probabilities",
    multiple=True,
    type=float,
    help="Where Paceline's drafts stop; repeat it for a frontier.  [default: 0.1]",
)
@click.option("--episodes", type=click.IntRange(min=1), help="Only each model's first episodes.")
@click.option(
    "--fusion",
    "drafter_folder",
    type=click.Path(path_type=Path),
    help="Folder of a model: compare memory, the model and both, in place of --drafter.",
)
@click.option("--nodes", default=16, show_default=True, help="With --fusion: most drafted a step.")
@click.option(
    "--pass-cost",
    default=0.12,
    show_default=True,
    help="With --fusion: a pass of the model, in passes of the target.",
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    help="With --fusion: only the first replies of each episode.",
)
@click.option(
    "--context-tokens",
    type=click.IntRange(min=64),
    help="With --fusion: longest prompt.  [default: 8192]",
)
@click.option("--control", "controls", multiple=True, help="Source kept out of the average.")
@click.option(
    "--tenants",
    is_flag=True,
    help="Each model over all sources is a tenant, each system message a workload of it.",
)
@click.option("--tokenizer", help="Hugging Face folder or name.  [default: SmolLM2]")
@click.option("--turn-start", default=TURN_START, show_default=True, help="Token before a role.")
@click.option("--turn-end", default=TURN_END, show_default=True, help="Token after a reply.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Folder for token ids and finished parts.  [default: ~/.cache/paceline/replay]",
)
@click.option(
    "--peers",
    type=click.Path(path_type=Path),
    help="Folder where peers are built.  [default: ~/.cache/paceline/peers]",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path),
    help="Draw the reporting half's frontier there (.svg, .png, .pdf).",
)
def replay(
    traces: tuple[Path, ...],
    drafters: tuple[str, ...],
    min_probabilities: tuple[float, ...],
    episodes: int | None,
    drafter_folder: Path | None,
    nodes: int,
    pass_cost: float,
    requests: int | None,
    context_tokens: int | None,
    controls: tuple[str, ...],
    tenants: bool,
    tokenizer: str | None,
    turn_start: str,
    turn_end: str,
    state: Path | None,
    peers: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """What drafters would get accepted on recorded agents' replies; the target does not run.

    TRACES are trace files, or folders that hold them. An interrupted run goes on where it stopped.
    """
    fusion = None
    if drafter_folder is not None:
        if drafters:
            raise click.UsageError("--fusion has drafters of its own; leave --drafter out")
        fusion = FusionSettings(folder=drafter_folder, num_nodes=nodes, pass_cost=pass_cost)
    elif requests is not None or context_tokens is not None:
        raise click.UsageError("--requests and --context-tokens bound --fusion only")
    settings = ReplaySettings(
        sources=find_sources(traces),
        drafters=drafters or NAMES,
        min_probabilities=min_probabilities or MIN_PROBABILITIES,
        controls=controls,
        tenants=tenants,
        episodes=episodes,
        requests=requests,
        context_tokens=context_tokens,
        fusion=fusion,
        tokenizer=tokenizer,
        turn_start=turn_start,
        turn_end=turn_end,
        state=state or user_cache_folder(),
        peers=peers or default_folder(),
    )
    report, missing = run_replay(settings)
    click.echo(tables(report))
    for name, reason in missing.items():
        click.echo(f"{name} is missing: {reason}", err=True)
    if json_file is not None:
        write_json(report, json_file)
    if plot_file is not None:
        draw(report.figures, plot_file)
