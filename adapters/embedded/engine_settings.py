"""How the embedded engine serves, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How the engine serves.

    Attributes:
        max_running: requests read and answered at a time; others wait.
        max_draft_tokens: most tokens drafted a round for a request; verifying 8 costs about 1.4
            times one on a small CPU.
        max_branches: most drafted tokens that continue one; 1 drafts chains.
        max_draft_steps: most passes of a model drafter a round.
        min_probability: what a model drafter drafts is not less likely, in (0, 1]. What is worth
            verifying is decided besides: less than a tenth can be, where tokens cost next to
            nothing.
        max_kept_bytes: memory for keys and values of finished requests, the target's and the
            drafter's, for those that begin alike.
        always_draft: draft all that may be drafted, whether or not it is expected to be worth its
            time.
        bandit: let a bandit narrow who drafts and how far, by what rounds took and brought; never
            where `always_draft` says otherwise.
    """

    max_running: int = 8
    max_draft_tokens: int = 8
    max_branches: int = 1
    max_draft_steps: int = 4
    min_probability: float = 0.1
    max_kept_bytes: int = 1 << 30
    always_draft: bool = False
    bandit: bool = False

    def __post_init__(self) -> None:
        for name, least, most, fix in (
            ("max_running", 1, None, "give at least 1"),
            ("max_draft_tokens", 1, None, "give at least 1, or no speculator"),
            ("max_branches", 1, 16, "give 1 (chains) to 16"),
            ("max_draft_steps", 1, None, "give at least 1"),
            ("max_kept_bytes", 0, None, "give 0 to keep none, or more"),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                raise EngineError(f"{name} is {value}; {fix}")
        if not 0 < self.min_probability <= 1:
            raise EngineError(
                f"min_probability is {self.min_probability}; give a number above 0, at most 1"
            )


@dataclass(slots=True)
class EngineCounts:
    """Totals since the start; written by the engine's thread only.

    `waiting_seconds` is how long requests waited to be taken in, together.
    """

    requests: int = 0
    waiting_seconds: float = 0.0
    aborted: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
