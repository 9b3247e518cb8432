"""Where things live in Redis. Nothing else in the project spells a key.

::

    paceline:1:{NAMESPACE}:scopes           set      names of the scopes that have a journal
    paceline:1:{NAMESPACE}:journal:SCOPE    stream   one entry a finished request, field ``r``: an
    encoded SequenceRecord

``1`` is the schema of the layout. NAMESPACE is a digest of model and tokenizer, in braces so that a
Redis Cluster keeps one model's keys together. SCOPE is the scope's name, percent-encoded: names are
free text and must not reach into other keys.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

from paceline.caches.records import ModelFingerprint

LAYOUT: Final = 1
RECORD_FIELD: Final = b"r"
DIGEST_BYTES: Final = 8


class JournalKeys:
    """Keys of one model's journal.

    Args:
        fingerprint: model and tokenizer whose tokens the journal holds.
    """

    def __init__(self, fingerprint: ModelFingerprint) -> None:
        named = f"{fingerprint.model}\0{fingerprint.tokenizer}".encode()
        digest = blake2b(named, digest_size=DIGEST_BYTES).hexdigest()
        self._prefix = f"paceline:{LAYOUT}:{{{digest}}}"
        self.scopes = f"{self._prefix}:scopes"

    def journal(self, scope: str) -> str:
        """Stream of a scope's records."""
        return f"{self._prefix}:journal:{quote(scope, safe='')}"


def redact_url(url: str) -> str:
    """`url` with its password replaced by ``***``: safe to log and to print."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user_and_password, _, host = parts.netloc.rpartition("@")
    user = user_and_password.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))
