"""Reading what speculation did from vLLM's own counters."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from typing import Final, Self

TIMEOUT_SECONDS: Final = 10.0
COUNTERS: Final = {
    "vllm:generation_tokens_total": "generated",
    "vllm:request_success_total": "requests",
    "vllm:spec_decode_num_draft_tokens_total": "drafted",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted",
}


@dataclass(frozen=True, slots=True)
class SpeculationCounts:
    """Totals of one engine; differences of two readings describe what lies between them.

    Attributes:
        requests: finished requests.
        generated: output tokens.
        drafted: tokens the target verified.
        accepted: drafted tokens it accepted.
    """

    requests: float = 0
    generated: float = 0
    drafted: float = 0
    accepted: float = 0

    def __add__(self, other: Self) -> SpeculationCounts:
        return self._combined(other, 1)

    def __sub__(self, other: Self) -> SpeculationCounts:
        return self._combined(other, -1)

    @property
    def tokens_per_step(self) -> float:
        """Decoded tokens per decode step.

        A request's first token comes from its prefill and is left out.
        """
        decoded = self.generated - self.requests
        steps = decoded - self.accepted
        return decoded / steps if steps > 0 else float("nan")

    @property
    def acceptance(self) -> float:
        """Accepted per drafted token, NaN if none was drafted."""
        return self.accepted / self.drafted if self.drafted else float("nan")

    def _combined(self, other: SpeculationCounts, sign: int) -> SpeculationCounts:
        return SpeculationCounts(
            self.requests + sign * other.requests,
            self.generated + sign * other.generated,
            self.drafted + sign * other.drafted,
            self.accepted + sign * other.accepted,
        )


def read_speculation(url: str) -> SpeculationCounts:
    """Totals from the ``/metrics`` of the vLLM server at `url`, summed over labels."""
    totals = dict.fromkeys(COUNTERS.values(), 0.0)
    with urllib.request.urlopen(f"{url}/metrics", timeout=TIMEOUT_SECONDS) as response:  # noqa: S310  own URL
        for line in response.read().decode().splitlines():
            name = line.partition("{")[0].partition(" ")[0]
            if name in COUNTERS:
                totals[COUNTERS[name]] += float(line.rpartition(" ")[2])
    return SpeculationCounts(**totals)
