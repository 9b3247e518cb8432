"""What `paceline vllm` tells the worker in the engine process, through the environment.

The environment, not the command line: a Redis URL holds a password, and command lines are public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from paceline.adapters.drafter_settings import FollowSettings
from paceline.caches.records import SHARED_GROUP
from paceline.caches.tier_settings import TIERS, MemorySettings, TierSettings
from paceline.errors import ConfigError

PREFIX: Final = "PACELINE_"
MAX_PORT: Final = 65_535
SWITCHES: Final = {"1": True, "true": True, "0": False, "false": False}
MAX_DRAFT_TOKENS: Final = 128
"""vLLM's rejection sampler verifies at most this many drafted tokens a request and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Settings of one engine worker.

    Each field is read from the variable `PACELINE_` + its name in capitals.

    Attributes:
        redis_url: journal to publish to and read from; "" keeps the memory in this process.
        tiers: which of ``session``, ``workload`` and ``tenant`` are on, with commas between.
        shared_capacity: tokens that each log of the memory keeps: one for each sharing scope and
            one for each of its workloads.
        session_tokens: tokens that the contexts of conversations hold together, which are kept for
            their next turn.
        max_logs: logs the memory holds; the least recently used is dropped.
        max_tokens: tokens the logs hold together; likewise.
        neighbours: logs of other workloads that a request drafts from, the latest ones.
        retention_seconds: what finished longer ago is forgotten; 0 keeps it while there is room.
        min_probability: a draft stops where its calibrated cumulative probability would fall below
            this, in (0, 1].
        metrics_port: port on which the worker tells Prometheus about its memory, 0 for none. vLLM's
            own ``/metrics`` is another process's.
        metrics_host: address of that port.
        drafter_tokens: most tokens that a model drafter beside the memory drafts for a request and
            step, 1 to 128.
        always_draft: draft all that may be drafted, whether or not it is expected to be worth its
            time.
        bandit: let a bandit narrow who drafts and how far, by what rounds took and brought; never
            where `always_draft` says otherwise.
        replica: name of this engine among those that share what bandits learn, different from every
            other's and the same after a restart; "" for a random one.
        warm_up_tokens: most tokens read back from the journal at start.
        corpus_dir: folder of the corpora that requests are drafted from (`paceline corpus`); ""
            for none.
        drafter_registry: folder of the versions of the model drafter that is followed; "" to keep
            the one that vLLM is started with.
        drafter_group: whose drafter the model is; another than ``shared`` drafts for that group's
            requests alone.
    """

    redis_url: str = ""
    tiers: str = "session,workload,tenant"
    shared_capacity: int = 4_194_304
    session_tokens: int = 33_554_432
    max_logs: int = 512
    max_tokens: int = 33_554_432
    neighbours: int = 2
    retention_seconds: float = 0.0
    min_probability: float = 0.1
    drafter_tokens: int = 4
    always_draft: bool = False
    bandit: bool = False
    replica: str = ""
    warm_up_tokens: int = 4_194_304
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"
    corpus_dir: str = ""
    drafter_registry: str = ""
    drafter_group: str = SHARED_GROUP

    def __post_init__(self) -> None:
        for name in ("shared_capacity", "session_tokens", "warm_up_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{PREFIX}{name.upper()} is {getattr(self, name)}; give at least 1 token"
                )
        if not 0 < self.min_probability <= 1:
            raise ConfigError(
                f"{PREFIX}MIN_PROBABILITY is {self.min_probability}; give a number above 0, at "
                "most 1"
            )
        if not 1 <= self.drafter_tokens <= MAX_DRAFT_TOKENS:
            raise ConfigError(
                f"{PREFIX}DRAFTER_TOKENS is {self.drafter_tokens}; give 1 to {MAX_DRAFT_TOKENS}"
            )
        if not 0 <= self.metrics_port <= MAX_PORT:
            raise ConfigError(
                f"{PREFIX}METRICS_PORT is {self.metrics_port}; give 1 to {MAX_PORT}, or 0 for none"
            )
        if unknown := sorted(self.tiers_on.difference(TIERS)):
            raise ConfigError(f"{PREFIX}TIERS names {unknown[0]!r}; there are {', '.join(TIERS)}")
        if self.retention_seconds < 0:
            raise ConfigError(
                f"{PREFIX}RETENTION_SECONDS is {self.retention_seconds}; give seconds, or 0 to "
                "keep what there is room for"
            )
        self.memory()
        self.following()

    def following(self) -> FollowSettings:
        """Where versions of the drafter are.

        Raises:
            ConfigError: they have no Redis, or the group no name.
        """
        return FollowSettings(
            folder=self.drafter_registry, group=self.drafter_group, redis_url=self.redis_url
        )

    @property
    def tiers_on(self) -> frozenset[str]:
        """Names in `tiers`."""
        return frozenset(filter(None, (name.strip() for name in self.tiers.split(","))))

    def memory(self) -> MemorySettings:
        """The shared memory's settings.

        Raises:
            ConfigError: a value lies outside its range.
        """

        def tier(name: str, capacity: int) -> TierSettings:
            return TierSettings(
                enabled=name in self.tiers_on,
                capacity=capacity,
                retention_seconds=self.retention_seconds or None,
            )

        return MemorySettings(
            session=tier("session", self.session_tokens),
            workload=tier("workload", self.shared_capacity),
            tenant=tier("tenant", self.shared_capacity),
            num_neighbours=self.neighbours,
            max_logs=self.max_logs,
            max_tokens=self.max_tokens,
        )

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> WorkerSettings:
        """Settings from environment variables; those not set keep their defaults.

        Raises:
            ConfigError: a value cannot be read or lies outside its range.
        """
        values: dict[str, str | int | float] = {}
        for setting in fields(cls):
            text = env.get(PREFIX + setting.name.upper())
            if text is None:
                continue
            default = setting.default
            assert isinstance(default, str | int | float)
            kind = type(default)
            try:
                values[setting.name] = SWITCHES[text.lower()] if kind is bool else kind(text)
            except (ValueError, KeyError):
                wanted = "1 or 0" if kind is bool else f"a value of type {kind.__name__}"
                raise ConfigError(
                    f"{PREFIX}{setting.name.upper()} is {text!r}; give {wanted}"
                ) from None
        return cls(**values)  # type: ignore[arg-type]  # each value has the type of its field's default

    def to_env(self) -> dict[str, str]:
        """The variables from which `from_env` reads these settings."""
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}
