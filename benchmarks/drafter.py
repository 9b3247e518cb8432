"""`paceline bench drafter`: what one pass of a drafter costs, as a share of one of its target.

Both run in the embedded engine at batch 1, one token a pass, behind contexts of random tokens; what
they say does not matter to what they cost. A drafter's pass includes picking its likeliest tokens.
Passes of all models alternate, so that whatever else the machine does slows each alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

import click

from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError
from paceline.models import target_path

if TYPE_CHECKING:
    from paceline.adapters.embedded.key_values import KeyValues
    from paceline.adapters.embedded.target import Target

TARGET: Final = "target"
PREFILL_TOKENS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterBenchSettings:
    """What is measured.

    Attributes:
        target: model that drafts are for, as `paceline drafter init` takes it.
        drafters: folders.
        contexts: tokens held before a pass.
        rounds: passes of each model behind each context.
        threads: of torch.
        seed: of the tokens.
    """

    target: str
    drafters: tuple[str, ...]
    contexts: tuple[int, ...] = (512, 2048)
    rounds: int = 30
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        names = [Path(drafter).name for drafter in self.drafters]
        if len({*names, TARGET}) != len(names) + 1:
            raise ConfigError(
                f"the drafters' folders are {names}; give folders of different names, none of "
                f"them {TARGET!r}"
            )
        least = min((*self.contexts, self.rounds, self.threads))
        if least < 1:
            raise ConfigError(f"a context, --rounds or --threads is {least}; give 1 or more")


def run_drafter_bench(settings: DrafterBenchSettings) -> Report:
    """Measure passes of the target and of every drafter.

    Raises:
        ConfigError: a model is missing, or reads fewer tokens than a context has.
    """
    import torch

    from paceline.adapters.embedded.target import Target

    torch.set_num_threads(settings.threads)
    models = {TARGET: Target.load(target_path(settings.target))}
    for drafter in settings.drafters:
        models[Path(drafter).name] = Target.load_drafter(Path(drafter).expanduser())
    figures = {}
    for context in settings.contexts:
        times = dict(_pass_ms(models, context, settings))
        for name, ms in times.items():
            figures[f"{name}.{context}.ms"] = ms
        for name in times.keys() - {TARGET}:
            figures[f"{name}.{context}.share"] = times[name] / times[TARGET]
    return Report("drafter", asdict(settings), dict(sorted(figures.items())))


def _pass_ms(
    models: dict[str, Target], context: int, settings: DrafterBenchSettings
) -> Iterator[tuple[str, float]]:
    """Median milliseconds of a pass behind `context` tokens, by model."""
    import numpy as np

    shortest = min(model.max_model_len for model in models.values())
    if context + settings.rounds > shortest:
        raise ConfigError(
            f"a context of {context} tokens and {settings.rounds} rounds are more than the "
            f"{shortest} that the models read; give shorter ones"
        )
    rng = np.random.default_rng(settings.seed)
    vocab_size = int(models[TARGET].model.config.vocab_size)
    tokens = rng.integers(0, vocab_size, context).tolist()
    held = {name: _prefilled(model, tokens) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(settings.rounds):
        for name, model in models.items():
            times[name].append(_one_pass(model, held[name], tokens[0]))
            held[name].crop(context)
    for name, values in times.items():
        yield name, median(values)


def _prefilled(model: Target, tokens: Sequence[int]) -> KeyValues:
    from paceline.adapters.embedded.target import Row

    held = model.sequence()
    for start in range(0, len(tokens), PREFILL_TOKENS):
        part = tokens[start : start + PREFILL_TOKENS]
        model.forward([Row(request_id="bench", key_values=held, token_ids=part, num_logits=0)])
    return held


def _one_pass(model: Target, held: KeyValues, token_id: int) -> float:
    """Milliseconds of a pass with one token, its likeliest next tokens picked."""
    from paceline.adapters.embedded.draft_places import TOP
    from paceline.adapters.embedded.target import Row

    row = Row(request_id="bench", key_values=held, token_ids=[token_id])
    started = perf_counter_ns()
    logits = model.forward([row])[0]
    logits.softmax(dim=-1).topk(TOP, dim=-1)
    return (perf_counter_ns() - started) / 1e6


@click.command()
@click.option("--target", required=True, help="Model that drafts are for; smollm2 is the packaged.")
@click.option(
    "--drafter", "drafters", multiple=True, required=True, help="Drafter's folder; repeatable."
)
@click.option(
    "--context", "contexts", multiple=True, type=int, help="Tokens held.  [default: 512, 2048]"
)
@click.option("--rounds", default=30, show_default=True, help="Passes of each model.")
@click.option("--threads", default=2, show_default=True, help="Of torch.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
def drafter(
    target: str,
    drafters: tuple[str, ...],
    contexts: tuple[int, ...],
    rounds: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Measure what a drafter's pass costs beside its target's, one token at batch 1."""
    settings = DrafterBenchSettings(
        target=target,
        drafters=drafters,
        contexts=contexts or (512, 2048),
        rounds=rounds,
        threads=threads,
    )
    write_report(run_drafter_bench(settings), json_file)
