"""What tells the idle gate how loaded something is: engines, GPUs, the machine."""

from __future__ import annotations

import math
import os
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from paceline.errors import ConfigError
from paceline.load_file import EngineFiles

PROBE_SECONDS: Final = 1.0
MAX_METRICS_BYTES: Final = 8_388_608
RUNNING: Final = ("vllm:num_requests_running", "paceline_engine_running")
WAITING: Final = ("vllm:num_requests_waiting", "paceline_engine_waiting")
"""Gauges of vLLM, and of the embedded engine."""


class ServedLoad:
    """An engine's requests: those that run by how many are full load, those that wait as full.

    Args:
        url: of the engine, without ``/metrics``: vLLM, or the embedded engine.
        full_requests: as many running ones are a load of 1.
        own: how many requests of ours the engine may have had since it was called last; these are
            no load.
        fetch: gives the text of a URL; raises OSError where it cannot.

    Raises:
        ConfigError: the URL is not one, or `full_requests` is less than 1.
    """

    def __init__(
        self,
        url: str,
        *,
        full_requests: int = 8,
        own: Callable[[], int] = lambda: 0,
        fetch: Callable[[str], str] | None = None,
    ) -> None:
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise ConfigError(f"{url!r} is no address of an engine; give http://HOST:PORT")
        if full_requests < 1:
            raise ConfigError(f"full_requests is {full_requests}; give 1 or more")
        self.name = f"requests at {urlsplit(url).netloc.rpartition('@')[2]}"
        self._url = f"{url.rstrip('/')}/metrics"
        self._full_requests = full_requests
        self._own = own
        self._fetch = _fetched if fetch is None else fetch

    def load(self) -> float | None:
        """See `LoadSource`; None if the engine is away or shows no such metrics."""
        try:
            text = self._fetch(self._url)
        except OSError:
            return None
        running, waiting = _gauge(text, RUNNING), _gauge(text, WAITING) or 0.0
        own = self._own()  # after the answer: whatever it counts of ours has begun by now
        if running is None:
            return None
        theirs = max(0.0, running - own)
        return theirs / self._full_requests + max(0.0, waiting - max(0.0, own - running))


class GpuLoad:
    """How much of the time a GPU has computed lately, by NVML. What learns on it counts as well.

    After an error NVML is begun anew at the next look, for a GPU that was lost or a driver that was
    reloaded; until then its load is unknown.

    Args:
        index: which GPU, in NVML's order (by PCI bus), whatever CUDA may see of them.
        nvml: the module `pynvml`; imported if None.

    Raises:
        ConfigError: NVML, its Python binding or that GPU is missing, or it does not tell (as where
            it is divided into instances).
    """

    def __init__(self, index: int = 0, *, nvml: Any = None) -> None:
        self.name = f"GPU {index}"
        self._index = index
        self._handle: Any = None
        self._is_begun = False
        try:
            self._nvml = import_module("pynvml") if nvml is None else nvml
            self.load()
        except Exception as error:  # whatever NVML raises: there is nothing to ask
            raise ConfigError(
                f"the load of GPU {index} cannot be read ({error}); install nvidia-ml-py, or leave "
                "it to the engines' requests"
            ) from error

    def load(self) -> float | None:
        """See `LoadSource`."""
        nvml = self._nvml
        try:
            if self._handle is None:
                nvml.nvmlInit()
                self._is_begun = True
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            return float(nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100
        except Exception:
            self._end()
            raise

    def _end(self) -> None:
        self._handle = None
        if self._is_begun:
            self._is_begun = False
            with suppress(Exception):  # as broken as what brought us here
                self._nvml.nvmlShutdown()


class LoadAverage:
    """Processes that want a CPU, a core each for a load of 1, without what we use ourselves.

    Args:
        own_cores: cores that we use, to be left out; by default what this process and its ended
            children took since the last look.
        average: the system's load average over one minute.
        num_cores: of the machine; counted if None.
        cpu_seconds: CPU time of this process so far.
        clock: monotonic seconds.
    """

    name = "load average"

    def __init__(
        self,
        *,
        own_cores: Callable[[], float] | None = None,
        average: Callable[[], float] = lambda: os.getloadavg()[0],
        num_cores: int | None = None,
        cpu_seconds: Callable[[], float] = lambda: sum(os.times()[:4]),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._average = average
        self._num_cores = num_cores or os.cpu_count() or 1
        self._own_cores = own_cores or _OwnCores(cpu_seconds, clock)

    def load(self) -> float | None:
        """See `LoadSource`."""
        return max(0.0, self._average() - self._own_cores()) / self._num_cores


class _OwnCores:
    """Cores that this process uses, smoothed as the system's load average over a minute is."""

    def __init__(self, cpu_seconds: Callable[[], float], clock: Callable[[], float]) -> None:
        self._cpu_seconds = cpu_seconds
        self._clock = clock
        self._seen = cpu_seconds(), clock()
        self._cores = 0.0

    def __call__(self) -> float:
        used, now = self._cpu_seconds(), self._clock()
        seconds = now - self._seen[1]
        if seconds > 0:
            kept = math.exp(-seconds / 60)
            self._cores = kept * self._cores + (1 - kept) * (used - self._seen[0]) / seconds
            self._seen = used, now
        return self._cores


class ToldLoad:
    """Requests of all engines of this machine that follow the same registry, as they tell them.

    Args:
        files: that they tell it in.
        full_requests: as many are a load of 1, running or waiting.
    """

    name = "requests of this machine's engines"

    def __init__(self, files: EngineFiles, *, full_requests: int = 8) -> None:
        self._files = files
        self._full_requests = full_requests

    def load(self) -> float:
        """See `QuickSource`; 0 where no engine tells."""
        return self._files.num_open() / self._full_requests

    def busy_since(self) -> float | None:
        """See `QuickSource`."""
        return self._files.busy_since()

    def find(self) -> None:
        """See `QuickSource`."""
        self._files.find()


def _gauge(text: str, names: Sequence[str]) -> float | None:
    """Sum of the first gauge that Prometheus's text holds, over its labels; None if none is there.

    Raises:
        ValueError: its value is no number.
    """
    for name in names:
        found = re.findall(
            rf"^{re.escape(name)}(?:\{{[^\n]*\}})?[ \t]+(\S+)", text, flags=re.MULTILINE
        )
        if found:
            return sum(float(value) for value in found)
    return None


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as response:  # noqa: S310  scheme checked
        data: bytes = response.read(MAX_METRICS_BYTES)
    return data.decode("utf-8", "replace")
