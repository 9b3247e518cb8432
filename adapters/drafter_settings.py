"""Which versions of a model drafter an engine follows."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.caches.records import SHARED_GROUP
from paceline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowSettings:
    """Where the versions are that an engine follows.

    Attributes:
        folder: of the registry's files; "" to keep the drafter that the engine is started with.
        group: whose drafter the engine runs.
        redis_url: where the registry's records are.
    """

    folder: str = ""
    group: str = SHARED_GROUP
    redis_url: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            raise ConfigError(f"a drafter group's name is ''; give one, or leave {SHARED_GROUP}")
        if self.folder and not self.redis_url:
            raise ConfigError(
                f"the drafter registry in {self.folder} needs a Redis; name one (--redis)"
            )
