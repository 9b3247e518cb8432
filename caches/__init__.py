"""The draft memory: native index, token trees, and the journal that shares what engines served."""

from paceline.caches._native import CorpusSegment, DraftIndex
from paceline.caches.records import (
    SCHEMA_VERSION,
    ModelFingerprint,
    SequenceRecord,
    tokenizer_digest,
)
from paceline.caches.tree import ROOT, Source, TokenTree

__all__ = [
    "ROOT",
    "SCHEMA_VERSION",
    "CorpusSegment",
    "DraftIndex",
    "ModelFingerprint",
    "SequenceRecord",
    "Source",
    "TokenTree",
    "tokenizer_digest",
]
