"""What the embedded engine is asked and what it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from paceline.adapters.embedded.sampling import SamplingParams, TokenLogprobs
from paceline.adapters.identity import DraftLimits
from paceline.adapters.request_info import RequestInfo

FinishReason = Literal["stop", "length", "abort"]
DraftSource = Literal["memory", "model"]
ALL_SOURCES: Final[frozenset[DraftSource]] = frozenset({"memory", "model"})
NO_LIMITS: Final = DraftLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        info: whose request it is.
        prompt_ids: at least one token.
        max_tokens: longest reply, >= 1; with the prompt it fits the context.
        sampling: how to draw.
        stop: strings that end the reply.
        max_draft_tokens: most tokens drafted a round, >= 0; None for the engine's own limit, which
            also bounds it.
        draft_sources: who may draft; none answers without drafts.
        num_logprobs: alternatives to list with the log probability of each token, 0 for the token's
            own alone, None for no log probabilities.
        predicted_ids: what the client expects to be said; drafted from for this request alone.
        limits: the same as `max_draft_tokens` and `draft_sources`, with who said so; only told.
    """

    info: RequestInfo
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    max_draft_tokens: int | None = None
    draft_sources: frozenset[DraftSource] = ALL_SOURCES
    num_logprobs: int | None = None
    predicted_ids: tuple[int, ...] = ()
    limits: DraftLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a reply.

    Attributes:
        text: new text, possibly empty.
        token_ids: new tokens.
        finish_reason: why the reply ends with this step, None if it goes on.
        error: what went wrong; the reply ends with it.
        logprobs: of each new token, empty unless asked for.
        num_cached: prompt tokens that need not be read again; told with the first step.
        matched_stop: the stop string that ended the reply, "" for none.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached: int = 0
    matched_stop: str = ""


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        request: what to generate.
        on_progress: takes each step, on the engine's thread; must not block.
        aborted: set it to end the request within one round.
        submitted_at: when it was queued, by the engine's clock; 0 if it never waited.
    """

    request: GenerationRequest
    on_progress: Callable[[Progress], None]
    aborted: threading.Event = field(default_factory=threading.Event)
    submitted_at: float = 0.0
