"""`paceline bench soak`: a day's requests in minutes, and what grows.

Everything is small so that requests are quick, and every bound is small so that it is reached
early: what still grows in the second half is not bounded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import redis
import yaml

from paceline.benchmarks.learn.options import run_options, two_cores
from paceline.benchmarks.learn.records import Asked
from paceline.benchmarks.learn.stack import Stack, read_text, running_stack, value_of
from paceline.benchmarks.report import Report, write_report
from paceline.errors import ConfigError
from paceline.policies.tenants import new_key

SAMPLE_SECONDS: Final = 1.0
WORKLOADS: Final = 4
KIND_TOKENS: Final = 24
OWN_TOKENS: Final = 8
NUM_KINDS: Final = 64
SESSION_TURNS: Final = 4
MIB: Final = 1 << 20
SMALL: Final[Mapping[str, Any]] = {
    "replay": {
        "max_bytes": 2 * MIB,
        "held_out_bytes": MIB // 2,
        "session_bytes": MIB,
        "session_tokens": 1024,
        "quiet_seconds": 2,
        "held_out_share": 0.2,
    },
    "teacher": {"cache_mib": 4},
    "cycle": {"min_new_tokens": 4000, "passages": 8, "epochs": 1, "idle_price": 0.0},
    "gate": {"min_sessions": 4, "num_resamples": 500},
    "judging": {"canary": False, "max_passages": 16},
    "idle": {"open_after_seconds": 0.2, "look_seconds": 0.1},
    "keep_versions": 2,
}
CAPACITY: Final = 50_000
STORED: Final = 100_000
"""Tokens of each log in an engine, and of the tenant in Redis."""

Sample = dict[str, float]


def prompts(vocabulary: int) -> Iterator[Asked]:
    """Kinds that come again and again, each with a beginning of its own, in ever new sessions."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(2, vocabulary, (NUM_KINDS, KIND_TOKENS)).tolist()
    number = 0
    while True:
        kind = kinds[int(generator.integers(NUM_KINDS))]
        own = generator.integers(2, vocabulary, OWN_TOKENS).tolist()
        yield Asked(f"s{number // SESSION_TURNS}", (*kind, *own))
        number += 1


