"""Putting the parts together on one machine: `paceline serve` and `paceline vllm`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from paceline.adapters.embedded.engine_settings import EngineSettings
from paceline.adapters.vllm.launch import require_vllm, serve_environment, worker_command
from paceline.adapters.vllm.settings import WorkerSettings
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.keys import redact_url
from paceline.caches.records import SHARED_GROUP
from paceline.errors import ConfigError
from paceline.middleware.config import (
    LimitsConfig,
    ListenConfig,
    ProxyConfig,
    UpstreamConfig,
)
from paceline.middleware.corpus import STORE_VARIABLE
from paceline.middleware.dashboard_starting import (
    dashboard_config,
    dashboard_process,
    dashboard_settings,
    has_dashboard,
)
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.middleware.workers import MAX_WORKERS, Workers
from paceline.online.learner_settings import LearnerSettings, LoadSettings
from paceline.processes import ChildProcess, ProcessError, answers, free_port

Echo = Callable[[str], None]

ENGINE_START_SECONDS: Final = 300.0
WATCH_SECONDS: Final = 0.2
GRACE_SECONDS: Final = 10.0
"""Somebody waits at the keyboard for `paceline serve` to end."""
STORE_FOLDER: Final = "store"
ENGINE_LOG: Final = "engine.log"
LEARNER_LOG: Final = "learner.log"
DASHBOARD_LOG: Final = "dashboard.log"
PACKAGED_NAME: Final = "smollm2"
DRAFTERS_FOLDER: Final = "drafters"
LEARNER_FOLDER: Final = "learner"
CORPUS_FOLDER: Final = "corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """`paceline serve`.

    Attributes:
        host: address the proxy listens on; without a policy file only a loopback one is allowed.
        port: its port, 0 for a free one.
        model: Hugging Face folder, None for the packaged SmolLM2-135M.
        dtype: what it computes in, ``float32`` or ``bfloat16``.
        drafter: folder of a small model that drafts beside memory, None for memory alone.
        max_draft_tokens: most tokens drafted a round, like what follows as in `EngineSettings`.
        max_branches: most drafted tokens that continue one.
        min_probability: what is less likely is not drafted.
        redis_url: Redis that holds the memory, None for an embedded Valkey.
        policy_file: tenants and their keys, None for one local tenant without a key.
        data_folder: where the embedded Valkey and the engine's log live, None for the user's data
            folder.
        learn: whether the drafter goes on learning from what is said, in idle time.
        dashboard: whether there is one; None for where it is installed.
        num_workers: processes of the proxy.

    Raises:
        EngineError: what is to be drafted is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    model: str | None = None
    dtype: str = "float32"
    drafter: str | None = None
    max_draft_tokens: int = 8
    max_branches: int = 1
    min_probability: float = 0.1
    redis_url: str | None = None
    policy_file: Path | None = None
    data_folder: Path | None = None
    learn: bool = False
    dashboard: bool | None = None
    num_workers: int = 1

    def __post_init__(self) -> None:
        EngineSettings(
            max_draft_tokens=self.max_draft_tokens,
            max_branches=self.max_branches,
            min_probability=self.min_probability,
        )

    @property
    def model_name(self) -> str:
        """The name it is served under."""
        return PACKAGED_NAME if self.model is None else Path(self.model).name


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """`paceline vllm`.

    Attributes:
        model: what `vllm serve` is given.
        vllm_args: further arguments for it.
        redis_url: Redis that holds the memory, None for an embedded Valkey.
        data_folder: where the embedded Valkey lives, None for the user's data folder.
        num_draft_tokens: most tokens drafted a request and step.
        drafter: model that drafts beside the memory, None for none.
        num_drafter_tokens: most tokens that it drafts a request and step.
        drafter_registry: folder of the drafter's versions that are followed, "" for none.
        drafter_group: whose drafter it is.
        always_draft: all that may be drafted, whether or not it is worth its time.
        bandit: let a bandit narrow who drafts and how far, where that was slower.
        allow_untested: accept a vLLM outside the tested range.
    """

    model: str
    vllm_args: Sequence[str] = ()
    redis_url: str | None = None
    data_folder: Path | None = None
    num_draft_tokens: int = 16
    drafter: str | None = None
    num_drafter_tokens: int = 4
    drafter_registry: str = ""
    drafter_group: str = SHARED_GROUP
    always_draft: bool = False
    bandit: bool = False
    allow_untested: bool = False


