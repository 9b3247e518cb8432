"""What placing a request takes, by the clock; engines are named and not asked."""

from __future__ import annotations

import json
import random
import time
from statistics import median
from typing import Final

from prometheus_client import CollectorRegistry

from paceline.middleware.config import UpstreamConfig
from paceline.middleware.replica import Replica
from paceline.middleware.request_body import view_body
from paceline.middleware.route_metrics import RouteMetrics
from paceline.middleware.routing import ReplicaSet, scope_of
from paceline.middleware.routing_config import RoutingConfig
from paceline.middleware.upstream import UpstreamResponse

NUM_BODIES: Final = 20
ROUNDS: Final = 20
BODY_BYTES: Final = {"2kb": 2_000, "250kb": 250_000}
REPLICAS: Final = (1, 2, 8, 16)


class _Unasked:
    """An engine that nothing is sent to."""

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> UpstreamResponse:
        raise NotImplementedError(f"{method} {path}")


def placing_costs() -> dict[str, float]:
    """Median microseconds by size of body and number of engines.

    From the body's view to the accounts of a try, first (``new``) and where an engine knows the
    prompt (``known``).
    """
    figures: dict[str, float] = {}
    for num_replicas in REPLICAS:
        for size, num_bytes in BODY_BYTES.items():
            new, known = _times(num_replicas, num_bytes)
            figures[f"{size}_{num_replicas}_new_us"] = 1e6 * new
            figures[f"{size}_{num_replicas}_known_us"] = 1e6 * known
    return figures


def _times(num_replicas: int, num_bytes: int) -> tuple[float, float]:
    replicas = _fleet(num_replicas)
    bodies = [_body(num_bytes, number) for number in range(NUM_BODIES)]
    views = [view_body(body) for body in bodies]
    rounds: list[list[float]] = []
    for _ in range(1 + ROUNDS):
        times = []
        for number, (body, view) in enumerate(zip(bodies, views, strict=True)):
            begun = time.perf_counter()
            scope = scope_of(view, "salt")
            request = replicas.request(f"session-{number}", scope, view, len(body))
            with next(replicas.attempts(request)):
                times.append(time.perf_counter() - begun)
        rounds.append(times)
    return median(rounds[0]), median(each for times in rounds[1:] for each in times)


def _fleet(num_replicas: int) -> ReplicaSet:
    metrics, routing = RouteMetrics(CollectorRegistry()), RoutingConfig()
    replicas = ReplicaSet(routing, metrics)
    for number in range(num_replicas):
        config = UpstreamConfig(name=f"e{number}", url="http://127.0.0.1:1")
        replica = Replica(config, _Unasked(), routing, metrics.of(config.name))
        replica.healthy = True
        replicas.replicas.append(replica)
    return replicas


def _body(num_bytes: int, number: int) -> bytes:
    rng = random.Random(number)  # noqa: S311  filler, no secret
    words = " ".join(str(rng.randrange(10**6)) for _ in range(num_bytes // 7))
    message = {"role": "user", "content": words[:num_bytes]}
    return json.dumps({"model": "m", "max_tokens": 300, "messages": [message]}).encode()
