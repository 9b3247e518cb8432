"""Fitting the priors of the draft memory's calibration by replaying recorded episodes.

The weights are what online learning arrives at: scope after scope is replayed in random order, each
going on from what the one before has learned, and the states at the end of the last pass's scopes
are averaged (Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992). Of
the probability map only one line a context is kept: a memory's own few hundred steps know better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter
from paceline.benchmarks.replay.episodes import Scope
from paceline.benchmarks.replay.run import replay_scope
from paceline.caches._native import calibration_shape, fitted_weights
from paceline.errors import ConfigError

State = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

MIN_PROBABILITY: Final = 0.05
"""Of the drafts learned from: below what is drafted in use, so that doubtful nodes are met."""
KNOTS_PER_LOGIT: Final = 2.0
BLANK_TRIALS: Final = 8.0
LENGTH_STEP: Final = 0.5
LEAST_TRIALS: Final = 5.0
IDENTITY_WEIGHT: Final = 0.125
MOST_OFFSET: Final = 3.0
SLOPES: Final = (0.2, 2.0)
WIDTH: Final = 116


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Where a calibration starts.

    Attributes:
        weights: those of `fitted_weights`, rounded to two decimals like the others.
        offsets: (num_contexts,); of a context logit(P) = offset + slope * logit(share).
        slopes: (num_contexts,).
    """

    weights: Values
    offsets: Values
    slopes: Values


def tuning_half(scopes: Sequence[Scope], num_episodes: int) -> list[Scope]:
    """The scopes with their first `num_episodes` episodes that no figure is reported on.

    Raises:
        ConfigError: none is left.
    """
    kept = [
        replace(scope, episodes=tuple(e for e in scope.episodes if not e.reporting)[:num_episodes])
        for scope in scopes
    ]
    if not any(scope.num_output_tokens for scope in kept):
        raise ConfigError(
            "no recorded reply belongs to the tuning half of the episodes; give more traces"
        )
    return [scope for scope in kept if scope.episodes]


def fit_prior(
    scopes: Sequence[Scope],
    *,
    num_passes: int,
    rng: np.random.Generator,
    advance: Callable[[int], None] = lambda _: None,
) -> Prior:
    """Replay the scopes `num_passes` (>= 1) times and keep what was learned.

    Args:
        scopes: what to learn from, all of it.
        num_passes: only the last one's states count.
        rng: chooses each pass's order.
        advance: told how many output tokens have been replayed since the last call.
    """
    state = blank_state()
    learned: list[State] = []
    for _ in range(num_passes):
        learned = []
        for number in rng.permutation(len(scopes)):
            scope = scopes[number]
            drafter = PacelineDrafter(min_probability=MIN_PROBABILITY)
            drafter.go_on_from(scope.name, state)
            replay_scope(drafter, "paceline", scope, advance=advance)
            state = drafter.learned(scope.name)
            learned.append(state)
    return prior_of(np.mean(learned, axis=0, dtype=np.float64))


def blank_state() -> State:
    """A calibration that knows of places only that longer matches are better.

    Lengths that the traces hardly have would otherwise never count. Shares are taken for
    probabilities.
    """
    num_weights, num_length_weights, num_lengths, num_contexts, num_knots = calibration_shape()
    weights = np.zeros(num_weights)
    weights[:num_length_weights] = LENGTH_STEP * (np.arange(num_length_weights) % num_lengths)
    expected = BLANK_TRIALS / (1.0 + np.exp(-knot_logits(num_knots)))
    counts = [np.full(num_contexts * num_knots, BLANK_TRIALS), np.tile(expected, num_contexts)]
    state: State = np.concatenate([weights, *counts]).astype(np.float32)
    return state


def knot_logits(num_knots: int) -> Values:
    """The logits of the shares at a context's knots."""
    knots = np.arange(num_knots, dtype=np.float64)
    return (knots - (num_knots - 1) / 2.0) / KNOTS_PER_LOGIT


def prior_of(state: Values) -> Prior:
    """A state's weights, and a line through each context of its probability map."""
    num_weights, _, _, num_contexts, num_knots = calibration_shape()
    trials, hits = state[num_weights:].reshape(2, num_contexts, num_knots)
    lines = [_line(*counts) for counts in zip(trials, hits, strict=True)]
    offsets, slopes = np.array(lines).T
    return Prior(_rounded(state[fitted_weights()]), _rounded(offsets), _rounded(slopes))


def _line(trials: Values, hits: Values) -> tuple[float, float]:
    """Offset and slope by weighted least squares, drawn to the identity where little was seen."""
    logits = knot_logits(len(trials))
    frequency = np.clip(hits / trials, 1e-3, 1.0 - 1e-3)
    num_seen = np.maximum(trials - BLANK_TRIALS, 0.0)
    observed = np.log(frequency / (1.0 - frequency))
    wanted = np.where(num_seen > LEAST_TRIALS, observed, logits)
    # a logit's variance is 1 / (n p (1 - p))
    root = np.sqrt(num_seen * frequency * (1.0 - frequency) + IDENTITY_WEIGHT)
    design = np.stack([np.ones_like(logits), logits], axis=1) * root[:, None]
    (offset, slope), *_ = np.linalg.lstsq(design, wanted * root, rcond=None)
    return float(np.clip(offset, -MOST_OFFSET, MOST_OFFSET)), float(np.clip(slope, *SLOPES))


def _rounded(values: Values) -> Values:
    return np.round(values, 2) + 0.0  # no -0.00


def render(prior: Prior) -> str:
    """The C++ header that the native core is built with."""
    return f"""#pragma once

#include <array>

// Written by `paceline bench fit`: where learning starts, fitted by replaying the tuning half of
// the episodes of recorded agent traces; the other half is what figures are reported on. A memory
// that is used leaves this behind within some hundred steps.
namespace paceline::prior {{

// One weight for each value of each trait of a place, then those of "no candidate is right".
{_array("kWeights", prior.weights)}

// By context of the probability map: logit(P) = offset + slope * logit(share).
{_array("kOffsets", prior.offsets)}
{_array("kSlopes", prior.slopes)}

}}  // namespace paceline::prior
"""


def _array(name: str, values: Values) -> str:
    lines, line = [], "   "
    for number, value in enumerate(values, start=1):
        cell = f" {value:.2f}f" + ("," if number < len(values) else "")
        if len(line) + len(cell) > WIDTH:
            lines.append(line)
            line = "   "
        line += cell
    rows = "\n".join([*lines, line])
    return f"inline constexpr std::array<float, {len(values)}> {name}{{{{\n{rows}\n}}}};"
