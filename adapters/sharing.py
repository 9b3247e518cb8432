"""A `Speculator` and the journal, arms and what replicas have seen, wired to each other.

The one way in which engines share.
"""

from __future__ import annotations

from typing import Any

from paceline.adapters.arm_choice import ArmChoice
from paceline.adapters.speculator import Speculator
from paceline.caches import ModelFingerprint
from paceline.caches.journal import Journal
from paceline.caches.policy_sync import PolicySync
from paceline.policies.bandits import PolicyState, decode_state


def open_shared_journal(
    speculator: Speculator, url: str, fingerprint: ModelFingerprint, **options: Any
) -> Journal:
    """A journal that tells a speculator's memory of everything; not started.

    What the speculator finishes from now on is published there.

    Args:
        speculator: whose memory it is.
        url: Redis.
        fingerprint: of the served model.
        options: further ones of `Journal`; they come before what is wired here.

    Raises:
        JournalError: `url` cannot be understood, or an option is out of bounds.
    """
    wiring: dict[str, Any] = {
        "origin": speculator.origin,
        "on_record": speculator.absorb,
        "on_again": speculator.absorb_again,
        "on_forget": speculator.forget_subject,
        "on_phrases": speculator.absorb_phrases,
        "on_warmed_up": speculator.drop_phrases,
        "quota_of": speculator.quota_of,
    }
    journal = Journal(url, fingerprint, **wiring | options)
    speculator.attach_journal(journal)
    return journal


def share_arms(
    arms: ArmChoice, url: str, fingerprint: ModelFingerprint, *, replica: str
) -> PolicySync[PolicyState]:
    """Keep what arms have brought in Redis, and learn from what other replicas have seen; started.

    Args:
        arms: whose.
        url: Redis.
        fingerprint: of the served model.
        replica: see `PolicySync`.

    Raises:
        JournalError: `url` cannot be understood, or Redis refuses us.
    """
    sync: PolicySync[PolicyState] = PolicySync(
        url, fingerprint, arms.shared, replica=replica, decode=decode_state
    )
    sync.start()
    arms.share(sync)
    return sync
