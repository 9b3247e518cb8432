"""What a policy chooses between: who may draft, and how many tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, Self, cast, get_args

import msgspec

from paceline.errors import ConfigError

Sources = Literal["none", "memory", "model", "both"]
MOST_TOKENS: Final = 1024
"""Longest cap: no engine verifies more for one request."""
MOST_DIGITS: Final = 9
DEFAULT_CAPS: Final = (2, 4, 8, 16)


class Arm(msgspec.Struct, frozen=True, cache_hash=True):
    """One way to draft for a request.

    Attributes:
        sources: who may draft; ``none`` is nobody.
        max_tokens: most drafted tokens that are verified a round, 0 for ``none`` alone.

    Raises:
        ConfigError: the two do not go together, or there is no such source.
    """

    sources: Sources
    max_tokens: int

    def __post_init__(self) -> None:
        if self.sources not in get_args(Sources):
            known = ", ".join(get_args(Sources))
            raise ConfigError(f"an arm has sources {self.sources!r}; there are {known}")
        least, most = (0, 0) if self.sources == "none" else (1, MOST_TOKENS)
        if not least <= self.max_tokens <= most:
            raise ConfigError(
                f"an arm of {self.sources!r} has max_tokens {self.max_tokens}; give {least} to "
                f"{most}"
            )

    @property
    def name(self) -> str:
        """Its name in states and reports, as ``memory-8``; ``none`` without drafts."""
        return f"{self.sources}-{self.max_tokens}" if self.max_tokens else self.sources

    @property
    def has_model(self) -> bool:
        """Whether a model drafts, so that another drafter makes it another arm."""
        return self.sources in {"model", "both"}

    def reveals(self, other: Arm) -> bool:
        """Whether what this one had accepted tells what the other would have had.

        A shorter draft of the same sources is the beginning of the longer one, and without drafts
        a round commits one token.
        """
        return not other.max_tokens or (
            self.sources == other.sources and self.max_tokens >= other.max_tokens
        )

    @classmethod
    def parse(cls, name: str) -> Self:
        """The arm of a name.

        Raises:
            ConfigError: it is none.
        """
        sources, dash, cap = name.partition("-")
        if dash and not (cap.isdecimal() and len(cap) <= MOST_DIGITS):
            raise ConfigError(f"{name!r:.80} names no arm; expected none or SOURCES-TOKENS")
        return cls(cast("Sources", sources), int(cap or 0))


NO_DRAFTS: Final = Arm("none", 0)
"""K = 0: the target alone. In every set of arms."""


def arm_set(arms: Iterable[Arm]) -> tuple[Arm, ...]:
    """The arms, each once, `NO_DRAFTS` first whether it was given or not. O(n)."""
    return tuple(dict.fromkeys((NO_DRAFTS, *arms)))


def default_arms(*, has_model: bool = False, caps: Iterable[int] = DEFAULT_CAPS) -> tuple[Arm, ...]:
    """Memory with each cap, and where a model drafts also both together.

    Raises:
        ConfigError: a cap is not 1 to `MOST_TOKENS`.
    """
    caps = tuple(caps)
    sources: tuple[Sources, ...] = ("memory", "both") if has_model else ("memory",)
    return arm_set(Arm(source, cap) for source in sources for cap in caps)