def serve_all(settings: ServeSettings, echo: Echo) -> None:
    """Start memory, engine and proxy, print how to use them, and run until Ctrl-C or SIGTERM.

    Raises:
        ProcessError: the engine did not start, or ended on its own.
        ConfigError: a setting or the policy file is wrong.
    """
    if not 1 <= settings.num_workers <= MAX_WORKERS:
        raise ConfigError(f"--workers is {settings.num_workers}; give 1 to {MAX_WORKERS}")
    folder = settings.data_folder or user_data_folder()
    engine_url = f"http://127.0.0.1:{free_port()}"
    config = ProxyConfig(
        listen=ListenConfig(host=settings.host, port=settings.port),
        # found out below; named here so that a wrong policy or address is refused before anything
        # is started
        upstreams=[UpstreamConfig(name="embedded", url=engine_url, decisions_url=engine_url)],
        policy_file=settings.policy_file,
        local_learning=settings.learn and settings.policy_file is None,
        shutdown_grace_seconds=GRACE_SECONDS,
        dashboard=dashboard_config() if has_dashboard(settings.dashboard) else None,
    )
    if settings.learn and settings.drafter is None and not (folder / DRAFTERS_FOLDER).exists():
        raise ConfigError(
            "--learn has no drafter to begin with: make one (paceline drafter init, then distil) "
            "and give --drafter FOLDER; later runs go on from what was learned"
        )
    with until_stopped(echo), ExitStack() as stack:
        redis_url = stack.enter_context(memory(settings.redis_url, folder, echo))
        engine = stack.enter_context(_engine(settings, config, redis_url, folder / ENGINE_LOG))
        echo("loading the model ...")
        health = f"{config.upstreams[0].url}/health"
        engine.wait_until(lambda: answers(health), timeout_seconds=ENGINE_START_SECONDS)
        learner = None
        if settings.learn:
            learner = stack.enter_context(_learner(settings, config, redis_url, folder))
            echo(f"learning: {folder / LEARNER_LOG}")
        proxy = stack.enter_context(_proxy(settings, config, redis_url))
        dashboard = None
        if config.dashboard is not None:
            told = dashboard_settings(config, proxy_url=proxy.url, redis_url=redis_url)
            dashboard = stack.enter_context(dashboard_process(told, log=folder / DASHBOARD_LOG))
            echo(f"dashboard: {proxy.url}/dashboard")
        echo(greeting(f"{proxy.url}/v1", settings.model_name))
        while engine.exit_code is None:
            time.sleep(WATCH_SECONDS)
            if isinstance(proxy, Workers):
                proxy.look()
            if learner is not None and learner.exit_code is not None:
                echo(f"the learner ended on its own, serving goes on; see {folder / LEARNER_LOG}")
                learner = None
            if dashboard is not None and dashboard.exit_code is not None:
                echo(f"the dashboard ended on its own; see {folder / DASHBOARD_LOG}")
                dashboard = None
        raise ProcessError(f"the engine ended on its own; see {folder / ENGINE_LOG}")


def serve_vllm(settings: VllmSettings, echo: Echo) -> int:
    """Run vLLM with our worker until it ends; returns its exit code.

    Raises:
        UnsupportedError: no vLLM, or none of the tested range, is installed.
        ConfigError: an argument is wrong.
    """
    if settings.drafter_registry and settings.drafter is None:
        raise ConfigError(
            f"--drafter-registry is {settings.drafter_registry}; name a drafter to start with as "
            "well (--drafter FOLDER), whose shapes its versions have"
        )
    vllm = require_vllm(allow_untested=settings.allow_untested)
    command = worker_command(
        vllm,
        settings.model,
        settings.vllm_args,
        num_draft_tokens=settings.num_draft_tokens,
        drafter=settings.drafter,
    )
    folder = settings.data_folder or user_data_folder()
    with until_stopped(echo), memory(settings.redis_url, folder, echo) as redis_url:
        worker_settings = WorkerSettings.from_env(
            {
                **os.environ,
                "PACELINE_REDIS_URL": redis_url,
                "PACELINE_DRAFTER_TOKENS": str(settings.num_drafter_tokens),
                "PACELINE_ALWAYS_DRAFT": str(settings.always_draft),
                "PACELINE_DRAFTER_REGISTRY": settings.drafter_registry,
                "PACELINE_DRAFTER_GROUP": settings.drafter_group,
                "PACELINE_BANDIT": str(settings.bandit),
                STORE_VARIABLE: corpus_folder(),
            }
        )
        env = serve_environment(
            os.environ, worker_settings, device=vllm.device, drafter=settings.drafter
        )
        with ChildProcess("vLLM", command, env=env) as process:
            return process.wait()
    return 0


