"""Ways of naming a stream of sessions: by fingerprint, by our clusters, by scikit-learn's.

Each takes sessions in the order of arrival and says what each was named when it came, and what that
name has become at the end (clusters merge, scikit-learn's are renumbered).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.workloads.sessions import LabelledSession
from paceline.policies.text_features import Vectors
from paceline.policies.workload import fingerprint, workload_of
from paceline.policies.workload_clusters import ClusterSettings, Example, WorkloadClusters

FIRST_BATCH: Final = 64
BIRCH_THRESHOLDS: Final = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)
KMEANS_CLUSTERS: Final = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Named:
    """What became of sessions, one entry each, in the order of arrival.

    Attributes:
        at_first: name when it came.
        at_last: what that session's name is at the end.
        seconds: time that naming took, features not included.
    """

    at_first: list[str]
    at_last: list[str]
    seconds: list[float]

    @property
    def kept(self) -> float:
        """Share of sessions whose first name is still theirs at the end, aliases not counted."""
        same = map(str.__eq__, self.at_first, self.at_last)
        return sum(same) / max(len(self.at_first), 1)


Naming = Callable[[Sequence[LabelledSession], npt.NDArray[np.float32]], Named]
"""Names sessions by their vectors, float32, (sessions, parts, buckets)."""


def by_fingerprint(sessions: Sequence[LabelledSession], _vectors: npt.NDArray[np.float32]) -> Named:
    """What there is without clusters: "" where there is neither system prompt nor tools."""
    names, seconds = [], []
    for session in sessions:
        began = time.perf_counter()
        system, tools = session.system.encode(), session.tools.encode()
        names.append(workload_of(header=None, system=system, tools=tools))
        seconds.append(time.perf_counter() - began)
    return Named(names, names, seconds)


def by_clusters(
    sessions: Sequence[LabelledSession],
    vectors: npt.NDArray[np.float32],
    *,
    settings: ClusterSettings | None = None,
) -> Named:
    """Ours. A text that has been seen keeps its name, as in the proxy."""
    clusters = WorkloadClusters(settings)
    known: dict[str, str] = {}
    at_first, seconds = [], []
    for number, session in enumerate(sessions):
        text = fingerprint([part.encode() for part in session.parts()])
        began = time.perf_counter()
        if text not in known:
            change = clusters.place(Example(text, vectors[number], float(number)))
            clusters.apply(change)
            known[text] = change.name
            seconds.append(time.perf_counter() - began)
        at_first.append(known[text])
    return Named(at_first, [clusters.resolve(name) for name in at_first], seconds)


def by_birch(
    sessions: Sequence[LabelledSession], vectors: npt.NDArray[np.float32], *, threshold: float
) -> Named:
    """scikit-learn's BIRCH, one session at a time; its leaves are the kinds."""
    from sklearn.cluster import Birch

    return _by_scikit(Birch(threshold=threshold, n_clusters=None), vectors, first=1)


def by_kmeans(
    sessions: Sequence[LabelledSession], vectors: npt.NDArray[np.float32], *, num_clusters: int
) -> Named:
    """scikit-learn's MiniBatchKMeans: a first batch, then one session at a time."""
    from sklearn.cluster import MiniBatchKMeans

    k = min(num_clusters, len(sessions))
    model = MiniBatchKMeans(n_clusters=k, random_state=0, n_init=3)
    return _by_scikit(model, vectors, first=max(FIRST_BATCH, k))


def peers() -> Mapping[str, Sequence[tuple[str, Naming]]]:
    """scikit-learn's clusterers, each with the parameters among which it may choose."""
    return {
        "birch": [(f"{t}", partial(by_birch, threshold=t)) for t in BIRCH_THRESHOLDS],
        "kmeans": [(f"{k}", partial(by_kmeans, num_clusters=k)) for k in KMEANS_CLUSTERS],
    }


def _by_scikit(model: Any, vectors: Vectors, *, first: int) -> Named:
    # threads of its own would wait for each other longer than these few rows take
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return _online(model, vectors, first=first)


def _online(model: Any, vectors: Vectors, *, first: int) -> Named:
    flat = vectors.reshape(len(vectors), -1)
    flat = flat[:, flat.any(axis=0)]  # a part that none has tells nothing
    first = min(first, len(flat))
    began = time.perf_counter()
    model.partial_fit(flat[:first])
    at_first = list(model.predict(flat[:first]))
    seconds = [(time.perf_counter() - began) / first] * first
    for row in flat[first:]:
        began = time.perf_counter()
        model.partial_fit(row[None])
        at_first.append(model.predict(row[None])[0])
        seconds.append(time.perf_counter() - began)
    return Named([str(n) for n in at_first], [str(n) for n in model.predict(flat)], seconds)
