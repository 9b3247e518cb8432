"""`paceline bench learn-latency`: what those wait who are served while a drafter learns.

Steady traffic in blocks, by turns with the learner and with its processes stopped; beside each
other in time, so that what else the machine does is in both. Where the learner's time goes is of
the blocks in which it ran, by its own metrics.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from threading import Event
from typing import Any, Final

import click
import numpy as np

from paceline.benchmarks.learn.options import run_options, two_cores
from paceline.benchmarks.learn.prompts import around, read_prompts
from paceline.benchmarks.learn.records import Asked, Workload
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
from paceline.online.idle_time import Spell, idle_to_use

ORDER: Final = (True, False, False, True)
"""With the learner or without, again and again: what drifts is shared evenly."""
HELD_OUT: Final = 8
LOOK_SECONDS: Final = 0.25
FEED_PROMPTS: Final = 32
"""Prompts between two looks whether enough has been said; some six to a session."""
SECONDS: Final = re.compile(r"^paceline_learner_seconds_total\{(.*)\} (\S+)$", re.MULTILINE)
LONGEST: Final = re.compile(r"^paceline_learner_longest_seconds\{(.*)\} (\S+)$", re.MULTILINE)
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
        num_looks: at what the learner did.
        num_at_work: of these, at which it was at work.
        spells: seconds of the block by what the learner did in them.
    """

    def __init__(self, *, is_learning: bool) -> None:
        self.is_learning = is_learning
        self.gaps: list[float] = []
        self.num_looks = 0
        self.num_at_work = 0
        self.spells: dict[Spell, float] = {}


def streamed(stack: Stack, asked: Asked, workload: str, output_tokens: int) -> list[float]:
    """Seconds between the pieces of one streamed reply."""
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
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310
        times = [time.perf_counter() for line in answer if line.startswith(b"data: {")]
    return [now - before for before, now in pairwise(times)]


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


def watch(stack: Stack, block: Block, ended: Event) -> None:
    """Look at what the learner does, until the block ends."""
    while not ended.wait(LOOK_SECONDS):
        block.num_looks += 1
        block.num_at_work += not is_waiting(read_text(stack.learner_metrics))


def run_block(
    stack: Stack,
    block: Block,
    prompts: Iterator[Asked],
    seconds: float,
    pause_seconds: float,
    in_flight: int,
    ask: Callable[[Asked], list[float]],
) -> None:
    """Traffic for so long: requests at once, a pause, the next ones."""
    until, ended = time.monotonic() + seconds, Event()
    with (
        only_if(block.is_learning, stack.learner_pid),
        ThreadPoolExecutor(1) as pool,
        ThreadPoolExecutor(in_flight) as clients,
    ):
        before = spells_of(read_text(stack.learner_metrics)) if block.is_learning else {}
        watching = pool.submit(watch, stack, block, ended) if block.is_learning else None
        try:
            while time.monotonic() < until:
                for gaps in clients.map(ask, islice(prompts, in_flight)):
                    block.gaps += gaps
                time.sleep(pause_seconds)
        finally:
            ended.set()
        if watching is not None:
            watching.result()
            now = spells_of(read_text(stack.learner_metrics))
            block.spells = {it: its - before.get(it, 0.0) for it, its in now.items()}


def figures(blocks: list[Block], gate: dict[str, float]) -> dict[str, float]:
    """Flat names to numbers.

    Args:
        blocks: all of them.
        gate: of the learner's metrics, at the end.
    """
    found: dict[str, float] = {}
    for name, is_learning in (("learning", True), ("stopped", False)):
        gaps = np.array([g for b in blocks if b.is_learning is is_learning for g in b.gaps])
        found[f"{name}.pieces"] = len(gaps)
        for percent in (50, 90, 99):
            found[f"{name}.gap_p{percent}_ms"] = 1e3 * float(np.percentile(gaps, percent))
    for percent in (50, 90, 99):
        name = f"gap_p{percent}_ms"
        found[f"gap_p{percent}_ratio"] = found[f"learning.{name}"] / found[f"stopped.{name}"]
    looks = sum(block.num_looks for block in blocks)
    found["at_work_share"] = sum(block.num_at_work for block in blocks) / max(looks, 1)
    return found | time_figures(blocks) | gate


def time_figures(blocks: list[Block]) -> dict[str, float]:
    """Where the learner's time went in the blocks in which it ran."""
    seconds: dict[Spell, float] = {}
    for block in blocks:
        for spell, its in block.spells.items():
            seconds[spell] = seconds.get(spell, 0.0) + its
    to_use, used = idle_to_use(seconds)
    found = {"idle.seconds": to_use, "idle.used_seconds": used}
    found["idle.used_share"] = used / max(to_use, 1e-9)
    for spell, its in sorted(seconds.items()):
        gate = "open" if spell.is_open else "closed"
        found[f"time.{spell.level}.{gate}.{spell.phase}"] = its
    return found


def gate_figures(metrics: str) -> dict[str, float]:
    """What the learner's gate saw, of its metrics."""
    found = {"gate.num_pauses": value_of(metrics, "paceline_learner_gate_num_pauses")}
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
@click.option("--blocks", default=8, show_default=True, help="Half of them with the learner.")
@click.option("--block-seconds", default=30.0, show_default=True)
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
    blocks: int,
    block_seconds: float,
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
    stopped; the engine has one core, the learner another. Needs two cores that nobody else uses.
    """
    if blocks < len(ORDER) or blocks % len(ORDER):
        raise ConfigError(f"--blocks is {blocks}; give a multiple of {len(ORDER)}")
    cores = two_cores()
    kind = Workload.parse(workload)
    renderer = Renderer(load_encoder(None if target == "smollm2" else target))
    found = read_prompts(traces.absolute(), kind, renderer, context_tokens, HELD_OUT)
    prompts = around(found.asked)
    done: list[Block] = []
    with tempfile.TemporaryDirectory(prefix="paceline-latency-") as scratch:
        folder = work.absolute() if work is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        options = {name: {**ALWAYS.get(name, {}), **its} for name, its in learner.items()}
        with running_stack(
            target, drafter.absolute(), folder, {**ALWAYS, **options}, cores
        ) as stack:
            _feed(stack, prompts, kind.name, feed_tokens, output_tokens)
            for number in range(blocks):
                block = Block(is_learning=ORDER[number % len(ORDER)])
                run_block(
                    stack,
                    block,
                    prompts,
                    block_seconds,
                    pause_seconds,
                    in_flight,
                    lambda asked: streamed(stack, asked, kind.name, output_tokens),
                )
                done.append(block)
                if not number:  # from the second on, its clock runs while it is stopped
                    parts = part_figures(read_text(stack.learner_metrics), "clock")
            metrics = read_text(stack.learner_metrics)
            gate = gate_figures(metrics) | parts | part_figures(metrics, "processor")
    settings = {
        "drafter": drafter.name,
        "workload": workload,
        "blocks": blocks,
        "block_seconds": block_seconds,
        "pause_seconds": pause_seconds,
        "in_flight": in_flight,
        "output_tokens": output_tokens,
        "learner": learner,
    }
    write_report(Report("learn-latency", settings, figures(done, gate)), json_file)


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
