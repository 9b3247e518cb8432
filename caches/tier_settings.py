"""What the tiers of the shared memory may hold: an engine's settings and a tenant's limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from paceline.errors import ConfigError

MIN_CAPACITY: Final = 2
MAX_CAPACITY: Final = 2**31
MAX_TOKENS: Final = 33_554_432
"""Over all logs, unless the settings say otherwise: about half a gigabyte."""
TIERS: Final = ("session", "workload", "tenant")
"""In order of locality. A corpus is read with the tenant tier."""


def _check_retention(seconds: float | None) -> None:
    if seconds is not None and not seconds > 0:
        raise ConfigError(
            f"retention_seconds is {seconds}; give more than 0 seconds, or nothing to keep what "
            "there is room for"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    """One tier of one engine.

    Attributes:
        enabled: False has no request read from it or write to it.
        capacity: tokens that each of its logs keeps, in [2, 2**31]; the oldest are overwritten. Of
            the session tier: that the contexts it keeps hold together.
        retention_seconds: what finished longer ago is forgotten; None keeps it while there is room.
    """

    enabled: bool = True
    capacity: int = 4_194_304
    retention_seconds: float | None = None

    def __post_init__(self) -> None:
        if not MIN_CAPACITY <= self.capacity <= MAX_CAPACITY:
            raise ConfigError(
                f"a tier's capacity is {self.capacity}; give {MIN_CAPACITY} to {MAX_CAPACITY} "
                "tokens"
            )
        _check_retention(self.retention_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """The shared memory of one engine.

    Attributes:
        session: the contexts of conversations, kept for their next turn. They go with the log that
            they read first or write to, and with its retention, if that is shorter.
        workload: the logs of single workloads.
        tenant: the common log of a sharing scope, and reading other workloads' logs.
        num_neighbours: how many other workloads' logs a request reads, those written to last; each
            costs a draft a look-up.
        max_logs: logs over all scopes; the least recently used is dropped.
        max_tokens: tokens over all logs, about 17 bytes each; likewise.
    """

    session: TierSettings = TierSettings(capacity=MAX_TOKENS)
    workload: TierSettings = TierSettings()
    tenant: TierSettings = TierSettings()
    num_neighbours: int = 2
    max_logs: int = 512
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if self.num_neighbours < 0:
            raise ConfigError(f"num_neighbours is {self.num_neighbours}; give 0 or more logs")
        least = self.num_neighbours + 2
        if self.max_logs < least:
            raise ConfigError(
                f"max_logs is {self.max_logs}; one request reads up to {least} logs, give at least "
                "as many or fewer num_neighbours"
            )
        if self.max_tokens < MIN_CAPACITY:
            raise ConfigError(f"max_tokens is {self.max_tokens}; give at least {MIN_CAPACITY}")

    @classmethod
    def of_capacity(cls, num_tokens: int) -> MemorySettings:
        """Defaults, with logs of as many tokens, and room for at least one of them."""
        tier = TierSettings(capacity=num_tokens)
        most = max(num_tokens, MAX_TOKENS)
        return cls(workload=tier, tenant=tier, max_tokens=most)

    @property
    def largest_log(self) -> int:
        """Most tokens that one log keeps."""
        return min(self.max_tokens, max(self.workload.capacity, self.tenant.capacity))


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimits:
    """What a tenant's policy makes narrower than the engine's settings.

    Attributes:
        session: False keeps no context for a session's next turn.
        workload: False has the tenant's workloads share the common log.
        tenant: False keeps each of the tenant's workloads to itself.
        capacity: most tokens of each of the scope's logs, None for the engine's.
        retention_seconds: as in `TierSettings`; the shorter one holds.
        stored_tokens: most tokens of the tenant that the journal keeps for a model, None for all.
    """

    session: bool = True
    workload: bool = True
    tenant: bool = True
    capacity: int | None = None
    retention_seconds: float | None = None
    stored_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.capacity is not None and self.capacity < MIN_CAPACITY:
            raise ConfigError(f"capacity is {self.capacity}; give at least {MIN_CAPACITY} tokens")
        if self.stored_tokens is not None and self.stored_tokens < 1:
            raise ConfigError(f"stored_tokens is {self.stored_tokens}; give at least 1")
        _check_retention(self.retention_seconds)


NO_LIMITS: Final = TierLimits()
