"""`paceline bench fusion`: what fusing memory's drafts with a model drafter's costs.

Random drafts as the embedded engine's drafter makes them: memory's tree, and behind the context and
each of its nodes the drafter's likeliest tokens, most of which are others. Beside it, in the same
run, the plain Python that the native fusion is tested against. No peer that can be
installed fuses the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from paceline.benchmarks.report import Report, write_report
from paceline.caches import Fusion, Source
from paceline.caches.reference.fusion import FusedTree, Mixer, Retrieved, View
from paceline.caches.tree import ROOT
from paceline.errors import ConfigError

VOCABULARY: Final = 49_152
MAX_BRANCHES: Final = 4
MIN_PROBABILITY: Final = 0.1
GOES_ON: Final = 0.8
"""Part of the nodes that continue the one before: a few long branches."""
AGREED: Final = 0.3
"""Part of the retrieved nodes that the drafter lists as well."""
LEAST_SECONDS: Final = 0.2
PLAIN_CALLS: Final = 5
LEARN_CALLS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionBenchSettings:
    """What is fused.

    Attributes:
        nodes: retrieved for each request; also the budget.
        top: tokens that the drafter lists at each place.
        batches: requests a call.
        rounds: each figure is the median of as many.
        seed: of the drafts.
    """

    nodes: int = 64
    top: int = 8
    batches: tuple[int, ...] = (1, 16, 256)
    rounds: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("nodes", "top", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; give at least 1")


def random_draft(rng: np.random.Generator, settings: FusionBenchSettings) -> tuple[Retrieved, View]:
    """Memory's tree and what the drafter read behind the context and each node of it."""
    nodes: list[tuple[int, int, float, int]] = []
    num_children = {ROOT: 0}
    while len(nodes) < settings.nodes:
        goes_on = rng.random() < GOES_ON
        parent = len(nodes) - 1 if goes_on else int(rng.integers(-1, len(nodes)))
        if num_children[parent] == MAX_BRANCHES:
            continue
        prob = float(rng.uniform(0.5, 1.0)) / 2 ** num_children[parent]
        num_children[parent] += 1
        num_children[len(nodes)] = 0
        nodes.append((int(rng.integers(VOCABULARY)), parent, prob, int(Source.WORKLOAD)))
    children: dict[int, list[int]] = {}
    for token, parent, _, _ in nodes:
        children.setdefault(parent, []).append(token)
    places = [(ROOT, 0, _listed(rng, children.get(ROOT, []), settings.top))]
    for i, (token, parent, _, _) in enumerate(nodes):
        places.append((parent + 1, token, _listed(rng, children.get(i, []), settings.top)))
    return Retrieved(nodes), View(places)


def _listed(
    rng: np.random.Generator, retrieved: Sequence[int], num_top: int
) -> list[tuple[int, float]]:
    agreed = [token for token in retrieved if rng.random() < AGREED]
    tokens = list(dict.fromkeys([*agreed, *rng.integers(VOCABULARY, size=2 * num_top).tolist()]))
    shares = np.sort(rng.dirichlet(np.full(num_top + 1, 0.3)))[::-1]
    return [(t, float(p)) for t, p in zip(tokens[:num_top], shares, strict=False)]


def as_arrays(drafts: Sequence[tuple[Retrieved, View]]) -> list[Any]:
    """The arguments of `Fusion.fuse`."""
    nodes = [node for tree, _ in drafts for node in tree.nodes]
    places = [place for _, view in drafts for place in view.places]
    tops = [entry for _, _, top in places for entry in top]
    return [
        np.cumsum([0, *(len(tree.nodes) for tree, _ in drafts)], dtype=np.int64),
        *(np.array([n[i] for n in nodes], t) for i, t in enumerate(("i4", "i4", "f4", "u1"))),
        np.cumsum([0, *(len(view.places) for _, view in drafts)], dtype=np.int64),
        np.array([place[0] for place in places], np.int32),
        np.array([place[1] for place in places], np.int32),
        np.array([token for token, _ in tops], np.int32),
        np.array([prob for _, prob in tops], np.float32),
    ]


def run_fusion_bench(settings: FusionBenchSettings) -> dict[str, float]:
    """Microseconds a request, to fuse and to learn from what was committed."""
    rng = np.random.default_rng(settings.seed)
    figures: dict[str, float] = {}
    for batch in settings.batches:
        drafts = [random_draft(rng, settings) for _ in range(batch)]
        for shape, max_branches in (("chain", 1), ("tree", MAX_BRANCHES)):
            fused, learned = _measure(drafts, settings, max_branches)
            figures[f"{shape}/batch_{batch}/fuse_us"] = fused
            figures[f"{shape}/batch_{batch}/learn_us"] = learned
    draft = random_draft(rng, settings)
    for shape, max_branches in (("chain", 1), ("tree", MAX_BRANCHES)):
        figures[f"{shape}/plain_us"] = _measure_plain(draft, settings, max_branches)
    return figures


def _measure(
    drafts: Sequence[tuple[Retrieved, View]], settings: FusionBenchSettings, max_branches: int
) -> tuple[float, float]:
    fusion = Fusion(min_probability=MIN_PROBABILITY)
    arrays = as_arrays(drafts)
    keys = np.zeros(len(drafts), np.int64)
    budgets = np.full(len(drafts), settings.nodes, np.int32)
    first = np.array([tree.nodes[0][0] for tree, _ in drafts], np.int32)
    ends = np.arange(len(drafts) + 1, dtype=np.int64)

    def fuse() -> Any:
        answer = fusion.fuse(*arrays, keys=keys, max_tokens=budgets, max_branches=max_branches)
        return answer[5]

    fused = median_us(fuse, settings.rounds)
    learned: list[float] = []
    for _ in range(settings.rounds * LEARN_CALLS):
        batch = fuse()
        began = time.perf_counter()
        fusion.learn(batch, first, ends)
        learned.append(1e6 * (time.perf_counter() - began))
    return fused / len(drafts), float(np.median(learned)) / len(drafts)


def median_us(call: Callable[[], object], rounds: int) -> float:
    """Of a call, in rounds long enough for the clock."""
    call()
    began = time.perf_counter()
    call()
    num_calls = max(1, int(LEAST_SECONDS / rounds / max(time.perf_counter() - began, 1e-9)))
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(num_calls):
            call()
        taken.append(1e6 * (time.perf_counter() - began) / num_calls)
    return float(np.median(taken))


def _measure_plain(
    draft: tuple[Retrieved, View], settings: FusionBenchSettings, max_branches: int
) -> float:
    taken = []
    for _ in range(PLAIN_CALLS):
        began = time.perf_counter()
        tree = FusedTree(*draft, Mixer(), MIN_PROBABILITY)
        if max_branches == 1:
            tree.chain(settings.nodes)
        else:
            tree.tree(settings.nodes, max_branches)
        taken.append(1e6 * (time.perf_counter() - began))
    return float(np.median(taken))


@click.command("fusion")
@click.option("--nodes", default=64, show_default=True, help="Retrieved for each request.")
@click.option("--top", default=8, show_default=True, help="Tokens the drafter lists at a place.")
@click.option("--rounds", default=9, show_default=True, help="Each figure is their median.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report there")
def fusion(nodes: int, top: int, rounds: int, json_file: Path | None) -> None:
    """What fusing memory's drafts with a model drafter's costs; no model runs."""
    settings = FusionBenchSettings(nodes=nodes, top=top, rounds=rounds)
    figures = run_fusion_bench(settings)
    write_report(Report(bench="fusion", settings=asdict(settings), figures=figures), json_file)
