"""`paceline bench agent`: recorded agents' requests on a real vLLM through the proxy.

The engine runs without speculation, with vLLM's own n-gram, and with Paceline's worker. Every
variant gets the same requests in the same order, one at a time, at temperature 0, through the same
proxy. The target's own words are compared token by token: speculation may only change the time they
take.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import click

from paceline.adapters.vllm.settings import WorkerSettings
from paceline.benchmarks.engines import (
    VARIANTS,
    EngineSettings,
    RunningEngine,
    Variant,
    running_engine,
)
from paceline.benchmarks.loops import has_loop
from paceline.benchmarks.metrics import SpeculationCounts, read_speculation
from paceline.benchmarks.report import Report, write_report
from paceline.benchmarks.traces import Episode, Message, cut, read_episodes
from paceline.errors import ConfigError
from paceline.middleware.config import ProxyConfig, UpstreamConfig
from paceline.middleware.server import running_proxy

SOURCES: Final = ("tau-bench", "mini-swe-agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBenchSettings:
    """What is replayed, and on what.

    Attributes:
        traces: folder of the recorded traces.
        model: Hugging Face folder of the target.
        sources: trace files to take episodes from.
        episodes: episodes of each source, the first ones.
        requests: requests of each episode, the first ones.
        context_tokens: longest context, in tokens of the target.
        output_tokens: tokens asked for in each reply.
        num_draft_tokens: most tokens drafted a step.
        min_probability: where Paceline's drafts stop.
        dtype: number format of the target.
        variants: which engines to compare, in this order.
        eager: start faster and run slower: the target is not compiled.
    """

    traces: Path
    model: Path
    sources: tuple[str, ...] = SOURCES
    episodes: int = 10
    requests: int = 40
    context_tokens: int = 2048
    output_tokens: int = 96
    num_draft_tokens: int = 16
    min_probability: float = WorkerSettings().min_probability
    dtype: str = "float32"
    variants: tuple[Variant, ...] = VARIANTS
    eager: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its tokens and when they came, in seconds since the request."""

    token_ids: tuple[int, ...]
    first_token_seconds: float
    total_seconds: float

    @property
    def loops(self) -> bool:
        """Whether some 8-gram occurs four times: a small model repeating itself."""
        return has_loop(self.token_ids)


@dataclass(slots=True)
class EpisodeResult:
    """The replies of one episode on one engine, and what its speculation did meanwhile."""

    source: str
    episode_id: str
    replies: list[Reply] = field(default_factory=list)
    counts: SpeculationCounts = field(default_factory=SpeculationCounts)

    def tokens_per_second(self, *, looping: bool | None = None) -> float:
        """Output tokens per second of request time, prefill included; NaN without replies.

        Args:
            looping: None for all replies, True or False for only those that (do not) loop.
        """
        replies = [r for r in self.replies if looping is None or r.loops == looping]
        seconds = sum(r.total_seconds for r in replies)
        return sum(len(r.token_ids) for r in replies) / seconds if seconds else float("nan")

    def decode_tokens_per_second(self) -> float:
        """Output tokens after the first per second after the first: prefill left out."""
        seconds = sum(r.total_seconds - r.first_token_seconds for r in self.replies)
        return (
            sum(len(r.token_ids) - 1 for r in self.replies) / seconds if seconds else float("nan")
        )


