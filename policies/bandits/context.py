"""Where a policy decides: whose request, of which kind, how long, beside how many others."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Self

import msgspec

MOST_IN_BATCH: Final = 256
LEAST_CONTEXT: Final = 512
MOST_CONTEXT: Final = 131_072


class PolicyContext(msgspec.Struct, frozen=True, cache_hash=True):
    """What is learned apart.

    Make one with `of`, and keep it while it holds: its hash is computed once.

    Attributes:
        key: the tenant's sharing scope; nothing of one key reaches another. The same in every
            replica where states are shared.
        workload: name of the kind of work, "" if unknown.
        batch_bucket: of the requests in the batch, see `batch_bucket`.
        context_bucket: of the request's tokens, see `context_bucket`.
    """

    key: int | str
    workload: str
    batch_bucket: int
    context_bucket: int

    @classmethod
    def of(
        cls, *, key: int | str, workload: str = "", num_requests: int = 1, num_tokens: int = 0
    ) -> Self:
        """The context of a request.

        Args:
            key: sharing scope.
            workload: kind of work.
            num_requests: requests in the batch, itself included.
            num_tokens: tokens of its context.
        """
        return cls(key, workload, batch_bucket(num_requests), context_bucket(num_tokens))


def batch_bucket(num_requests: int) -> int:
    """The largest power of two that is not above `num_requests`, from 1 to `MOST_IN_BATCH`."""
    return _floor(num_requests, 1, MOST_IN_BATCH)


def context_bucket(num_tokens: int) -> int:
    """The largest power of two that is not above `num_tokens`.

    From `LEAST_CONTEXT`, for all shorter ones, to `MOST_CONTEXT`.
    """
    return _floor(num_tokens, LEAST_CONTEXT, MOST_CONTEXT)


def next_bucket(bucket: int) -> int:
    """Least number of the context bucket after one; one that nobody reaches after the last."""
    return 2 * bucket if bucket < MOST_CONTEXT else 1 << 62


@lru_cache(maxsize=4096)
def _floor(number: int, least: int, most: int) -> int:
    return 1 << (min(max(number, least), most).bit_length() - 1)
