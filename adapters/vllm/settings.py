"""What `paceline vllm` tells the worker in the engine process, through the environment.

The environment, not the command line: a Redis URL holds a password, and command lines are public.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from paceline.errors import ConfigError

PREFIX: Final = "PACELINE_"
MAX_DRAFT_TOKENS: Final = 128
"""vLLM's rejection sampler verifies at most this many drafted tokens a request and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Settings of one engine worker.

    Each field is read from the variable `PACELINE_` + its name in capitals.

    Attributes:
        redis_url: journal to publish to and read from; "" keeps the memory in this process.
        shared_capacity: tokens the memory keeps for each sharing scope.
        min_probability: a draft stops where its calibrated cumulative probability would fall below
            this, in (0, 1].
        warm_up_tokens: most tokens read back from the journal at start.
        corpus_dir: folder of the corpora that requests are drafted from (`paceline corpus`); ""
            for none.
    """

    redis_url: str = ""
    shared_capacity: int = 4_194_304
    min_probability: float = 0.1
    warm_up_tokens: int = 4_194_304
    corpus_dir: str = ""

    def __post_init__(self) -> None:
        for name in ("shared_capacity", "warm_up_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{PREFIX}{name.upper()} is {getattr(self, name)}; give at least 1 token"
                )
        if not 0 < self.min_probability <= 1:
            raise ConfigError(
                f"{PREFIX}MIN_PROBABILITY is {self.min_probability}; give a number above 0, at "
                "most 1"
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
                values[setting.name] = kind(text)
            except ValueError:
                raise ConfigError(
                    f"{PREFIX}{setting.name.upper()} is {text!r}; give a value of type "
                    f"{kind.__name__}"
                ) from None
        return cls(**values)  # type: ignore[arg-type]  # each value has the type of its field's default

    def to_env(self) -> dict[str, str]:
        """The variables from which `from_env` reads these settings."""
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}
