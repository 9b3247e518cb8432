"""What `paceline bench objectives` compares: ways to learn the same from the same start."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from paceline.benchmarks.learn.records import Replayed
from paceline.errors import ConfigError
from paceline.online.greedy_replay import ReplayCounts, total
from paceline.online.learner_settings import CycleSettings
from paceline.online.promotion import GateSettings, SessionReplay, judge
from paceline.online.settings import OBJECTIVES

BASE: Final = "base"
"""The learner's own settings, which all others are compared with."""
VARIED: Final = ("objective", "read_weight", "error_emphasis", "learning_rate")
"""Settings of a cycle that change neither what is learned from nor how much of it."""
WEIGHTINGS: Final = ("error_emphasis=1", "error_emphasis=4", "read_weight=0", "read_weight=1")


class HeldOutReply(NamedTuple):
    """Of which a drafter is measured: its task's name, and its workload's."""

    session: str
    workload: str


def variant_of(base: CycleSettings, text: str) -> CycleSettings:
    """A cycle's settings with ``NAME=VALUE[,NAME=VALUE]`` changed.

    Raises:
        ConfigError: a name is none of `VARIED`, or a value is wrong.
    """
    told: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in VARIED:
            raise ConfigError(
                f"--variant {text!r} has {part!r}; give NAME=VALUE with {', '.join(VARIED)}"
            )
        try:
            told[name] = json.loads(value)
        except ValueError:
            told[name] = value
    return checked_cycle({**msgspec.to_builtins(base), **told})


def checked_cycle(told: Mapping[str, Any]) -> CycleSettings:
    """Settings of a cycle.

    Raises:
        ConfigError: a name is unknown or a value is wrong.
    """
    if unknown := told.keys() - {*CycleSettings.__struct_fields__}:
        raise ConfigError(
            f"cycle.{min(unknown)} is no setting; cycle knows "
            f"{', '.join(CycleSettings.__struct_fields__)}"
        )
    try:
        return msgspec.convert(dict(told), CycleSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"cycle: {error.__cause__ or error}") from error


def variants_of(base: CycleSettings, texts: Sequence[str]) -> dict[str, CycleSettings]:
    """The base and the variants by name; without any, every other objective and weighting.

    Raises:
        ConfigError: one is wrong, or changes nothing.
    """
    chosen = list(texts) or [
        *(f"objective={name}" for name in OBJECTIVES if name != base.objective),
        *(text for text in WEIGHTINGS if variant_of(base, text) != base),
    ]
    found = {BASE: base}
    for text in chosen:
        found[text] = variant_of(base, text)
        if found[text] == base:
            raise ConfigError(f"--variant {text!r} is what the base does; leave it out")
    return found


def figures(
    trained: Mapping[str, Sequence[Sequence[Replayed]]],
    untrained: Sequence[Replayed],
    replies: Sequence[HeldOutReply],
    *,
    confidence: float,
) -> dict[str, float]:
    """Flat names to numbers.

    All seeds of a variant count together, and a task's replies are one session. Bounds are
    one-sided and hold for all variants at once (Bonferroni): of variants that make no difference
    one in `1 / (1 - confidence)` such comparisons names any.

    Args:
        trained: by variant, `BASE` among them: for each seed, what it did on each reply.
        untrained: what all began with.
        replies: what was replayed, in the same order.
        confidence: of all lower bounds, and of all upper bounds.
    """
    found = {"untrained.agreement": total(it.counts for it in untrained).agreement}
    found |= {
        "untrained.accepted_length": total(it.counts for it in untrained).accepted_length,
        "untrained.sampled": _sampled(untrained),
    }
    gate = GateSettings(confidence=1 - (1 - confidence) / max(len(trained) - 1, 1), min_sessions=2)
    base = summed(trained[BASE])
    for name, seeds in trained.items():
        mine = summed(seeds)
        found[f"{name}.agreement"] = total(mine).agreement
        found[f"{name}.accepted_length"] = total(mine).accepted_length
        found[f"{name}.sampled"] = _sampled([it for seed in seeds for it in seed])
        for number, seed in enumerate(seeds):
            found[f"{name}.seed-{number}"] = total(it.counts for it in seed).accepted_length
        if name == BASE:
            continue
        better = judge(_paired(replies, base, mine), gate)
        worse = judge(_paired(replies, mine, base), gate)
        found[f"{name}.change"] = better.after - better.before
        found[f"{name}.change_least"] = better.lower_bound
        found[f"{name}.change_most"] = -worse.lower_bound
        for part in better.slices:
            found[f"{name}.change.{part.workload}"] = part.after - part.before
    return found | {"sessions": len({it.session for it in replies}), "replies": len(replies)}


def summed(seeds: Sequence[Sequence[Replayed]]) -> list[ReplayCounts]:
    """Counts of each reply, those of all seeds added up."""
    return [total(it.counts for it in reply) for reply in zip(*seeds, strict=True)]


def _paired(
    replies: Sequence[HeldOutReply], before: Sequence[ReplayCounts], after: Sequence[ReplayCounts]
) -> list[SessionReplay]:
    return [
        SessionReplay(session=it.session, workload=it.workload, before=old, after=new)
        for it, old, new in zip(replies, before, after, strict=True)
    ]


def _sampled(replayed: Sequence[Replayed]) -> float:
    """Share of drafted tokens that a target which samples would accept."""
    num_tokens = sum(it.counts.num_tokens for it in replayed)
    return sum(it.sampled for it in replayed) / max(num_tokens, 1)
