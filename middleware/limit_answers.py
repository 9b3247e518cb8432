"""What clients are told of their limits: OpenAI's headers, and the answer to one who must wait."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from paceline.api_errors import ApiError
from paceline.middleware.endpoints import EMBEDDINGS, Endpoint
from paceline.middleware.limit_store import Ask, Bound, Decision
from paceline.middleware.request_body import BodyView
from paceline.policies.limits import WindowState

Headers = list[tuple[bytes, bytes]]

TOO_MANY_REQUESTS: Final = 429
PLACE_WAIT_MS: Final = 1000
"""When to come back for a place: nobody knows when one is free."""
SECOND_MS: Final = 1000
MINUTE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request must wait: of all limits that it met, the one that lasts longest.

    Attributes:
        kind: ``requests``, ``tokens`` or ``concurrency``.
        limit: its value.
        workload: whose it is; "" for all of the tenant.
        wait_ms: when to come back, at least 1.
    """

    kind: str
    limit: int
    workload: str
    wait_ms: int

    def error(self, tenant: str, headers: Headers) -> ApiError:
        """The answer.

        Says when to come back: in seconds and, as OpenAI's SDKs prefer, in milliseconds.
        """
        whose = f"tenant {tenant!r}"
        if self.workload:
            whose = f"workload {self.workload!r} of {whose}"
        limit = f"{self.limit} {self.kind} a minute"
        if self.kind == "concurrency":
            limit = f"{self.limit} requests at a time"
        return ApiError(
            TOO_MANY_REQUESTS,
            f"{whose} has reached its limit of {limit}; try again in {duration(self.wait_ms)}, or "
            "have its operator raise the limit",
            "rate_limit_error",
            code="rate_limit_exceeded",
            headers=[
                *headers,
                (b"retry-after", str(-(-self.wait_ms // SECOND_MS)).encode()),
                (b"retry-after-ms", str(self.wait_ms).encode()),
            ],
        )


def refusal_of(ask: Ask, decision: Decision) -> Refusal:
    """Why the decision was against the request."""
    reasons: list[Refusal] = []
    for bound, state in zip(ask.bounds, decision.states, strict=True):
        for kind, window in (("requests", state.requests), ("tokens", state.tokens)):
            if window is not None and not window.remaining:
                reasons.append(Refusal(kind, window.limit, bound.workload, window.wait_ms))
        most = bound.limits.concurrency
        if most is not None and state.num_active >= most:
            reasons.append(Refusal("concurrency", most, bound.workload, PLACE_WAIT_MS))
    return max(reasons, key=lambda reason: reason.wait_ms)


def limit_headers(decision: Decision) -> Headers:
    """OpenAI's ``x-ratelimit-*``; where several bounds bind, of the one with least left."""
    headers: Headers = []
    for kind, window in (
        ("requests", _tightest(state.requests for state in decision.states)),
        ("tokens", _tightest(state.tokens for state in decision.states)),
    ):
        if window is not None:
            headers += (
                (f"x-ratelimit-limit-{kind}".encode(), str(window.limit).encode()),
                (f"x-ratelimit-remaining-{kind}".encode(), str(window.remaining).encode()),
                (f"x-ratelimit-reset-{kind}".encode(), duration(window.reset_ms).encode()),
            )
    return headers


def duration(milliseconds: int) -> str:
    """A time as OpenAI's headers write it: ``17ms``, ``8.64s``, ``6m0s``."""
    if milliseconds < SECOND_MS:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, MINUTE_MS)
    seconds = f"{rest / SECOND_MS:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def _tightest(windows: Iterable[WindowState | None]) -> WindowState | None:
    present = (window for window in windows if window is not None)
    return min(present, key=attrgetter("remaining"), default=None)


def require_countable(
    endpoint: Endpoint, tenant: str, view: BodyView, bounds: Iterable[Bound]
) -> None:
    """Check that what a request comes to can be counted for its limits.

    Raises:
        ApiError: 400, nothing would say it.
    """
    if endpoint.takes.request_id and view.is_background:
        raise ApiError(
            400,
            f"tenant {tenant!r} has limits, and what is said in the background is not counted for "
            "any; leave out background",
            code="unsupported_parameter",
            param="background",
        )
    counts_tokens = any(bound.limits.tokens_per_minute is not None for bound in bounds)
    if endpoint is EMBEDDINGS and counts_tokens and view.is_without_usage:
        raise ApiError(
            400,
            f"tenant {tenant!r} has a limit of tokens, and vectors in the form bytes_only come "
            "without their usage; ask for bytes, which tells it in the head",
            code="unsupported_parameter",
            param="encoding_format",
        )
