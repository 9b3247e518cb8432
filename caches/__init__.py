"""The draft memory: native index, token trees, and the journal that shares what engines served."""

from paceline.caches._native import (
    CorpusSegment,
    DraftIndex,
    FusedBatch,
    Fusion,
    choose_nodes,
    count_likelier,
    sum_rounds,
)
from paceline.caches.records import (
    SCHEMA_VERSION,
    ModelFingerprint,
    SequenceRecord,
    tokenizer_digest,
)
from paceline.caches.snapshots import load_snapshot, save_snapshot
from paceline.caches.tree import ROOT, Source, TokenTree
from paceline.caches.tree_batch import TreeBatch

__all__ = [
    "ROOT",
    "SCHEMA_VERSION",
    "CorpusSegment",
    "DraftIndex",
    "FusedBatch",
    "Fusion",
    "ModelFingerprint",
    "SequenceRecord",
    "Source",
    "TokenTree",
    "TreeBatch",
    "choose_nodes",
    "count_likelier",
    "load_snapshot",
    "save_snapshot",
    "sum_rounds",
    "tokenizer_digest",
]
