"""`paceline bench learn-latency`: what those wait who are served while a drafter learns.

Steady traffic in pairs of blocks that ask the same prompts, one with the learner and one with its
processes stopped, so that what is drafted and what else the machine does is in both. Memory knows
the replies the second time: which block comes first changes from pair to pair. Where the learner's
time goes is of the blocks in which it ran, by its own metrics.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from paceline.benchmarks.learn.options import run_options, two_cores
from paceline.benchmarks.learn.prompts import around, read_prompts
from paceline.benchmarks.learn.records import Asked, Workload
from paceline.benchmarks.learn.speeds import INTERVAL, NUM_RESAMPLES
from paceline.benchmarks.learn.stack import (
    MODEL,
    REQUEST_SECONDS,
    Stack,
    is_waiting,
    read_text,
    running_stack,
    value_of,
)
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError
from paceline.online.idle_time import WAITING, Spell, idle_to_use

Times = npt.NDArray[np.float64]
HELD_OUT: Final = 8
LOOK_SECONDS: Final = 0.25
FEED_PROMPTS: Final = 32
"""Prompts between two looks whether enough has been said; some six to a session."""
SECONDS: Final = re.compile(r"^paceline_learner_seconds_total\{(.*)\} (\S+)$", re.MULTILINE)
LONGEST: Final = re.compile(r"^paceline_learner_longest_seconds\{(.*)\} (\S+)$", re.MULTILINE)
PERCENTS: Final = (50, 90, 99)
LEAST_PAIRS: Final = 4
"""Two of each order: fewer leave nothing to draw from."""
LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
ALWAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "cycle": {"min_new_tokens": 1, "idle_price": 0.0, "passages": 32},
    "gate": {"min_sessions": 4, "num_resamples": 2000},
    "replay": {"quiet_seconds": 2, "held_out_share": 0.3},
    "judging": {"canary": False},
}
"""A learner that always has something to do."""


class Block:
    """One stretch of traffic.

    Attributes:
        is_learning: whether the learner ran.
        gaps: seconds between pieces of replies.
        firsts: seconds from requests to their first pieces.
        spells: seconds of the block by what the learner did in them.
    """

    def __init__(self, *, is_learning: bool) -> None:
        self.is_learning = is_learning
        self.gaps: list[float] = []
        self.firsts: list[float] = []
        self.spells: dict[Spell, float] = {}


RunBlock = Callable[[Block, Sequence[Asked]], None]


class Pair(NamedTuple):
    """Two blocks of the same prompts.

    Attributes:
        learning: beside the learner.
        stopped: without it.
        learner_first: whether that with the learner came first.
    """

    learning: Block
    stopped: Block
    learner_first: bool


class Streamed(NamedTuple):
    """When the pieces of one reply came.

    Attributes:
        first: seconds from the request to the first piece.
        gaps: seconds between the pieces.
    """

    first: float
    gaps: list[float]


def streamed(stack: Stack, asked: Asked, workload: str, output_tokens: int) -> Streamed:
    """One streamed reply.

    Raises:
        ConfigError: it has no piece.
    """
    body = {
        "model": MODEL,
        "prompt": asked.token_ids,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
    }
    request = urllib.request.Request(  # noqa: S310  our own proxy
        f"{stack.url}/completions",
        json.dumps(body).encode(),
        stack.headers(asked.session, workload),
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310
        times = [time.perf_counter() for line in answer if line.startswith(b"data: {")]
    if not times:
        raise ConfigError(f"a reply of {output_tokens} tokens has no piece; ask for more")
    return Streamed(times[0] - began, [now - before for before, now in pairwise(times)])


@contextmanager
def only_if(is_learning: bool, pid: int) -> Iterator[None]:
    """The learner's processes stand still in the body unless it is to run."""
    if is_learning:
        yield
        return
    os.killpg(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(pid, signal.SIGCONT)


def spells_of(metrics: str) -> dict[Spell, float]:
    """Seconds by load, gate and phase, of the learner's metrics."""
    found: dict[Spell, float] = {}
    for labels, value in SECONDS.findall(metrics):
        its = dict(LABEL.findall(labels))
        found[Spell(its["load"], its["gate"] == "open", its["phase"])] = float(value)
    return found


def run_block(
    stack: Stack,
    block: Block,
    prompts: Sequence[Asked],
    pause_seconds: float,
    in_flight: int,
    ask: Callable[[Asked], Streamed],
) -> None:
    """Traffic: requests at once, a pause, the next ones. Nobody asks the learner meanwhile."""
    with (
        only_if(block.is_learning, stack.learner_pid),
        ThreadPoolExecutor(in_flight) as clients,
    ):
        before = spells_of(read_text(stack.learner_metrics)) if block.is_learning else {}
        for start in range(0, len(prompts), in_flight):
            for reply in clients.map(ask, prompts[start : start + in_flight]):
                block.firsts.append(reply.first)
                block.gaps += reply.gaps
            time.sleep(pause_seconds)
        if block.is_learning:
            now = spells_of(read_text(stack.learner_metrics))
            block.spells = {it: its - before.get(it, 0.0) for it, its in now.items()}


def run_pair(prompts: Sequence[Asked], *, learner_first: bool, run: RunBlock) -> Pair:
    """The same prompts twice, as sessions of their own each time."""
    blocks = {way: Block(is_learning=way) for way in (True, False)}
    for turn, way in enumerate((learner_first, not learner_first)):
        asked = [Asked(f"{it.session}/{turn}", it.token_ids) for it in prompts]
        run(blocks[way], asked)
    return Pair(blocks[True], blocks[False], learner_first)


def figures(pairs: Sequence[Pair], learner: Mapping[str, float]) -> dict[str, float]:
    """Flat names to numbers.

    Args:
        pairs: all of them.
        learner: of its metrics, at the end.
    """
    found: dict[str, float] = {}
    for what, name in (("gap", "gaps"), ("first", "firsts")):
        beside = [np.array(getattr(pair.learning, name)) for pair in pairs]
        alone = [np.array(getattr(pair.stopped, name)) for pair in pairs]
        order = np.array([pair.learner_first for pair in pairs])
        for way, times in (("learning", beside), ("stopped", alone)):
            found[f"{way}.{what}_count"] = sum(map(len, times))
            for percent, seconds in zip(PERCENTS, _percentiles(times), strict=True):
                found[f"{way}.{what}_p{percent}_ms"] = 1e3 * float(seconds)
        for percent, (ratio, low, high) in zip(PERCENTS, ratios(beside, alone, order), strict=True):
            found[f"{what}_p{percent}_ratio"] = ratio
            found[f"{what}_p{percent}_ratio.low"] = low
            found[f"{what}_p{percent}_ratio.high"] = high
    return found | time_figures([pair.learning for pair in pairs]) | dict(learner)


def ratios(
    beside: Sequence[Times], alone: Sequence[Times], order: npt.NDArray[np.bool_]
) -> list[tuple[float, float, float]]:
    """Of each of `PERCENTS`: the ratio of the percentiles, and its 95 % interval over pairs.

    A bootstrap: pairs are drawn again, as many of each order as there are, so that each way comes
    first as often as before; all their times are taken together.

    Args:
        beside: seconds in each pair's block with the learner.
        alone: and in the one without.
        order: of each pair, whether the learner's came first; bool, (pairs,).
    """
    rng = np.random.default_rng(0)
    strata = [places for way in (True, False) if len(places := np.flatnonzero(order == way))]
    drawn = np.empty((NUM_RESAMPLES, len(PERCENTS)))
    for row in drawn:
        picked = np.concatenate([rng.choice(places, len(places)) for places in strata])
        row[:] = _ratio([beside[i] for i in picked], [alone[i] for i in picked])
    low, high = np.percentile(drawn, INTERVAL, axis=0)
    return [*zip(_ratio(beside, alone).tolist(), low.tolist(), high.tolist(), strict=True)]


def _ratio(beside: Sequence[Times], alone: Sequence[Times]) -> Times:
    return _percentiles(beside) / _percentiles(alone)


def _percentiles(times: Sequence[Times]) -> Times:
    return np.percentile(np.concatenate(times), PERCENTS).astype(np.float64)


def time_figures(blocks: Sequence[Block]) -> dict[str, float]:
    """Where the learner's time went in the blocks in which it ran."""
    seconds: dict[Spell, float] = {}
    for block in blocks:
        for spell, its in block.spells.items():
            seconds[spell] = seconds.get(spell, 0.0) + its
    to_use, used = idle_to_use(seconds)
    found = {"idle.seconds": to_use, "idle.used_seconds": used}
    found["idle.used_share"] = used / max(to_use, 1e-9)
    at_work = sum(its for spell, its in seconds.items() if spell.phase != WAITING)
    found["at_work_share"] = at_work / max(sum(seconds.values()), 1e-9)
    for spell, its in sorted(seconds.items()):
        gate = "open" if spell.is_open else "closed"
        found[f"time.{spell.level}.{gate}.{spell.phase}"] = its
    return found


def gate_figures(metrics: str) -> dict[str, float]:
    """What the learner's gate saw, and how long the learner went on behind it, of its metrics."""
    found = {"gate.num_pauses": value_of(metrics, "paceline_learner_gate_num_pauses")}
    name = "paceline_learner_reaction"
    num = value_of(metrics, f"{name}_count_total")
    found["reaction.count"] = num
    found["reaction.mean_ms"] = 1e3 * value_of(metrics, f"{name}_seconds_total") / max(num, 1.0)
    found["reaction.longest_ms"] = 1e3 * value_of(metrics, f"{name}_longest_seconds")
    found["longest_part_ms"] = 1e3 * value_of(metrics, "paceline_learner_longest_part_seconds{")
    return found


def part_figures(metrics: str, time: str) -> dict[str, float]:
    """Longest part of each kind of work between two looks at the gate, in ms.

    Args:
        metrics: the learner's.
        time: ``clock``, or ``processor`` for the learner's own processor time.
    """
    found: dict[str, float] = {}
    for labels, value in LONGEST.findall(metrics):
        its = dict(LABEL.findall(labels))
        if its["time"] == time:
            found[f"longest.{its['kind']}.{time}_ms"] = 1e3 * float(value)
    return found


@click.command("learn-latency")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("--drafter", required=True, type=click.Path(path_type=Path), help="Its folder.")
@click.option("--target", default="smollm2", show_default=True)
@click.option("--workload", default="tau-bench:tau-airline", show_default=True)
@click.option("--pairs", "num_pairs", default=48, show_default=True, help="Of blocks.")
@click.option("--block-requests", default=2, show_default=True, help="In each block of a pair.")
@click.option("--pause-seconds", default=1.0, show_default=True, help="Between two requests.")
@click.option("--in-flight", default=1, show_default=True, help="Requests between two pauses.")
@click.option("--feed-tokens", default=6_000, show_default=True, help="Said before it begins.")
@click.option("--context-tokens", default=192, show_default=True)
@click.option("--output-tokens", default=64, show_default=True)
@run_options
def learn_latency(
    traces: Path,
    drafter: Path,
    target: str,
    workload: str,
    num_pairs: int,
    block_requests: int,
    pause_seconds: float,
    in_flight: int,
    feed_tokens: int,
    context_tokens: int,
    output_tokens: int,
    learner: dict[str, Any],
    work: Path | None,
    json_file: Path | None,
) -> None:
    """Time between pieces of streams while a drafter learns, beside the same without.

    One request after the other through the proxy, or some at once, and the learner in between, or
    stopped; the same requests both ways. The engine has one core, the learner another. Needs two
    cores that nobody else uses.
    """
    if num_pairs < LEAST_PAIRS or num_pairs % 2:  # each way first as often as the other
        raise ConfigError(f"--pairs is {num_pairs}; give an even number of {LEAST_PAIRS} or more")
    if block_requests < 1 or in_flight < 1:
        raise ConfigError(
            f"--block-requests is {block_requests} and --in-flight {in_flight}; give 1 or more"
        )
    cores = two_cores()
    kind = Workload.parse(workload)
    renderer = Renderer(load_encoder(None if target == "smollm2" else target))
    found = read_prompts(traces.absolute(), kind, renderer, context_tokens, HELD_OUT)
    prompts = around(found.asked)
    parts: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="paceline-latency-") as scratch:
        folder = work.absolute() if work is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        options = {name: {**ALWAYS.get(name, {}), **its} for name, its in learner.items()}
        with running_stack(
            target, drafter.absolute(), folder, {**ALWAYS, **options}, cores
        ) as stack:
            _feed(stack, prompts, kind.name, feed_tokens, output_tokens)

            def run(block: Block, asked: Sequence[Asked]) -> None:
                run_block(
                    stack,
                    block,
                    asked,
                    pause_seconds,
                    in_flight,
                    lambda one: streamed(stack, one, kind.name, output_tokens),
                )
                if not parts:  # from the second on, its clock runs while it is stopped
                    parts.update(part_figures(read_text(stack.learner_metrics), "clock"))

            pairs = [
                run_pair([*islice(prompts, block_requests)], learner_first=not number % 2, run=run)
                for number in range(num_pairs)
            ]
            metrics = read_text(stack.learner_metrics)
            told = gate_figures(metrics) | parts | part_figures(metrics, "processor")
    settings = {
        "drafter": drafter.name,
        "workload": workload,
        "pairs": num_pairs,
        "block_requests": block_requests,
        "pause_seconds": pause_seconds,
        "in_flight": in_flight,
        "output_tokens": output_tokens,
        "learner": learner,
    }
    write_report(Report("learn-latency", settings, figures(pairs, told)), json_file)


def _feed(
    stack: Stack, prompts: Iterator[Asked], workload: str, num_tokens: int, output_tokens: int
) -> None:
    """Traffic to learn from; returns when the learner has begun."""
    said = 0
    while said < num_tokens:
        part = list(islice(prompts, FEED_PROMPTS))
        said += stack.ask(part, workload=workload, output_tokens=output_tokens, in_flight=8)
    until = time.monotonic() + REQUEST_SECONDS
    while is_waiting(read_text(stack.learner_metrics)):
        if time.monotonic() > until:
            raise ConfigError(f"the learner has not begun after {num_tokens} tokens; give more")
        time.sleep(LOOK_SECONDS)
