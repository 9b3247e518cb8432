"""Telling prompts apart by nothing but the times and sizes of their streams' packets.

As in arXiv 2411.01076: a classifier is trained on traces of known prompts and names the prompts of
others. The features are the sequence of packet sizes, the times between packets, and both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.leak.eavesdropper import Trace

MAX_READS: Final = 160
"""Reads of a stream that are told apart; of those behind, number and bytes are features too."""
NUM_TREES: Final = 300
FEATURES: Final = ("sizes", "times", "length", "all")
CLASSIFIERS: Final = ("forest", "linear")

Matrix = npt.NDArray[np.float64]


def features_of(traces: Sequence[Trace], kind: str) -> Matrix:
    """Features, float64, (num_traces, num_features).

    Args:
        traces: what was seen.
        kind: ``sizes``, bytes of each read; ``times``, seconds between reads; ``length``, number of
            reads, bytes and seconds of the whole; ``all`` of them.
    """
    parts: list[Matrix] = []
    if kind in ("sizes", "all"):
        parts.append(_padded([trace.sizes for trace in traces]))
    if kind in ("times", "all"):
        parts.append(_padded([np.diff(trace.times, prepend=0.0) for trace in traces]))
    if kind in ("length", "all"):
        lengths = [(len(t.sizes), sum(t.sizes), t.seconds) for t in traces]
        parts.append(np.array(lengths, np.float64))
    return np.hstack(parts)


def accuracy(traces: Sequence[Trace], kind: str, classifier: str, *, folds: int) -> float:
    """Share of traces whose prompt is named rightly by one trained on other repeats.

    Repeats are dealt into `folds`; each fold is named by a classifier trained on the others.
    Deterministic.
    """
    features = features_of(traces, kind)
    prompts = np.array([trace.prompt for trace in traces])
    fold = np.array([trace.repeat for trace in traces]) % folds
    right = 0
    for number in range(folds):
        test = fold == number
        model = _classifier(classifier)
        model.fit(features[~test], prompts[~test])
        right += int(np.sum(model.predict(features[test]) == prompts[test]))
    return right / len(traces)


def _classifier(name: str) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "forest":
        return RandomForestClassifier(NUM_TREES, random_state=0)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))


def _padded(rows: Sequence[Sequence[float] | Matrix]) -> Matrix:
    """The rows' first values, zeros behind those that have fewer."""
    matrix = np.zeros((len(rows), MAX_READS))
    for target, row in zip(matrix, rows, strict=True):
        kept = row[:MAX_READS]
        target[: len(kept)] = kept
    return matrix
