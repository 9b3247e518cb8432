"""What policies have learned, for people: each arm's mean reward and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from paceline.policies.bandits.change import LEAST_VARIANCE, PRIOR_COUNT, PRIOR_VARIANCE
from paceline.policies.bandits.gaussian import (
    PRIOR_REWARD,
    PRIOR_WEIGHT,
    DiscountedUCB,
    ThompsonSampling,
)
from paceline.policies.bandits.state import PolicyState, Row

KINDS: Final = frozenset({DiscountedUCB.kind, ThompsonSampling.kind})
"""Policies that keep means; of others nothing is reported."""


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm in one context.

    Attributes:
        name: of the arm.
        reward: mean of committed tokens a second, in parts of the rate without drafts.
        deviation: standard deviation of that mean.
        weight: evidence that it rests on, in outcomes of full weight, discounted.
    """

    name: str
    reward: float
    deviation: float
    weight: float


@dataclass(frozen=True, slots=True)
class ContextReport:
    """What is known in one context, of all replicas together.

    Attributes:
        key: sharing scope.
        workload: kind of work.
        batch_bucket: of the requests in the batch.
        context_bucket: of the request's tokens.
        num_updates: outcomes that were ever learned there.
        arms: best first.
    """

    key: str
    workload: str
    batch_bucket: int
    context_bucket: int
    num_updates: int
    arms: tuple[ArmReport, ...]


def context_reports(states: Iterable[PolicyState]) -> list[ContextReport]:
    """The contexts in some replicas' states, those with most outcomes first. O(tables).

    What wider tables would lend a context is left out.
    """
    rows: dict[tuple[str, str, int, int], dict[str, Row]] = {}
    updates: dict[tuple[str, str, int, int], int] = {}
    for state in states:
        if state.kind not in KINDS:
            continue
        for key in state.keys:
            for table in key.tables:
                workload, batch, context = table.name
                if workload is None or not context:
                    continue  # a wider table: it has the same outcomes again
                where = (str(key.key), workload, batch, context)
                updates[where] = updates.get(where, 0) + table.num_updates
                known = rows.setdefault(where, {})
                for arm, row in table.rows.items():
                    before = known.get(arm, [0.0] * len(row))
                    known[arm] = [a + b for a, b in zip(before, row, strict=False)]
    reports = [
        ContextReport(*where, updates[where], tuple(arms))
        for where, known in rows.items()
        if (arms := _arms(known))
    ]
    return sorted(reports, key=lambda report: -report.num_updates)


def _arms(rows: dict[str, Row]) -> list[ArmReport]:
    arms = [_arm(name, row) for name, row in rows.items() if len(row) == DiscountedUCB.width]
    return sorted(arms, key=lambda arm: -arm.reward)


def _arm(name: str, row: Row) -> ArmReport:
    """As `GaussianBandit` estimates it, from the prior of a context without wider ones."""
    weight, total, squares, count, *_ = row
    held = PRIOR_WEIGHT + weight
    mean = (PRIOR_WEIGHT * PRIOR_REWARD + total) / held
    variance = PRIOR_COUNT * PRIOR_VARIANCE * max(mean * mean, 1.0)
    if weight > 0.0:
        variance += max(squares - total * total / weight, 0.0)
    variance = max(variance / (PRIOR_COUNT + count), LEAST_VARIANCE)
    return ArmReport(name, mean, math.sqrt(variance / held), weight)
