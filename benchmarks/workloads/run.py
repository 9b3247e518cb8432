"""Measuring how sessions are named: purity, agreement with the known kinds, stability, time."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from paceline.benchmarks.report import Report
from paceline.benchmarks.workloads.namings import (
    Named,
    Naming,
    by_clusters,
    by_fingerprint,
    peers,
)
from paceline.benchmarks.workloads.sessions import (
    WORDINGS,
    LabelledSession,
    is_for_tuning,
    read_sessions,
)
from paceline.caches.embedded_store import EmbeddedStore
from paceline.errors import ConfigError
from paceline.middleware.config import WorkloadsConfig
from paceline.middleware.identity import LOCAL_POLICY, Identity, Wording
from paceline.middleware.workload_namer import WorkloadNamer
from paceline.policies.tenants import LOCAL_TENANT
from paceline.policies.text_features import TextFeatures
from paceline.policies.workload import workload_of

KNOWN_REPEATS: Final = 20
FIRST_SECONDS: Final = 30.0
MICRO: Final = 1e6

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadBenchSettings:
    """How much is measured.

    Attributes:
        max_per_kind: most sessions of a kind, the first recorded.
        orders: random orders of arrival, from fixed seeds.
        requests: most sessions of each wording that the proxy's own naming is timed with.
    """

    max_per_kind: int = 150
    orders: int = 5
    requests: int = 300


def run_workload_bench(folder: Path, settings: WorkloadBenchSettings) -> Report:
    """Measure on the reporting half of the traces; scikit-learn's choose on the tuning half.

    Raises:
        ConfigError: the folder has no traces, or too few tasks for two halves.
    """
    sessions = read_sessions(folder, max_per_kind=settings.max_per_kind)
    features = TextFeatures()
    figures: dict[str, float] = {}
    for wording, make in WORDINGS.items():
        tuning = [s for s in make(sessions) if is_for_tuning(s)]
        reporting = [s for s in make(sessions) if not is_for_tuning(s)]
        if not tuning or not reporting:
            raise ConfigError(
                f"the traces in {folder} have {len(tuning)} and {len(reporting)} sessions "
                f"({wording}) in their halves; name a folder with more tasks"
            )
        vectors, seconds = _vectors(features, reporting)
        figures |= _of_the_data(wording, reporting, seconds)
        chosen = _chosen(tuning, _vectors(features, tuning)[0])
        for name, (parameter, naming) in chosen.items():
            measured = _measured(reporting, vectors, naming, orders=settings.orders)
            figures |= {f"{wording}.{name}.{figure}": v for figure, v in measured.items()}
            if parameter:
                figures[f"{wording}.{name}.parameter"] = float(parameter)
        asked = random.Random(0).sample(reporting, min(settings.requests, len(reporting)))  # noqa: S311
        timed = asyncio.run(_timed(asked))
        figures |= {f"{wording}.proxy.{figure}": value for figure, value in timed.items()}
    return Report(bench="workloads", settings=asdict(settings), figures=figures)


def purity(kinds: Sequence[str], names: Sequence[str]) -> float:
    """Share of sessions that are of their name's commonest kind."""
    counts: dict[str, dict[str, int]] = {}
    for kind, name in zip(kinds, names, strict=True):
        of_name = counts.setdefault(name, {})
        of_name[kind] = of_name.get(kind, 0) + 1
    return sum(max(of_name.values()) for of_name in counts.values()) / len(kinds)


def names_per_kind(kinds: Sequence[str], names: Sequence[str]) -> float:
    """Different names that a kind's sessions have, the mean over kinds."""
    found: dict[str, set[str]] = {}
    for kind, name in zip(kinds, names, strict=True):
        found.setdefault(kind, set()).add(name)
    return fmean(map(len, found.values()))


def alone(names: Sequence[str]) -> float:
    """Share of sessions with a name that no other session has, or none."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return sum(name == "" or counts[name] == 1 for name in names) / len(names)


def agreement(a: Sequence[str], b: Sequence[str]) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985) by scikit-learn: 1 equal, 0 as by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(a, b))


def _vectors(
    features: TextFeatures, sessions: Sequence[LabelledSession]
) -> tuple[Vectors, list[float]]:
    made, seconds = [], []
    for session in sessions:
        began = time.perf_counter()
        made.append(features.vectors(session.parts()))
        seconds.append(time.perf_counter() - began)
    return np.stack(made), seconds


def _of_the_data(
    wording: str, sessions: Sequence[LabelledSession], seconds: Sequence[float]
) -> dict[str, float]:
    return {
        f"{wording}.sessions": len(sessions),
        f"{wording}.kinds": len({s.kind for s in sessions}),
        f"{wording}.families": len({s.family for s in sessions}),
        f"{wording}.features_us_mean": MICRO * fmean(seconds),
        f"{wording}.features_us_p99": MICRO * float(np.quantile(seconds, 0.99)),
    }


def _chosen(sessions: Sequence[LabelledSession], vectors: Vectors) -> dict[str, tuple[str, Naming]]:
    """Every way of naming; scikit-learn's with the parameter that does best on these sessions."""
    ways: dict[str, tuple[str, Naming]] = {
        "fingerprint": ("", by_fingerprint),
        "paceline": ("", by_clusters),
    }
    order = random.Random(0).sample(range(len(sessions)), len(sessions))  # noqa: S311
    shuffled, rows = [sessions[n] for n in order], vectors[order]
    kinds = [s.kind for s in shuffled]
    for name, candidates in peers().items():
        scores = [agreement(kinds, naming(shuffled, rows).at_last) for _, naming in candidates]
        ways[name] = candidates[int(np.argmax(scores))]
    return ways