class Sampler:
    """Sizes of everything, every so often, with how many requests had been answered.

    Args:
        measure: the sizes now.
    """

    def __init__(self, measure: Callable[[], Sample]) -> None:
        self.num_answered = 0
        self.samples: list[tuple[int, Sample]] = []
        self._measure = measure
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure during the body, and at its end."""
        thread = threading.Thread(target=self._run, name="paceline-sampler", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
        self.samples.append((self.num_answered, self._measure()))

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.samples.append((self.num_answered, self._measure()))


def rss_mib(pid: int) -> float:
    """Memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def disk_mib(folder: Path) -> float:
    """Size of all files below a folder; what goes meanwhile counts as nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total / MIB


def measure(stack: Stack, store: redis.Redis, folder: Path) -> Sample:
    """Sizes now, in MiB."""
    return {
        "engine_rss": rss_mib(stack.engine_pid),
        "learner_rss": rss_mib(stack.learner_pid),
        "proxy_rss": rss_mib(os.getpid()),
        "redis_used": float(store.info("memory")["used_memory"]) / MIB,
        "learner_disk": disk_mib(folder / "learner"),
        "drafters_disk": disk_mib(folder / "drafters"),
    }


def figures(samples: Sequence[tuple[int, Sample]], num_requests: int) -> dict[str, float]:
    """Flat names to numbers: the most in each quarter, and the last quarter's less the second's."""
    found: dict[str, float] = {}
    for name in samples[0][1]:
        quarters = []
        for quarter in range(4):
            low, high = quarter * num_requests / 4, (quarter + 1) * num_requests / 4
            held = [sample[name] for done, sample in samples if low <= done <= high]
            quarters.append(max(held, default=float("nan")))
        found |= {f"{name}.q{number}_mib": most for number, most in enumerate(quarters, 1)}
        found[f"{name}.growth_mib"] = quarters[3] - quarters[1]
    return found


def cut(source: str, layers: str, out: Path) -> Path:
    """A model of some layers of another, by `paceline drafter init`."""
    command = [sys.executable, "-m", "paceline.middleware.cli", "drafter", "init", source]
    done = subprocess.run(
        [*command, str(out), "--layers", layers], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"{source} cannot be cut to layers {layers}: {done.stderr[-500:]}")
    return out


def vocabulary_of(model: Path) -> int:
    """How many tokens there are to draw from."""
    told: int = json.loads((model / "config.json").read_text())["vocab_size"]
    return told


def write_policy(folder: Path) -> tuple[Path, str]:
    """A policy file of one tenant with little memory, and its key."""
    key, hashed = new_key()
    tenant = {
        "name": "soak",
        "keys": [hashed],
        "learn": True,
        "memory": {"capacity": CAPACITY, "stored_tokens": STORED},
    }
    file = folder / "policy.yaml"
    file.write_text(yaml.safe_dump({"tenants": [tenant]}), encoding="utf-8")
    return file, key


def serve(
    stack: Stack,
    sampler: Sampler,
    asked: Iterator[Asked],
    *,
    num_requests: int,
    chunk: int,
    output_tokens: int,
    in_flight: int,
    pause_seconds: float,
) -> int:
    """All requests, with pauses for the learner; returns the tokens that were said."""
    said = 0
    while sampler.num_answered < num_requests:
        num = min(chunk, num_requests - sampler.num_answered)
        said += stack.ask(
            list(islice(asked, num)),
            workload=f"w{sampler.num_answered // chunk % WORKLOADS}",
            output_tokens=output_tokens,
            in_flight=in_flight,
        )
        sampler.num_answered += num
        stack.wait_for_learner(pause_seconds, time.monotonic)
    return said


@click.command()
@click.option(
    "--target", default="smollm2", show_default=True, help="What small models are cut of."
)
@click.option("--layers", default="0,29", show_default=True, help="Of it, for the small target.")
@click.option("--drafter-layers", default="0", show_default=True, help="Of that, for the drafter.")
@click.option("--requests", "num_requests", default=28_800, show_default=True)
@click.option("--chunk", default=1200, show_default=True, help="Requests between two pauses.")
@click.option("--pause-seconds", default=20.0, show_default=True, help="Longest pause.")
@click.option("--output-tokens", default=12, show_default=True)
@click.option("--in-flight", default=8, show_default=True)
@run_options
def soak(
    target: str,
    layers: str,
    drafter_layers: str,
    num_requests: int,
    chunk: int,
    pause_seconds: float,
    output_tokens: int,
    in_flight: int,
    learner: dict[str, Any],
    work: Path | None,
    json_file: Path | None,
) -> None:
    """What grows while a day's requests are served and learned from.

    28,800 requests are eight hours of one a second. Memory of the engine, the learner and the
    proxy, Redis, and the learner's and the drafters' files; everything has small bounds.
    """
    if num_requests < 4 * chunk:
        raise ConfigError(f"--requests is {num_requests}; give at least {4 * chunk}, four chunks")
    cores = two_cores()
    with tempfile.TemporaryDirectory(prefix="paceline-soak-") as scratch:
        folder = work.absolute() if work is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        small = cut(target, layers, folder / "target")
        drafter = cut(str(small), drafter_layers, folder / "drafter")
        policy, key = write_policy(folder)
        told = {
            name: {**its, **learner.get(name, {})} if isinstance(its, Mapping) else its
            for name, its in SMALL.items()
        } | {name: its for name, its in learner.items() if name not in SMALL}
        with running_stack(
            str(small), drafter, folder, told, cores, policy_file=policy, key=key
        ) as stack:
            store = redis.Redis.from_url(stack.redis_url)
            sampler = Sampler(lambda: measure(stack, store, folder))
            began = time.monotonic()
            with sampler.running():
                said = serve(
                    stack,
                    sampler,
                    prompts(vocabulary_of(small)),
                    num_requests=num_requests,
                    chunk=chunk,
                    output_tokens=output_tokens,
                    in_flight=in_flight,
                    pause_seconds=pause_seconds,
                )
            seconds = time.monotonic() - began
            metrics = read_text(stack.learner_metrics)
            store.close()
    found = figures(sampler.samples, num_requests)
    found |= {"seconds": seconds, "tokens_said": said}
    for event in ("cycles", "published", "promoted"):
        found[f"learner.{event}"] = value_of(metrics, f'event="{event}"')
    settings = {
        "target": f"layers {layers} of {Path(target).name}",
        "drafter": f"layers {drafter_layers} of that",
        "requests": num_requests,
        "output_tokens": output_tokens,
        "in_flight": in_flight,
        "capacity": CAPACITY,
        "stored_tokens": STORED,
    }
    write_report(Report("soak", settings, found), json_file)
