"""`paceline bench budget`: what choosing what is worth its time takes in a round.

Random chains as memory drafts them, and a cost that has been learned: cutting the batch's drafts,
choosing for whom a model drafts, learning from the round, counting each request's part of it; and
what choosing arms takes above that, over many rounds, as an arm is held for 16 of them. Beside it,
in the same run, the cut by a heap of each draft's next token, as one would write it first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from typing import Final, cast

import click
import numpy as np
import numpy.typing as npt

from paceline.adapters.arm_choice import HOLD_ROUNDS, ArmChoice
from paceline.adapters.decisions import DecisionLog
from paceline.adapters.identity import new_request_id
from paceline.adapters.model_gate import Candidates, ModelGate
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import VerifyBudget
from paceline.benchmarks.fusion import median_us
from paceline.benchmarks.report import Report, write_report
from paceline.caches import Source, TokenTree, TreeBatch
from paceline.errors import ConfigError
from paceline.policies.round_cost import RoundCost
from paceline.policies.round_split import RoundTime

FIXED, REQUEST, TOKEN = 0.022, 0.0003, 0.0014
"""Seconds, as on two cores with a small model."""
MODEL_SHARE: Final = 0.1
HOLD: Final = 2 * HOLD_ROUNDS
"""Rounds in which everything comes that choosing arms does."""
TAUGHT_ROUNDS: Final = 200
NUM_LEFT: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBenchSettings:
    """What is chosen from.

    Attributes:
        tokens: drafted for each request at most.
        batches: requests a round.
        rounds: each figure is the median of as many.
        arm_rounds: those of arms are of as many.
        seed: of the drafts.
    """

    tokens: int = 16
    batches: tuple[int, ...] = (1, 32, 256)
    rounds: int = 9
    arm_rounds: int = 1600
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("rounds", 1), ("arm_rounds", HOLD)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is {getattr(self, name)}; give at least {least}")


def random_chains(rng: np.random.Generator, batch: int, most: int) -> TreeBatch:
    """Of all lengths, sure and unsure ones."""
    lengths = rng.integers(0, most + 1, size=batch)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    sure = np.repeat(rng.uniform(0.4, 1.0, size=batch), lengths)
    return TreeBatch(
        offsets,
        rng.integers(0, 49_152, size=offsets[-1]).astype(np.int32),
        (np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths) - 1).astype(np.int32),
        (sure * rng.uniform(0.8, 1.0, size=offsets[-1])).astype(np.float32),
        np.full(offsets[-1], Source.WORKLOAD, np.uint8),
    )


def run_budget_bench(settings: BudgetBenchSettings) -> dict[str, float]:
    """Microseconds a round, and of the heap a multiple."""
    rng = np.random.default_rng(settings.seed)
    figures: dict[str, float] = {}
    for size in settings.batches:
        drafts = random_chains(rng, size, settings.tokens)
        budget = VerifyBudget()
        gate = ModelGate(most_late=512, takes_all=True)
        teach(budget.target, rng, size, 1.0)
        teach(gate.cost, rng, size, MODEL_SHARE)
        budget.begin(size, num_context=500 * size)
        where = f"batch_{size}"

        def cut(drafts: TreeBatch = drafts, budget: VerifyBudget = budget) -> list[list[int]]:
            kept = budget.cut(drafts).tolist()
            return [t[:n] for t, n in zip(drafts.token_lists(), kept, strict=True)]

        def by_heap(drafts: TreeBatch = drafts, size: int = size) -> list[int]:
            return heap_cut(drafts, size)

        def learn(budget: VerifyBudget = budget, size: int = size) -> None:
            budget.learn(size, 2 * size, FIXED + (REQUEST + 2 * TOKEN) * size)

        def ask(
            budget: VerifyBudget = budget,
            gate: ModelGate = gate,
            drafts: TreeBatch = drafts,
            size: int = size,
        ) -> list[int]:
            outlook = budget.outlook(drafts)
            candidates = Candidates(
                [7] * size,
                outlook.expected.tolist(),
                [2] * size,
                [i % 3 for i in range(size)],
                [NUM_LEFT] * size,
            )
            return gate.asked(candidates, base_tokens=outlook.tokens, base_seconds=outlook.seconds)

        counted = counting(drafts)
        figures[f"{where}/decisions_us"] = median_us(counted, settings.rounds)
        figures[f"{where}/cut_us"] = median_us(cut, settings.rounds)
        figures[f"{where}/learn_us"] = median_us(learn, settings.rounds)
        figures[f"{where}/gate_us"] = median_us(ask, settings.rounds)
        figures |= {
            f"{where}/{name}": value for name, value in arms_figures(rng, size, settings).items()
        }
        heap = median_us(by_heap, settings.rounds)
        figures[f"{where}/heap_cut_us"] = heap
        figures[f"{where}/heap_over_cut"] = heap / figures[f"{where}/cut_us"]
    return figures


def counting(drafts: TreeBatch) -> Callable[[], None]:
    """What a round adds to the records of its requests: two tokens for each, as far as drafted."""
    log = DecisionLog()
    ids = [f"chatcmpl-{new_request_id()}-0f" for _ in range(len(drafts))]
    for request_id in ids:
        log.open(request_id)
    num_kept = np.diff(drafts.offsets).tolist()
    committed = {request_id: [1, 2] for request_id in ids}

    def count() -> None:
        log.issue(ids, drafts, num_kept)
        log.settle(committed)

    return count


class Drafting:
    """Stands in for a memory that is asked what it would draft."""

    def __init__(self) -> None:
        self._drafts = [TreeBatch.of([TokenTree.chain([1])] * num) for num in range(9)]

    def propose_batch(self, ids: Sequence[str], *, max_tokens: Mapping[str, int]) -> TreeBatch:
        """Chains of one token, wrong ones."""
        return self._drafts[len(ids)]

    def propose_behind(
        self, ids: Sequence[str], token_ids: Sequence[Sequence[int]], *, max_tokens: Sequence[int]
    ) -> TreeBatch:
        """The same."""
        return self.propose_batch(ids, max_tokens=dict(zip(ids, max_tokens, strict=True)))


def arms_figures(
    rng: np.random.Generator, size: int, settings: BudgetBenchSettings
) -> dict[str, float]:
    """Microseconds a round for choosing arms: mean of a hold's rounds, and the longest of them.

    All requests in one context, each in one of its own, and all without drafts. Medians of holds.
    """
    figures = {}
    for name, num_scopes, is_right in (
        ("one", 1, True),
        ("each", size, True),
        ("without", 1, False),
    ):
        taken = time_arms(rng, size, settings, num_scopes=num_scopes, is_right=is_right)
        holds = taken[: len(taken) // HOLD * HOLD].reshape(-1, HOLD)
        figures[f"arms_{name}_us"] = float(np.median(holds.mean(axis=1)))
        figures[f"arms_{name}_most_us"] = float(np.median(holds.max(axis=1)))
    return figures


def time_arms(
    rng: np.random.Generator,
    size: int,
    settings: BudgetBenchSettings,
    *,
    num_scopes: int,
    is_right: bool,
) -> npt.NDArray[np.float64]:
    """Microseconds of rounds of a batch that stays, after as many to begin with."""
    arms = ArmChoice(max_tokens=settings.tokens)
    speculator, budget = cast("Speculator", Drafting()), VerifyBudget()
    ids = [f"r{i}" for i in range(size)]
    for i, request_id in enumerate(ids):
        arms.open(RequestInfo(request_id=request_id, tenant=f"t{i % num_scopes}"))
    num_tokens = [500] * size
    taken = []
    for number in range(2 * settings.arm_rounds):
        drafted = rng.integers(0, settings.tokens + 1, size=size).tolist()
        accepted = [int(num * is_right * 0.7) for num in drafted]
        began_at = perf_counter_ns()
        caps = arms.begin(ids, num_tokens)
        arms.suppose(speculator, budget)
        handed = [min(num, cap.memory) for num, cap in zip(drafted, caps, strict=True)]
        arms.issued(num_tokens, handed)
        paused_at = perf_counter_ns()
        came = [min(a, b) + 1 for a, b in zip(handed, accepted, strict=True)]
        num_tokens = [a + b for a, b in zip(num_tokens, came, strict=True)]
        news = {i: [0] * num for i, num in zip(ids, came, strict=True)}
        seconds = FIXED + (REQUEST + TOKEN) * size + TOKEN * sum(handed)
        resumed_at = perf_counter_ns()
        arms.seen(ids, num_tokens, partial(dict, news))
        arms.took(RoundTime(size, size + sum(handed), seconds))
        if number >= settings.arm_rounds:
            taken.append((perf_counter_ns() - resumed_at + paused_at - began_at) / 1000)
    return np.array(taken)


def teach(cost: RoundCost, rng: np.random.Generator, size: int, share: float) -> None:
    """Rounds around those that are measured."""
    for _ in range(TAUGHT_ROUNDS):
        requests = int(rng.integers(1, size + 1))
        tokens = requests + int(rng.integers(0, 4 * requests))
        seconds = share * (FIXED + REQUEST * requests + TOKEN * tokens)
        cost.learn(requests, tokens, seconds, num_context=500 * requests)


def heap_cut(drafts: TreeBatch, num_requests: int) -> list[int]:
    """How many tokens of each draft to verify: the likeliest next one as long as it pays."""
    probs = drafts.prob.tolist()
    bounds = list(pairwise(drafts.offsets.tolist()))
    kept = [0] * len(bounds)
    heap = [(-probs[start], i, start) for i, (start, stop) in enumerate(bounds) if start < stop]
    heapq.heapify(heap)
    tokens = float(num_requests)
    seconds = FIXED + (REQUEST + TOKEN) * num_requests
    while heap:
        chance, i, at = heap[0]
        if -chance * seconds <= tokens * TOKEN:
            break
        tokens, seconds = tokens - chance, seconds + TOKEN
        kept[i] += 1
        if at + 1 < bounds[i][1]:
            heapq.heapreplace(heap, (chance * probs[at + 1], i, at + 1))
        else:
            heapq.heappop(heap)
    return kept


@click.command("budget")
@click.option("--tokens", default=16, show_default=True, help="Drafted for a request at most.")
@click.option("--rounds", default=9, show_default=True, help="Each figure is their median.")
@click.option("--arm-rounds", default=1600, show_default=True, help="Those of arms are of as many.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def budget(tokens: int, rounds: int, arm_rounds: int, json_file: Path | None) -> None:
    """What choosing what is worth its time takes in a round; no model runs."""
    settings = BudgetBenchSettings(tokens=tokens, rounds=rounds, arm_rounds=arm_rounds)
    figures = run_budget_bench(settings)
    write_report(Report(bench="budget", settings=asdict(settings), figures=figures), json_file)