def _measured(
    sessions: Sequence[LabelledSession], vectors: Vectors, naming: Naming, *, orders: int
) -> dict[str, float]:
    """Means over random orders of arrival; the file's own order besides."""
    in_file_order = naming(sessions, vectors)
    runs: list[dict[str, float]] = []
    by_session: list[list[str]] = []
    for seed in range(orders):
        order = random.Random(seed).sample(range(len(sessions)), len(sessions))  # noqa: S311
        named = naming([sessions[n] for n in order], vectors[order])
        runs.append(_figures([sessions[n] for n in order], named))
        found = dict(zip(order, named.at_last, strict=True))
        by_session.append([found[n] for n in range(len(sessions))])
    figures = {name: fmean(run[name] for run in runs) for name in runs[0]}
    pairs = [agreement(a, b) for a, b in combinations(by_session, 2)]
    if pairs:
        figures["agreement_of_orders"] = fmean(pairs)
    file_order = _figures(sessions, in_file_order)
    return figures | {f"file_order.{n}": file_order[n] for n in ("purity", "ari", "names")}


def _figures(sessions: Sequence[LabelledSession], named: Named) -> dict[str, float]:
    kinds, families = [s.kind for s in sessions], [s.family for s in sessions]
    names = named.at_last
    return {
        "names": len(set(names)),
        "purity": purity(kinds, names),
        "ari": agreement(kinds, names),
        "family_purity": purity(families, names),
        "family_ari": agreement(families, names),
        "names_per_kind": names_per_kind(kinds, names),
        "alone": alone(names),
        "first_names_kept": named.kept,
        "place_us_mean": MICRO * fmean(named.seconds) if named.seconds else 0.0,
    }


async def _timed(sessions: Sequence[LabelledSession]) -> dict[str, float]:
    """The proxy's own naming, names shared through an embedded Valkey, one request at a time.

    A session's first request is of a text never seen (unless another had the same), its others of
    one that was.
    """
    identities = [_identity(session) for session in sessions]
    with _namer() as namer:
        await namer.open()
        await _warm(namer)
        first, waited = [], 0
        for identity in identities:
            began = time.perf_counter()
            await namer.named(identity)
            first.append(time.perf_counter() - began)
        limit = WorkloadsConfig().wait_milliseconds / 1000
        waited = sum(seconds > limit for seconds in first)
        began = time.perf_counter()
        for _ in range(KNOWN_REPEATS):
            for identity in identities:
                await namer.named(identity)
        known = (time.perf_counter() - began) / (KNOWN_REPEATS * len(identities))
        await asyncio.to_thread(namer.close)
    return {
        "first_us_p50": MICRO * float(np.quantile(first, 0.5)),
        "first_us_p99": MICRO * float(np.quantile(first, 0.99)),
        "first_later_than_the_wait": waited / len(first),
        "known_us": MICRO * known,
    }


@contextmanager
def _namer() -> Iterator[WorkloadNamer]:
    """A namer that waits for as long as a name takes, on a Valkey of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="paceline-bench-") as scratch,
        EmbeddedStore(Path(scratch)) as store,
    ):
        config = WorkloadsConfig(clusters=True, wait_milliseconds=1000)
        yield WorkloadNamer(config, store.url, None, CollectorRegistry())


async def _warm(namer: WorkloadNamer) -> None:
    """Wait until scikit-learn is loaded."""
    deadline = time.monotonic() + FIRST_SECONDS
    identity = _local("", Wording(b"", b"", b'"warm"'))
    while not (await namer.named(identity)).workload:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"nothing was named within {FIRST_SECONDS:.0f} s; see the errors above"
            )


def _identity(session: LabelledSession) -> Identity:
    system, opening = _raw(session.system), _raw(session.opening)
    tools = session.tools.encode()
    workload = workload_of(header=None, system=system, tools=tools)
    wording = Wording(system, tools, b"" if workload else opening)
    return _local(workload, wording)


def _local(workload: str, wording: Wording) -> Identity:
    return Identity(LOCAL_TENANT, "", workload, LOCAL_POLICY, lambda _: LOCAL_POLICY, wording)


def _raw(text: str) -> bytes:
    return msgspec.json.encode(text) if text else b""


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a Markdown table, a row a wording and way of naming."""
    columns = ["names", "names_per_kind", "alone", "purity", "ari", "family_purity", "family_ari"]
    columns += ["agreement_of_orders", "first_names_kept", "place_us_mean"]
    lines = [f"| wording | named by | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for wording in WORDINGS:
        for name in ("fingerprint", "paceline", *peers()):
            values = [figures.get(f"{wording}.{name}.{column}") for column in columns]
            shown = ["" if value is None else f"{value:.3g}" for value in values]
            lines.append(f"| {wording} | {name} | {' | '.join(shown)} |")
    return "\n".join(lines)
