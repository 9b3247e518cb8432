"""From answered batches to figures: what differs, by how little, how fast, how frequent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from paceline.adapters.embedded.sampling import SamplingParams, distribution, exponentials
from paceline.adapters.embedded.target import Row, Target
from paceline.benchmarks.exact.frequencies import Frequencies, by_rank, by_token
from paceline.benchmarks.exact.prompts import Prompt
from paceline.benchmarks.exact.records import OFF, BatchResult, ExactSettings
from paceline.benchmarks.loops import has_loop

ALL: Final = "all"
NUM_NAMED: Final = 24
"""Tokens whose frequencies are looked at one by one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A reply that is not the one given without speculation.

    Attributes:
        source: where its prompt comes from.
        prompt: number of the prompt in the run.
        mode: how it was drafted.
        position: first token that differs.
        gap: by how much the target prefers the one token to the other, in nats of what is
            compared when a token is chosen (log probability, over its exponential number where
            tokens are drawn). What rounds differently has a gap of rounding's size.
    """

    source: str
    prompt: int
    mode: str
    position: int
    gap: float


def differences(
    settings: ExactSettings,
    prompts: Sequence[Prompt],
    results: Sequence[BatchResult],
    target: Target,
) -> Iterator[Difference]:
    """Every reply of every mode that differs from the one without speculation."""
    for number, result, i in numbered(results):
        expected = result.modes[OFF.name].replies[i]
        for name, mode in result.modes.items():
            said = mode.replies[i]
            if said == expected:
                continue
            at = first_difference(said, expected)
            gap = math.inf
            if at < min(len(said), len(expected)):
                text = [*prompts[number].token_ids, *expected[:at]]
                scores = _scores(target, text, settings, seed=number, position=at)
                gap = abs(float(scores[said[at]] - scores[expected[at]]))
            yield Difference(result.source, number, name, at, gap)


def numbered(results: Sequence[BatchResult]) -> Iterator[tuple[int, BatchResult, int]]:
    """(number of the prompt in the run, its batch, its place in the batch) of every prompt."""
    number = 0
    for result in results:
        for i in range(len(result.modes[OFF.name].replies)):
            yield number, result, i
            number += 1


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Index of the first token that differs; the shorter one's length if it is a beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _scores(
    target: Target, text: Sequence[int], settings: ExactSettings, *, seed: int, position: int
) -> torch.Tensor:
    """What the next token is chosen by, float64 (vocabulary,): the greatest wins."""
    row = Row(request_id="", key_values=target.sequence(), token_ids=text)
    logits = target.forward([row])[0][-1]
    params = SamplingParams(settings.temperature, settings.top_p, seed)
    if params.is_greedy:
        return torch.log_softmax(logits.double(), dim=-1)
    probs = distribution(logits, params)
    return probs.log() - exponentials(seed, position, len(probs)).log()


def speeds(results: Sequence[BatchResult]) -> dict[str, float]:
    """Flat figures ``source.mode.figure``, pooled over a source's batches and over ``all``."""
    flat: dict[str, float] = {}
    for source in [*dict.fromkeys(result.source for result in results), ALL]:
        mine = [result for result in results if source in (result.source, ALL)]
        for name in mine[0].modes:
            done = [result.modes[name] for result in mine]
            seconds = sum(mode.seconds for mode in done)
            replies = [reply for mode in done for reply in mode.replies]
            rounds = sum(mode.rounds for mode in done)
            drafted = sum(mode.drafted for mode in done)
            tokens = sum(map(len, replies))
            off = sum(result.modes[OFF.name].seconds for result in mine)
            cpu = sum(mode.cpu_seconds for mode in done)
            cpu_off = sum(result.modes[OFF.name].cpu_seconds for result in mine)
            values = {
                "replies": len(replies),
                "identical": sum(
                    reply == expected
                    for result in mine
                    for reply, expected in zip(
                        result.modes[name].replies, result.modes[OFF.name].replies, strict=True
                    )
                ),
                "looping": sum(map(has_loop, replies)),
                "tokens": tokens,
                "tokens_per_step": _ratio(tokens - len(replies), rounds),
                "drafted_per_step": _ratio(drafted, rounds),
                "acceptance": _ratio(sum(mode.accepted for mode in done), drafted),
                "tokens_per_second": _ratio(tokens, seconds),
                "times_off": _ratio(off, seconds),
                "cpu_times_off": _ratio(cpu_off, cpu),
                "drafter_passes": sum(mode.passes for mode in done),
                "with_model": _share(
                    sum(mode.with_model for mode in done),
                    sum(mode.without_model for mode in done),
                ),
                "cut_tokens": sum(mode.cut for mode in done),
            }
            flat |= {f"{source}.{name}.{figure}": value for figure, value in values.items()}
    return flat


def frequency_figures(
    settings: ExactSettings,
    prompts: Sequence[Prompt],
    results: Sequence[BatchResult],
    target: Target,
) -> dict[str, float]:
    """How well tokens drawn with speculation fit the target's probabilities.

    The last mode's replies, evenly from the whole run; each text is read once, undrafted.
    """
    mode = list(results[0].modes)[-1]
    every = [(number, result.modes[mode].replies[i]) for number, result, i in numbered(results)]
    chosen = every[:: max(1, len(every) // settings.scored)]
    # named after what half of them say and counted in the other: what was said most would not fit
    said = Counter(token for _, reply in chosen[::2] for token in reply)
    named = [token for token, _ in said.most_common(NUM_NAMED)]
    counts = {"rank": Frequencies(6), "token": Frequencies(len(named) + 1)}
    for place, (number, reply) in enumerate(chosen):
        text = [*prompts[number].token_ids, *reply[:-1]]
        row = Row(
            request_id="", key_values=target.sequence(), token_ids=text, num_logits=len(reply)
        )
        params = SamplingParams(settings.temperature, settings.top_p)
        kept = torch.stack([distribution(row, params) for row in target.forward([row])[0]])
        probs = kept / kept.sum(dim=-1, keepdim=True)
        counts["rank"].add(*by_rank(probs, reply))
        if place % 2:
            counts["token"].add(*by_token(probs, reply, named))
    flat: dict[str, float] = {}
    for name, count in counts.items():
        fit = count.fit()
        flat[f"frequency.{mode}.{name}.tokens"] = count.num_tokens
        flat[f"frequency.{mode}.{name}.chi_square"] = fit.statistic
        flat[f"frequency.{mode}.{name}.degrees"] = fit.degrees
        flat[f"frequency.{mode}.{name}.p_value"] = fit.p_value
    return flat


def _share(one: int, other: int) -> float:
    """0 where there is nothing to have a share of."""
    return one / (one + other) if one + other else 0.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
