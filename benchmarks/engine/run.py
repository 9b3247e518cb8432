"""A run of `paceline bench engine`: the work, an engine's process for each variant, the results."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Final

import click
import msgspec

import paceline
from paceline.adapters.vllm.launch import require_vllm
from paceline.benchmarks.engine.arrivals import arrival_seconds
from paceline.benchmarks.engine.records import (
    EMBEDDED,
    EngineBenchSettings,
    Job,
    Load,
    Unit,
    UnitResult,
    Variant,
    WorkRequest,
    read_result,
)
from paceline.benchmarks.engine.vllm_server import engine_environment, read_config
from paceline.benchmarks.engines import START_SECONDS
from paceline.benchmarks.rendering import RecordedRequest, requests_of
from paceline.benchmarks.replay.episodes import is_reporting
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.benchmarks.traces import read_recorded
from paceline.errors import ConfigError
from paceline.processes import ChildProcess

UNIT_SECONDS: Final = 7200.0
"""Longest wait for all requests of one unit."""

Work = dict[str, list[list[RecordedRequest]]]


def read_work(settings: EngineBenchSettings) -> Work:
    """For each source its episodes' requests; episodes without measured replies are passed over.

    Raises:
        ConfigError: a source or the tokenizer cannot be read, a source holds no reply, or the
            tokenizer has tokens that the target has not.
    """
    renderer = Renderer(load_encoder(settings.tokenizer or None))
    work: Work = {}
    for source in settings.sources:
        work[source] = list(islice(_episodes(settings, source, renderer), settings.episodes))
        if not work[source]:
            raise ConfigError(f"{source} holds no measured reply; name another source")
    _check_vocabulary(settings, work)
    return work


def _check_vocabulary(settings: EngineBenchSettings, work: Work) -> None:
    """A token that the target does not have would end its engine, without saying why."""
    config = read_config(Path(settings.model))
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0)
    requests = (r for episodes in work.values() for requests in episodes for r in requests)
    highest = max(max(chain(r.prompt_ids, r.output_ids)) for r in requests)
    if highest >= size:
        raise ConfigError(
            f"the traces hold token {highest}, the target's vocabulary ends at {size - 1}; name a "
            "tokenizer that fits it (--tokenizer)"
        )


def _episodes(
    settings: EngineBenchSettings, source: str, renderer: Renderer
) -> Iterator[list[RecordedRequest]]:
    for episode in read_recorded(Path(settings.traces), source):
        if settings.reporting_half and not is_reporting(episode.episode_id):
            continue
        requests = list(
            requests_of(
                episode,
                renderer,
                context_tokens=settings.context_tokens,
                output_tokens=settings.output_tokens,
                max_requests=settings.requests,
            )
        )
        if requests:
            yield requests


def make_units(
    settings: EngineBenchSettings,
    work: Work,
    variant: Variant,
    loads: Sequence[Load],
    folder: Path,
) -> list[Unit]:
    """The units of one variant.

    Their files are named after the settings and the installed code: results of others are not
    taken for theirs.
    """
    digest = f"{settings.digest()}-{installed_code()}"
    units = []
    for load in loads:
        for source, episodes in work.items():
            name = f"{variant}.{source}.{load.label}.{digest}.json"
            sent = tuple(tuple(_sent(r, load) for r in episode) for episode in episodes)
            units.append(
                Unit(
                    variant=variant,
                    source=source,
                    load=load,
                    file=str(folder / name),
                    episodes=sent,
                    arrival_seconds=_arrivals(settings, load, sum(map(len, sent))),
                )
            )
    return units


def installed_code() -> str:
    """Digest of Paceline as it is installed, its native part included. O(bytes of it)."""
    root = Path(paceline.__file__).parent
    digest = blake2b(digest_size=6)
    for file in sorted(p for p in root.rglob("*") if p.suffix in {".py", ".so"}):
        digest.update(str(file.relative_to(root)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _sent(request: RecordedRequest, load: Load) -> WorkRequest:
    """What is sent for a recorded request.

    Its tenant is the unit and the traces' model, so that memory begins cold in every unit and is
    shared only among replies of one model.
    """
    return WorkRequest(
        tenant=f"{request.source}/{request.model}/{load.label}",
        session=request.session_id,
        episode_id=request.episode_id,
        turn=request.turn,
        prompt_ids=request.prompt_ids,
        output_ids=request.output_ids,
    )


def _arrivals(settings: EngineBenchSettings, load: Load, num_requests: int) -> tuple[float, ...]:
    if not load.arrivals:
        return ()
    file = Path(settings.traces) / "arrivals" / load.arrivals
    return arrival_seconds(file, num_requests, factor=load.arrival_factor)


def run_variant(
    settings: EngineBenchSettings, variant: Variant, units: Sequence[Unit], folder: Path
) -> list[UnitResult]:
    """Measure the units whose result is not there yet, in a process of their own.

    Raises:
        ProcessError: the engine failed; the message ends with its log's tail.
    """
    missing = [unit for unit in units if read_result(Path(unit.file)) is None]
    if missing:
        _measure(settings, variant, missing, folder)
    results = [read_result(Path(unit.file)) for unit in units]
    return [result for result in results if result is not None]


def _measure(
    settings: EngineBenchSettings, variant: Variant, units: Sequence[Unit], folder: Path
) -> None:
    job_file, progress_file = folder / f"{variant}.job", folder / f"{variant}.progress"
    progress_file.write_bytes(b"")
    job = Job(
        settings=settings, variant=variant, units=tuple(units), progress_file=str(progress_file)
    )
    job_file.write_bytes(msgspec.msgpack.encode(job))
    process = ChildProcess(
        f"the engine ({variant})",
        [sys.executable, "-m", "paceline.benchmarks.engine.child", str(job_file)],
        env=_environment(settings, variant),
        log=folder / f"{variant}.log",
    )
    num_requests = sum(unit.num_requests for unit in units)
    with click.progressbar(length=num_requests, label=f"{variant:<12}") as bar, process:

        def is_done() -> bool:
            bar.update(progress_file.stat().st_size - bar.pos)
            return all(Path(unit.file).is_file() for unit in units)

        process.wait_until(is_done, timeout_seconds=START_SECONDS + UNIT_SECONDS * len(units))


def _environment(settings: EngineBenchSettings, variant: Variant) -> dict[str, str]:
    if variant in EMBEDDED:
        return {"OMP_WAIT_POLICY": "passive", **os.environ}  # as `paceline serve` starts it
    return engine_environment(settings, os.environ, require_vllm().device)
