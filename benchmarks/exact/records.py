"""What a run of `paceline bench exact` is told and what it keeps."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from paceline.errors import ConfigError

SOURCES: Final = ("tau-bench", "mini-swe-agent", "intercode-sql", "spec-bench")


LEAST_CONTEXT: Final = 16


class Mode(msgspec.Struct, frozen=True):
    """A way of drafting.

    Attributes:
        name: what the report calls it.
        memory: whether memory drafts.
        model: whether a small model drafts.
        branches: most drafted tokens that continue one; 1 drafts chains.
    """

    name: str
    memory: bool
    model: bool
    branches: int


OFF: Final = Mode("off", False, False, 1)
TREE_BRANCHES: Final = 4
MODES: Final = (
    OFF,
    Mode("memory", True, False, 1),
    Mode("memory-tree", True, False, TREE_BRANCHES),
    Mode("drafter", False, True, 1),
    Mode("drafter-tree", False, True, TREE_BRANCHES),
    Mode("fused", True, True, 1),
    Mode("fused-tree", True, True, TREE_BRANCHES),
)
"""The one without speculation first: the others are compared with it."""


MODE_NAMES: Final = tuple(mode.name for mode in MODES)


class ExactSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, of whom, and how.

    Attributes:
        traces: folder of traces and prompts.
        model: Hugging Face folder of the target, "" for the packaged one.
        drafter: folder of the model that drafts, "" for none.
        dtype: what both compute in.
        sources: files to take prompts from.
        modes: names of `MODES`; the one without speculation is always run.
        prompts: of each source.
        turns: taken of each conversation.
        context_tokens: longest prompt.
        output_tokens: longest reply.
        concurrency: requests in flight.
        draft_tokens: most drafted tokens of a request and step, in chains and trees alike.
        draft_steps: most passes of the drafting model a step.
        always_draft: whether all is drafted that may be, where the engine would weigh its time.
        temperature: 0 is greedy.
        top_p: as in a request.
        scored: replies whose tokens are held against the target's probabilities.
    """

    traces: str
    model: str = ""
    drafter: str = ""
    dtype: str = "float32"
    sources: tuple[str, ...] = SOURCES
    modes: tuple[str, ...] = MODE_NAMES
    prompts: int = 50
    turns: int = 5
    context_tokens: int = 256
    output_tokens: int = 48
    concurrency: int = 10
    draft_tokens: int = 8
    draft_steps: int = 4
    always_draft: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    scored: int = 50

    def __post_init__(self) -> None:
        for name in (
            "prompts",
            "turns",
            "output_tokens",
            "concurrency",
            "draft_tokens",
            "draft_steps",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least 1")
        if unknown := sorted(set(self.modes).difference(MODE_NAMES)):
            raise ConfigError(f"no mode is called {unknown[0]}; there are {', '.join(MODE_NAMES)}")
        if self.context_tokens < LEAST_CONTEXT:
            raise ConfigError(
                f"context_tokens is {self.context_tokens}; give at least {LEAST_CONTEXT}"
            )

    def digest(self) -> str:
        """Names everything that replies and figures depend on beside code and prompts."""
        return blake2b(msgspec.json.encode(self), digest_size=8).hexdigest()


class ModeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one way of drafting did with one batch.

    Attributes:
        replies: tokens of each.
        seconds: from the first request sent to the last token.
        rounds: verifications of a request.
        drafted: tokens drafted for them.
        accepted: tokens of those that were accepted.
        passes: forward passes of the drafting model.
        with_model: rounds of the batch in which it drafted.
        without_model: rounds in which it might have, and rested.
        cut: drafted tokens that were not worth verifying.
        cpu_seconds: computed for in all, on any core: what another's work beside changes least.
    """

    replies: tuple[tuple[int, ...], ...]
    seconds: float
    rounds: int
    drafted: int
    accepted: int
    passes: int
    with_model: int = 0
    without_model: int = 0
    cut: int = 0
    cpu_seconds: float = 0.0


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What all ways of drafting did with the same prompts.

    Attributes:
        source: where the prompts come from.
        modes: by the name of the mode.
    """

    source: str
    modes: dict[str, ModeResult]


def read_batch(file: Path) -> BatchResult | None:
    """The batch kept in `file`; None if there is none."""
    if not file.is_file():
        return None
    return msgspec.json.decode(file.read_bytes(), type=BatchResult)


def write_batch(result: BatchResult, file: Path) -> None:
    """Keep a batch, whole or not at all."""
    scratch = file.with_suffix(".tmp")
    scratch.write_bytes(msgspec.json.encode(result))
    scratch.replace(file)