@contextmanager
def memory(redis_url: str | None, folder: Path, echo: Echo) -> Iterator[str]:
    """URL of the Redis to share memory through.

    The given one, or an embedded Valkey that runs meanwhile.
    """
    if redis_url:
        echo(f"memory: {redact_url(redis_url)}")
        yield redis_url
        return
    store = EmbeddedStore(folder / STORE_FOLDER)
    try:
        url = store.start()
        echo(f"memory: embedded Valkey in {folder / STORE_FOLDER}")
        yield url
    finally:
        store.stop()


@contextmanager
def until_stopped(echo: Echo) -> Iterator[None]:
    """Run the body until it ends or Ctrl-C or SIGTERM comes.

    Either leaves the body through its clean-up.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        # A second Ctrl-C must not interrupt the clean-up that the first one started.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        echo("stopped")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def user_data_folder() -> Path:
    """Where this user's memory lives.

    ``$XDG_DATA_HOME/paceline`` or ``~/.local/share/paceline``.
    """
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "paceline"


def corpus_folder() -> str:
    """Where engines look for corpora: what the environment says ("": nowhere), else the user's."""
    return os.environ.get(STORE_VARIABLE, str(user_data_folder() / CORPUS_FOLDER))


def greeting(base_url: str, model: str) -> str:
    """What a newcomer pastes first: the base URL, a `curl` and two lines of Python."""
    message = '{"role": "user", "content": "Say hello."}'
    call = f'create(model="{model}", max_tokens=40, messages=[{message}])'
    return f"""
Paceline is ready: {base_url}

  curl {base_url}/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "max_tokens": 40, "messages": [{message}]}}'

  import openai; chat = openai.OpenAI(base_url="{base_url}", api_key="local").chat
  print(chat.completions.{call}.choices[0].message.content)

Ctrl-C stops everything."""


def _proxy(
    settings: ServeSettings, config: ProxyConfig, redis_url: str
) -> AbstractContextManager[RunningProxy | Workers]:
    """The proxy, to be started: a thread of ours, or processes that share what Redis counts."""
    if settings.num_workers == 1:
        return running_proxy(config)
    shared = config.model_copy(update={"limits": LimitsConfig(redis_url=redis_url)})
    return Workers(shared, settings.num_workers)


def _engine(
    settings: ServeSettings, config: ProxyConfig, redis_url: str, log: Path
) -> ChildProcess:
    command = [sys.executable, "-m", "paceline.adapters.embedded", "--host", "127.0.0.1"]
    command += ["--port", config.upstreams[0].url.rpartition(":")[2], "--dtype", settings.dtype]
    command += ["--max-draft-tokens", str(settings.max_draft_tokens)]
    command += ["--max-branches", str(settings.max_branches)]
    command += ["--min-probability", str(settings.min_probability)]
    if settings.model is not None:
        command += ["--model", settings.model]
    if settings.drafter is not None:
        command += ["--drafter", settings.drafter]
    if settings.learn:
        command += ["--drafter-registry", str(log.parent / DRAFTERS_FOLDER)]
    log.parent.mkdir(parents=True, exist_ok=True)
    # Threads that wait for each other busily make a token take three times as long when other
    # programs want the cores; waiting passively costs a twentieth when nobody does.
    env = {"OMP_WAIT_POLICY": "passive", **os.environ, "PACELINE_REDIS_URL": redis_url}
    env[STORE_VARIABLE] = corpus_folder()
    return ChildProcess("the embedded engine", command, env=env, log=log)


def _learner(
    settings: ServeSettings, config: ProxyConfig, redis_url: str, folder: Path
) -> ChildProcess:
    """The learner beside the embedded engine: it has the target to itself a second time."""
    told = LearnerSettings(
        redis_url=redis_url,
        registry=str(folder / DRAFTERS_FOLDER),
        data=str(folder / LEARNER_FOLDER),
        model=settings.model_name,
        target=settings.model or PACKAGED_NAME,
        drafter=settings.drafter or "",
        load=LoadSettings(engines=(config.upstreams[0].url,)),
        threads=1,
    )
    command = [sys.executable, "-m", "paceline.online", "learner"]
    return ChildProcess(
        "the learner",
        [*command, msgspec.json.encode(told).decode()],
        env={"OMP_WAIT_POLICY": "passive", **os.environ},
        log=folder / LEARNER_LOG,
    )
