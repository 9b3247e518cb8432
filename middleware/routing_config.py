"""How the proxy chooses engines, and what it does when one fails: the part ``routing``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from paceline.middleware.placement import RoutePolicy


class RoutingConfig(BaseModel):
    """Placement, circuit breakers and retries.

    Attributes:
        policy: ``prefix`` (who holds most of the prompt and is not too busy), ``session``,
            ``least_outstanding`` (tokens) or ``round_robin``.
        prefix_seconds: what an engine served longer ago, unused since, is taken for evicted.
        retries: engines that a request may be sent to after the first one failed it; those that
            cannot be connected to do not count. Only before the first byte of an answer.
        circuit_failures: failures in a row after which an engine is left alone.
        circuit_backoff_seconds: longest first time for which it is; doubled each time it fails
            again.
        circuit_max_backoff_seconds: longest such time.
        health_timeout_seconds: longest wait for an engine's health.
        hang_looks: looks at its health without an answer after which what waits for an engine is
            given up: requests are sent elsewhere, streams that are silent end with an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: RoutePolicy = "prefix"
    prefix_seconds: Annotated[float, Field(gt=0)] = 1800.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    circuit_failures: Annotated[int, Field(ge=1, le=1000)] = 3
    circuit_backoff_seconds: Annotated[float, Field(gt=0)] = 1.0
    circuit_max_backoff_seconds: Annotated[float, Field(gt=0)] = 30.0
    health_timeout_seconds: Annotated[float, Field(gt=0)] = 5.0
    hang_looks: Annotated[int, Field(ge=1, le=100)] = 3

    @model_validator(mode="after")
    def _check(self) -> Self:
        first, longest = self.circuit_backoff_seconds, self.circuit_max_backoff_seconds
        if longest < first:
            raise ValueError(
                f"circuit_max_backoff_seconds is {longest:g}, less than circuit_backoff_seconds, "
                f"{first:g}; raise it, or lower that one"
            )
        return self
