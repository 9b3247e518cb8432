"""The command `paceline bench coupling`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import torch

from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.engine_settings import EngineSettings
from paceline.adapters.embedded.sampling import SamplingParams, distribution
from paceline.adapters.embedded.target import Row, Target
from paceline.benchmarks.exact.answers import answer_all
from paceline.benchmarks.exact.coupling import METHODS, acceptance
from paceline.benchmarks.exact.prompts import Prompt, read_prompts
from paceline.benchmarks.exact.records import SOURCES, ExactSettings
from paceline.benchmarks.exact.run import generation_requests
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_json

WIDTHS: Final = (1, 2, 4)
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and a drafter with its tokens."""

    target: Target
    drafter: Target

    def distributions(
        self, prompt: Prompt, reply: list[int], params: SamplingParams
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both models' after the prompt and after each token of the reply but the last."""
        text = [*prompt.token_ids, *reply[:-1]]
        both = []
        for model in (self.target, self.drafter):
            row = Row(
                request_id="", key_values=model.sequence(), token_ids=text, num_logits=len(reply)
            )
            told = model.in_vocabulary(model.forward([row])[0])
            kept = torch.stack([distribution(logits, params) for logits in told])
            both.append(kept / kept.sum(dim=-1, keepdim=True))
        return both[0], both[1]


def run_coupling(
    settings: ExactSettings, temperatures: tuple[float, ...], num_draws: int
) -> Report:
    """Sample replies at each temperature and hold both models' opinions of them together."""
    renderer = Renderer(load_encoder(settings.model or None))
    pair = Pair(
        Target.load(Path(settings.model) if settings.model else None),
        Target.load_drafter(Path(settings.drafter)),
    )
    flat: dict[str, float] = {}
    with click.progressbar(
        [(source, t) for t in temperatures for source in settings.sources], label="replies"
    ) as bar:
        for source, temperature in bar:
            prompts = read_prompts(
                Path(settings.traces), source, renderer, num_prompts=settings.prompts,
                num_turns=settings.turns, context_tokens=settings.context_tokens,
            )  # fmt: skip
            said = _replies(settings, pair.target, prompts, temperature)
            params = SamplingParams(temperature, settings.top_p)
            values = list(_values(pair, prompts, said, params, num_draws))
            where = f"{source} T={temperature:g}"
            flat |= _means(where, values)
    facts = {
        "target": Path(settings.model).name or "SmolLM2",
        "drafter": Path(settings.drafter).name,
        "top_p": settings.top_p,
        "prompts": settings.prompts,
        "output_tokens": settings.output_tokens,
    }
    return Report(bench="coupling", settings=facts, figures=flat)


def _replies(
    settings: ExactSettings, target: Target, prompts: list[Prompt], temperature: float
) -> list[list[int]]:
    alike = ExactSettings(traces="", temperature=temperature, top_p=settings.top_p)
    engine = EmbeddedEngine(target, None, EngineSettings(max_running=settings.concurrency))
    requests = generation_requests(alike, prompts, 0, output_tokens=settings.output_tokens)
    engine.start()
    with closing(engine):
        return [a.token_ids for a in answer_all(engine, requests, clock=time.perf_counter)]


def _values(
    pair: Pair,
    prompts: list[Prompt],
    said: list[list[int]],
    params: SamplingParams,
    num_draws: int,
) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    for prompt, reply in zip(prompts, said, strict=True):
        target, drafter = pair.distributions(prompt, reply, params)
        values = acceptance(target, drafter, WIDTHS, num_draws=num_draws, generator=generator)
        agree = (target.argmax(-1) == drafter.argmax(-1)).double()
        yield values | {("agreement", 1): agree}


def _means(where: str, values: list[dict[tuple[str, int], torch.Tensor]]) -> dict[str, float]:
    flat = {}
    for method, width in values[0]:
        every = torch.cat([value[method, width] for value in values])
        flat[f"{where}.{method}.{width}"] = float(every.mean())
    return flat | {f"{where}.prefixes": sum(len(v["agreement", 1]) for v in values)}


def table(report: Report) -> str:
    """Markdown: a line for each source and temperature, a column for each method and width."""
    places = dict.fromkeys(name.rpartition(".prefixes")[0] for name in report.figures)
    columns = [("agreement", 1), *((method, k) for k in WIDTHS for method in METHODS)]
    lines = [["prompts, temperature", *(f"{method} {k}" for method, k in columns)]]
    lines.append(["---"] * len(lines[0]))
    lines += [
        [place, *(f"{report.figures[f'{place}.{method}.{k}']:.3f}" for method, k in columns)]
        for place in places
        if place
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command("coupling")
@click.option("--traces", required=True, help="Folder of recorded traces and prompts.")
@click.option("--drafter", required=True, help="Folder of a small model that drafts.")
@click.option("--model", default="", help="Hugging Face folder of the target.  [default: SmolLM2]")
@click.option("--source", "sources", multiple=True, help="May be repeated.")
@click.option("--temperature", "temperatures", multiple=True, type=float, help="May be repeated.")
@click.option("--top-p", default=1.0, show_default=True)
@click.option("--prompts", default=8, show_default=True, help="Of each source.")
@click.option("--context-tokens", default=256, show_default=True)
@click.option("--output-tokens", default=48, show_default=True)
@click.option("--draws", default=4, show_default=True, help="Random numbers a prefix.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the report there."
)
def coupling(
    traces: str,
    drafter: str,
    model: str,
    sources: tuple[str, ...],
    temperatures: tuple[float, ...],
    top_p: float,
    prompts: int,
    context_tokens: int,
    output_tokens: int,
    draws: int,
    json_file: Path | None,
) -> None:
    """How often a drafter's tokens are accepted, by how drafts are drawn and verified."""
    settings = ExactSettings(
        traces=traces,
        model=model,
        drafter=drafter,
        sources=sources or SOURCES,
        prompts=prompts,
        context_tokens=context_tokens,
        output_tokens=output_tokens,
        top_p=top_p,
    )
    report = run_coupling(settings, temperatures or (0.6, 1.0), draws)
    click.echo(table(report))
    if json_file is not None:
        write_json(report, json_file)
