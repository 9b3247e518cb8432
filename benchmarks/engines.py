"""Starting the engines that benchmarks compare: vLLM as it is, with its n-gram, with our worker."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from paceline.adapters.vllm.launch import require_vllm, serve_environment, worker_command
from paceline.adapters.vllm.settings import WorkerSettings
from paceline.processes import ChildProcess, answers, free_port

Variant = Literal["off", "ngram", "paceline"]
VARIANTS: Final[tuple[Variant, ...]] = ("off", "ngram", "paceline")
START_SECONDS: Final = 900.0
"""Longest wait for a vLLM server: a first start compiles the model, minutes on a small CPU."""


NGRAM_DRAFT_TOKENS: Final = 8
"""Of vLLM's n-gram, which drafts as many at every match: each costs where the match is wrong."""
KV_CACHE_GIB: Final = "4"
"""Of vLLM's CPU build, which would take nine tenths of the memory, unless the caller says more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """One vLLM server.

    Attributes:
        model: folder or name of the target.
        variant: how it speculates.
        num_draft_tokens: most tokens that Paceline drafts a request and step.
        max_model_len: context length, in tokens.
        dtype: vLLM's name of the number format; greedy outputs can be compared token for token in
            float32 only.
        redis_url: journal of our worker, "" for none.
        min_probability: where our drafts stop (see `WorkerSettings`).
        vllm_args: further arguments of `vllm serve`.
        worker_env: further environment variables of the server.
    """

    model: str
    variant: Variant = "paceline"
    num_draft_tokens: int = 16
    max_model_len: int = 4096
    dtype: str = "float32"
    redis_url: str = ""
    min_probability: float = WorkerSettings().min_probability
    vllm_args: tuple[str, ...] = ()
    worker_env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """A vLLM server that answers at `url`."""

    url: str
    process: ChildProcess


def engine_command(settings: EngineSettings, *, port: int) -> list[str]:
    """Program and arguments of the server, listening on `port` of the loopback interface."""
    vllm = require_vllm()
    arguments = [
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "target"),
        *("--dtype", settings.dtype, "--max-model-len", str(settings.max_model_len)),
        *settings.vllm_args,
    ]
    if settings.variant == "paceline":
        return worker_command(
            vllm, settings.model, arguments, num_draft_tokens=settings.num_draft_tokens
        )
    return [*vllm.serve_command(settings.model), *arguments, *_peer_arguments(settings)]


@contextmanager
def running_engine(settings: EngineSettings, *, log_folder: Path) -> Iterator[RunningEngine]:
    """A vLLM server as `settings` say, ready to answer; stopped at the end.

    Raises:
        ProcessError: it did not become ready; the message ends with its log's tail.
        UnsupportedError: no vLLM of the tested range is installed.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ours = settings.variant == "paceline"
    environment = serve_environment(
        {
            "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB,
            **os.environ,
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **dict(settings.worker_env),
        },
        _worker_settings(settings) if ours else None,
        device=require_vllm().device,
    )
    process = ChildProcess(
        f"vLLM ({settings.variant})",
        engine_command(settings, port=port),
        env=environment,
        log=log_folder / f"vllm-{settings.variant}-{port}.log",
    )
    with process:
        process.wait_until(lambda: answers(f"{url}/health"), timeout_seconds=START_SECONDS)
        yield RunningEngine(url, process)


def _worker_settings(settings: EngineSettings) -> WorkerSettings:
    return WorkerSettings(redis_url=settings.redis_url, min_probability=settings.min_probability)


def _peer_arguments(settings: EngineSettings) -> Sequence[str]:
    if settings.variant == "off":
        return ()
    config = (
        f'{{"method":"ngram","num_speculative_tokens":{NGRAM_DRAFT_TOKENS},'
        '"prompt_lookup_min":2,"prompt_lookup_max":5}'
    )
    return ("--speculative-config", config)
