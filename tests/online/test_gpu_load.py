"""A GPU's load through NVIDIA's own Python binding, over a table of functions as NVML has them.

There is no GPU where these tests run: the driver's library is stood in for, the binding is not. So
names, structures, return codes and exceptions are the real ones.
"""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.errors import ConfigError
from paceline.online.idle import IdleGate, IdleSettings
from paceline.online.load_sources import GpuLoad
from waiting import wait_until

pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py, of the extra learn")

NUM_GPUS = 2


class Driver:
    """What stands in for libnvidia-ml: two GPUs, 40 and 41 per cent busy, and an error if told."""

    def __init__(self) -> None:
        self.fails_with = 0
        self.rates_fail_with = 0
        self.num_begun = 0
        self.num_ended = 0
        handle = pynvml.c_nvmlDevice_t
        told = ctypes.POINTER(pynvml.c_nvmlUtilization_t)
        kinds: dict[str, tuple[Any, ...]] = {
            "nvmlInitWithFlags": (ctypes.c_uint,),
            "nvmlShutdown": (),
            "nvmlDeviceGetHandleByIndex_v2": (ctypes.c_uint, ctypes.POINTER(handle)),
            "nvmlDeviceGetUtilizationRates": (handle, told),
        }
        self.devices = (ctypes.c_uint64 * NUM_GPUS)()
        """Handles are pointers to what only the library knows."""
        self.table = SimpleNamespace(
            **{
                name: ctypes.CFUNCTYPE(ctypes.c_uint, *kind)(getattr(self, name))
                for name, kind in kinds.items()
            }
        )

    def nvmlInitWithFlags(self, _flags: int) -> int:  # noqa: N802  as NVML names it
        self.num_begun += 1
        return self.fails_with

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.num_ended += 1
        return self.fails_with

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, found: Any) -> int:  # noqa: N802
        if index >= NUM_GPUS:
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        place = ctypes.addressof(self.devices) + index * ctypes.sizeof(ctypes.c_uint64)
        found[0] = ctypes.cast(place, pynvml.c_nvmlDevice_t)
        return self.fails_with

    def nvmlDeviceGetUtilizationRates(self, handle: Any, told: Any) -> int:  # noqa: N802
        if (code := self.fails_with or self.rates_fail_with) == 0:
            place = ctypes.addressof(handle.contents) - ctypes.addressof(self.devices)
            told.contents.gpu = 40 + place // ctypes.sizeof(ctypes.c_uint64)
            told.contents.memory = 99
        return int(code)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(pynvml, "nvmlLib", made.table)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return made


@pytest.mark.usefixtures("driver")
def test_each_gpu_tells_its_own_load() -> None:
    """The share of time it computed, not that of its memory."""
    assert GpuLoad(0).load() == 0.4


@pytest.mark.usefixtures("driver")
def test_a_gpu_that_is_not_there_is_refused_at_once() -> None:
    """With what to do."""
    with pytest.raises(ConfigError, match=r"load of GPU 7 .*Invalid Argument.*install nvidia-ml"):
        GpuLoad(7)


def test_a_gpu_that_does_not_tell_is_refused_at_once(driver: Driver) -> None:
    """As one that is divided: the learner would wait for ever."""
    driver.rates_fail_with = pynvml.NVML_ERROR_NOT_SUPPORTED
    with pytest.raises(ConfigError, match="Not Supported"):
        GpuLoad(0)


def test_without_a_driver_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the binding is installed and the library is not."""

    def none(_name: str) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", none)
    with pytest.raises(ConfigError, match="NVML Shared Library Not Found"):
        GpuLoad(0)


def test_a_lost_gpu_closes_the_gate_until_it_is_back(driver: Driver) -> None:
    """Its load is unknown, which counts as full; NVML is begun anew at every look."""
    source = GpuLoad(1)
    assert source.load() == 0.41
    assert (driver.num_begun, driver.num_ended) == (1, 0)
    settings = IdleSettings(low=0.5, high=0.6, open_after_seconds=0.0, look_seconds=0.001)
    with IdleGate([source], settings) as gate:
        assert gate.wait_until_open(threading.Event())
        driver.fails_with = pynvml.NVML_ERROR_GPU_IS_LOST
        wait_until(lambda: not gate.is_open(), seconds=10)
        wait_until(lambda: gate.stats().num_unknown > 1, seconds=10)
        driver.fails_with = 0
        wait_until(gate.is_open, seconds=10)
    assert driver.num_begun > 2
    assert driver.num_ended == 1  # a beginning that failed is none