def run_agent_bench(settings: AgentBenchSettings, *, log_folder: Path) -> Report:
    """Replay the settings' requests on each variant.

    Servers are started one after the other and stopped.
    """
    work = list(_workload(settings))
    results = {
        variant: _run_variant(settings, variant, work, log_folder) for variant in settings.variants
    }
    return Report(
        bench="agent",
        # a folder by its name: where it lies on this machine tells a reader nothing
        settings={k: v.name if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        figures=figures(results),
    )


def figures(results: dict[Variant, list[EpisodeResult]]) -> dict[str, float]:
    """Flat figures.

    For each source and variant the medians over episodes, and ratios against the other variants.
    """
    flat: dict[str, float] = {}
    sources = sorted({e.source for episodes in results.values() for e in episodes})
    for source in sources:
        rows = {v: [e for e in episodes if e.source == source] for v, episodes in results.items()}
        for variant, episodes in rows.items():
            flat |= {f"{source}.{variant}.{k}": v for k, v in _summary(episodes).items()}
        flat |= {f"{source}.{k}": v for k, v in _comparison(rows).items()}
    return flat


def _summary(episodes: list[EpisodeResult]) -> dict[str, float]:
    counts = sum((e.counts for e in episodes), SpeculationCounts())
    replies = [r for e in episodes for r in e.replies]
    return {
        "episodes": len(episodes),
        "requests": len(replies),
        "looping_requests": sum(r.loops for r in replies),
        "output_tokens": sum(len(r.token_ids) for r in replies),
        "tokens_per_second": median(e.tokens_per_second() for e in episodes),
        "decode_tokens_per_second": median(e.decode_tokens_per_second() for e in episodes),
        "tokens_per_second_not_looping": _median_number(
            [e.tokens_per_second(looping=False) for e in episodes]
        ),
        "tokens_per_step": counts.tokens_per_step,
        "accepted_per_drafted": counts.acceptance,
        "drafted_tokens": counts.drafted,
        "accepted_tokens": counts.accepted,
    }


def _comparison(rows: dict[Variant, list[EpisodeResult]]) -> dict[str, float]:
    flat: dict[str, float] = {}
    ours = rows.get("paceline")
    if ours is None:
        return flat
    for peer in ("off", "ngram"):
        theirs = rows.get(peer)
        if theirs is None:
            continue
        pairs = list(zip(ours, theirs, strict=True))
        same = [
            a.token_ids == b.token_ids
            for x, y in pairs
            for a, b in zip(x.replies, y.replies, strict=True)
        ]
        flat[f"identical_to_{peer}"] = sum(same)
        flat[f"ratio_to_{peer}"] = median(
            x.tokens_per_second() / y.tokens_per_second() for x, y in pairs
        )
        flat[f"decode_ratio_to_{peer}"] = median(
            x.decode_tokens_per_second() / y.decode_tokens_per_second() for x, y in pairs
        )
        flat[f"ratio_to_{peer}_not_looping"] = _median_number(
            [
                x.tokens_per_second(looping=False) / y.tokens_per_second(looping=False)
                for x, y in pairs
            ]
        )
    return flat


def _median_number(values: list[float]) -> float:
    numbers = [v for v in values if v == v]  # noqa: PLR0124  NaN differs from itself
    return median(numbers) if numbers else float("nan")


def _workload(settings: AgentBenchSettings) -> Iterator[tuple[Episode, list[list[Message]]]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    for source in settings.sources:
        episodes = read_episodes(settings.traces, source)
        for _, episode in zip(range(settings.episodes), episodes, strict=False):
            contexts = episode.contexts[: settings.requests]
            yield episode, [cut(c, tokenizer, max_tokens=settings.context_tokens) for c in contexts]


def _run_variant(
    settings: AgentBenchSettings,
    variant: Variant,
    work: list[tuple[Episode, list[list[Message]]]],
    log_folder: Path,
) -> list[EpisodeResult]:
    engine_settings = EngineSettings(
        model=str(settings.model),
        variant=variant,
        num_draft_tokens=settings.num_draft_tokens,
        min_probability=settings.min_probability,
        # room for the reply and for the chat template's markers, which `cut` does not count
        max_model_len=settings.context_tokens + settings.output_tokens + 1024,
        dtype=settings.dtype,
        vllm_args=("--enforce-eager",) if settings.eager else (),
    )
    results = []
    with running_engine(engine_settings, log_folder=log_folder) as engine:
        config = ProxyConfig(upstreams=[UpstreamConfig(name="target", url=engine.url)])
        with (
            running_proxy(config) as proxy,
            click.progressbar(
                work,
                label=f"{variant:<9}",
                item_show_func=lambda w: w[0].episode_id[:40] if w else "",
            ) as bar,
        ):
            for episode, contexts in bar:
                results.append(_run_episode(settings, engine, proxy.url, episode, contexts))
    return results


def _run_episode(
    settings: AgentBenchSettings,
    engine: RunningEngine,
    base_url: str,
    episode: Episode,
    contexts: list[list[Message]],
) -> EpisodeResult:
    from openai import OpenAI

    result = EpisodeResult(episode.source, episode.episode_id)
    before = read_speculation(engine.url)
    with OpenAI(base_url=f"{base_url}/v1", api_key="local", max_retries=0, timeout=600) as client:
        headers = {"x-session-id": episode.episode_id, "x-paceline-workload": episode.source}
        for context in contexts:
            result.replies.append(
                _ask(client, context, headers=headers, output_tokens=settings.output_tokens)
            )
    result.counts = read_speculation(engine.url) - before
    return result


def _ask(
    client: Any, context: list[Message], *, headers: dict[str, str], output_tokens: int
) -> Reply:
    started = time.perf_counter()
    first = 0.0
    token_ids: list[int] = []
    stream = client.chat.completions.create(
        model="target",
        messages=[message.as_json() for message in context],
        temperature=0,
        max_tokens=output_tokens,
        stream=True,
        extra_headers=headers,
        extra_body={"return_token_ids": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            token_ids.extend((choice.model_extra or {}).get("token_ids") or ())
            if token_ids and not first:
                first = time.perf_counter() - started
    return Reply(tuple(token_ids), first, time.perf_counter() - started)


@click.command("agent")
@click.option(
    "--traces", required=True, type=click.Path(path_type=Path), help="Folder of recorded traces."
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Hugging Face folder of the target.  [default: SmolLM2-135M]",
)
@click.option("--source", "sources", multiple=True, help="Trace file; may be repeated.")
@click.option("--episodes", default=10, show_default=True, help="Episodes of each source.")
@click.option("--requests", default=40, show_default=True, help="Most requests of each episode.")
@click.option("--context-tokens", default=2048, show_default=True)
@click.option("--output-tokens", default=96, show_default=True)
@click.option("--draft-tokens", default=16, show_default=True, help="Most tokens drafted a step.")
@click.option(
    "--min-probability",
    default=WorkerSettings().min_probability,
    show_default=True,
    help="Paceline's drafts stop where they would be accepted less often.",
)
@click.option("--dtype", default="float32", show_default=True)
@click.option(
    "--variant", "variants", multiple=True, type=click.Choice(VARIANTS), help="May be repeated."
)
@click.option("--eager", is_flag=True, help="Start faster, run slower: no compilation.")
@click.option("--logs", type=click.Path(path_type=Path), help="Folder for the servers' logs.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def agent(
    traces: Path,
    model: Path | None,
    sources: tuple[str, ...],
    episodes: int,
    requests: int,
    context_tokens: int,
    output_tokens: int,
    draft_tokens: int,
    min_probability: float,
    dtype: str,
    variants: tuple[Variant, ...],
    eager: bool,
    logs: Path | None,
    json_file: Path | None,
) -> None:
    """Recorded agents on a real vLLM through the proxy: off, vLLM's n-gram, Paceline."""
    if episodes < 1 or requests < 1:
        raise ConfigError(f"--episodes {episodes} --requests {requests}: give at least 1 of each")
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch:
        settings = AgentBenchSettings(
            traces=traces,
            model=model or _packaged_target(Path(scratch)),
            sources=sources or SOURCES,
            episodes=episodes,
            requests=requests,
            context_tokens=context_tokens,
            output_tokens=output_tokens,
            num_draft_tokens=draft_tokens,
            min_probability=min_probability,
            dtype=dtype,
            variants=variants or VARIANTS,
            eager=eager,
        )
        log_folder = logs or Path(scratch)
        log_folder.mkdir(parents=True, exist_ok=True)
        write_report(run_agent_bench(settings, log_folder=log_folder), json_file)


def _packaged_target(folder: Path) -> Path:
    from paceline.adapters.embedded.packaged import export_packaged_model

    return export_packaged_model(folder / "SmolLM2-135M-Instruct")
