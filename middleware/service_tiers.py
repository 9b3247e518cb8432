"""OpenAI's ``service_tier`` in terms of an engine's priorities.

A request may come later than its tenant's policy says, never sooner: ``flex`` does, the tiers that
are paid for elsewhere (``priority``, ``scale``) are served as ``default``. What is granted is
written into the request, so that an engine that tells its tier back tells the right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from paceline.middleware.request_body import BodyView

FLEX: Final = "flex"
DEFAULT: Final = "default"
UNGRANTED: Final = ("priority", "scale")
FLEX_PRIORITY: Final = 500
"""Half way down the policy's scale of 0 to 1000, the larger the later."""
TIER_HEADER: Final = b"x-paceline-service-tier"


@dataclass(frozen=True, slots=True)
class ServedTier:
    """How a request is served.

    Attributes:
        priority: for an engine that schedules by it; 0 for none.
        granted: its tier, "" where the client asked for none.
        is_changed: whether that is another than the client asked for.
    """

    priority: int
    granted: str = ""
    is_changed: bool = False

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer's head says of it."""
        return [(TIER_HEADER, self.granted.encode())] if self.granted else []


def served_tier(view: BodyView, priority: int, *, is_scheduled: bool) -> ServedTier:
    """The tier that a request gets. O(1).

    Args:
        view: of its body.
        priority: its policy's.
        is_scheduled: whether engines schedule by priorities.
    """
    priority = priority if is_scheduled else 0
    try:
        asked = msgspec.json.decode(view.service_tier, type=str)
    except msgspec.DecodeError:
        return ServedTier(priority)
    if asked == FLEX and is_scheduled:
        return ServedTier(max(priority, FLEX_PRIORITY), FLEX)
    if asked in (FLEX, *UNGRANTED):
        return ServedTier(priority, DEFAULT, is_changed=True)
    return ServedTier(priority, DEFAULT)
