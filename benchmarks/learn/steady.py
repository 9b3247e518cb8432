"""`paceline bench learn-latency`: what those wait who are served while a drafter learns.

Steady traffic in blocks, by turns with the learner and with its processes stopped; beside each
other in time, so that what else the machine does is in both.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
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
    read_text,
    running_stack,
    value_of,
)
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError

ORDER: Final = (True, False, False, True)
"""With the learner or without, again and again: what drifts is shared evenly."""
HELD_OUT: Final = 8
LOOK_SECONDS: Final = 0.25
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
    """

    def __init__(self, *, is_learning: bool) -> None:
        self.is_learning = is_learning
        self.gaps: list[float] = []
        self.num_looks = 0
        self.num_at_work = 0


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


def watch(stack: Stack, block: Block, ended: Event) -> None:
    """Look at what the learner does, until the block ends."""
    while not ended.wait(LOOK_SECONDS):
        block.num_looks += 1
        block.num_at_work += not value_of(read_text(stack.learner_metrics), 'phase="waiting"')


def run_block(
    stack: Stack,
    block: Block,
    prompts: Iterator[Asked],
    seconds: float,
    pause_seconds: float,
    ask: Any,
) -> None:
    """Traffic for so long: a request, a pause, the next."""
    until, ended = time.monotonic() + seconds, Event()
    with only_if(block.is_learning, stack.learner_pid), ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, stack, block, ended) if block.is_learning else None
        try:
            while time.monotonic() < until:
                block.gaps += ask(next(prompts))
                time.sleep(pause_seconds)
        finally:
            ended.set()
        if watching is not None:
            watching.result()


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
    return found | gate


def gate_figures(metrics: str) -> dict[str, float]:
    """What the learner's gate saw, of its metrics."""
    names = ("idle_seconds", "used_seconds", "busy_seconds", "num_pauses")
    found = {f"gate.{n}": value_of(metrics, f"paceline_learner_gate_{n}") for n in names}
    found["gate.used_share"] = found["gate.used_seconds"] / max(found["gate.idle_seconds"], 1e-9)
    found["longest_part_ms"] = 1e3 * value_of(metrics, "paceline_learner_longest_part_seconds{")
    return found


@click.command("learn-latency")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("--drafter", required=True, type=click.Path(path_type=Path), help="Its folder.")
@click.option("--target", default="smollm2", show_default=True)
@click.option("--workload", default="tau-bench:tau-airline", show_default=True)
@click.option("--blocks", default=8, show_default=True, help="Half of them with the learner.")
@click.option("--block-seconds", default=30.0, show_default=True)
@click.option("--pause-seconds", default=1.0, show_default=True, help="Between two requests.")
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
    feed_tokens: int,
    context_tokens: int,
    output_tokens: int,
    learner: dict[str, Any],
    work: Path | None,
    json_file: Path | None,
) -> None:
    """Time between pieces of streams while a drafter learns, beside the same without.

    One request after the other through the proxy, and the learner in between, or stopped; the
    engine has one core, the learner another. Needs two cores that nobody else uses.
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
                    lambda asked: streamed(stack, asked, kind.name, output_tokens),
                )
                done.append(block)
            gate = gate_figures(read_text(stack.learner_metrics))
    settings = {
        "drafter": drafter.name,
        "workload": workload,
        "blocks": blocks,
        "block_seconds": block_seconds,
        "pause_seconds": pause_seconds,
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
        part = [next(prompts) for _ in range(8)]
        said += stack.ask(part, workload=workload, output_tokens=output_tokens, in_flight=8)
    until = time.monotonic() + REQUEST_SECONDS
    while value_of(read_text(stack.learner_metrics), 'phase="waiting"'):
        if time.monotonic() > until:
            raise ConfigError(f"the learner has not begun after {num_tokens} tokens; give more")
        time.sleep(LOOK_SECONDS)
