"""Fusion of two drafts, the plain way: what the native one is checked against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline.caches.tree import ROOT, Source

LEARNING_RATE = 0.02
LEAST_GUESS = 1e-6
PRIOR = {
    "agreed": (0.6, 0.6, 0.0),
    "doubted": (0.5, 0.4, 0.0),
    "rival": (0.8, 0.4, 0.0),
    "alone": (0.9, 0.0, 0.0),
}
"""Weights of the two logits and of one, by what is known of a node."""

Path = tuple[int, ...]


@dataclass(frozen=True)
class Retrieved:
    """A draft from memory: (token, parent, probability, source) of each node.

    One whose source is the model leads to what memory drafts behind the model's tokens.
    """

    nodes: Sequence[tuple[int, int, float, int]]

    def paths(self) -> list[Path]:
        """The tokens that lead to each node, its own included."""
        paths: list[Path] = []
        for token, parent, _, _ in self.nodes:
            paths.append((() if parent == ROOT else paths[parent]) + (token,))
        return paths


@dataclass(frozen=True)
class View:
    """What the drafter read: (parent place, token, likeliest tokens with probabilities) of each."""

    places: Sequence[tuple[int, int, Sequence[tuple[int, float]]]]

    def paths(self) -> list[Path]:
        """The tokens that lead to each place; none to the first."""
        paths: list[Path] = []
        for parent, token, _ in self.places:
            paths.append(() if parent == ROOT else (*paths[parent], token))
        return paths


@dataclass
class Node:
    """A drafted token."""

    path: Path
    source: int = int(Source.MODEL)
    retrieved: float | None = None
    guessed: float | None = None
    evidence: str = "unread"
    inputs: tuple[float, float, float] = (0.0, 0.0, 1.0)
    probability: float = 0.0
    path_probability: float = 0.0


@dataclass
class Mixer:
    """Probabilities from two opinions."""

    weights: dict[str, list[float]] = field(
        default_factory=lambda: {name: list(prior) for name, prior in PRIOR.items()}
    )

    def probability(self, evidence: str, inputs: Sequence[float]) -> float:
        """P(hit) under the evidence's weights."""
        total = sum(w * x for w, x in zip(self.weights[evidence], inputs, strict=True))
        return 1 / (1 + math.exp(-total))

    def learn(self, evidence: str, inputs: Sequence[float], *, hit: bool) -> None:
        """One step of gradient on the outcome's log likelihood."""
        step = LEARNING_RATE * (hit - self.probability(evidence, inputs))
        weights = self.weights[evidence]
        for i, x in enumerate(inputs):
            weights[i] += step * x


def logit(p: float) -> float:
    """Log odds of a probability, bounded."""
    bounded = min(max(p, 1e-4), 1 - 1e-4)
    return min(max(math.log(bounded / (1 - bounded)), -8.0), 8.0)


class FusedTree:
    """Both drafts as one tree of paths. O(nodes squared)."""

    def __init__(
        self, retrieved: Retrieved, view: View, mixer: Mixer, min_probability: float
    ) -> None:
        self.nodes: dict[Path, Node] = {}
        self._min_probability = min_probability
        self._tops = {
            path: list(top) for path, (_, _, top) in zip(view.paths(), view.places, strict=True)
        }
        for path, (_, _, probability, source) in zip(
            retrieved.paths(), retrieved.nodes, strict=True
        ):
            node = self.nodes.setdefault(path, Node(path))
            if node.retrieved is None and source != Source.MODEL:
                node.retrieved, node.source = probability, source
        for path in view.paths()[1:]:
            self.nodes.setdefault(path, Node(path))
        self._grow((), mixer)

    def children(self, path: Path) -> list[Node]:
        """The nodes that continue a path, in the order in which they were made."""
        return [node for node in self.nodes.values() if node.path[:-1] == path]

    def chain(self, max_tokens: int) -> list[Node]:
        """The path of the greatest expected accepted length."""
        eligible = [node for node in self.nodes.values() if self._is_eligible(node)]
        order = {node.path: i for i, node in enumerate(self.nodes.values())}

        def best(path: Path) -> tuple[float, list[Node]]:
            if len(path) >= max_tokens:
                return 0.0, []
            found: tuple[float, list[Node]] = (0.0, [])
            for node in sorted(
                (n for n in eligible if n.path[:-1] == path), key=lambda n: order[n.path]
            ):
                below, rest = best(node.path)
                worth = node.path_probability + below
                if worth > found[0]:
                    found = worth, [node, *rest]
            return found

        return best(())[1]

    def tree(self, max_tokens: int, max_branches: int) -> list[Node]:
        """The likeliest paths, at most `max_branches` behind each node."""
        order = {path: i for i, path in enumerate(self.nodes)}
        allowed = [node for node in self.nodes.values() if self._is_eligible(node)]

        def rank(node: Node) -> tuple[float, int]:
            return -node.path_probability, order[node.path]

        def siblings(path: Path) -> list[Node]:
            return sorted((n for n in allowed if n.path[:-1] == path), key=rank)

        kept = [n for n in allowed if n in siblings(n.path[:-1])[:max_branches]]
        issued: list[Node] = []
        open_paths: set[Path] = {()}
        while len(issued) < max_tokens:
            candidates = [n for n in kept if n.path[:-1] in open_paths and n not in issued]
            if not candidates:
                break
            issued.append(min(candidates, key=rank))
            open_paths.add(issued[-1].path)
        return issued

    def learn(self, committed: Sequence[int], mixer: Mixer) -> None:
        """Learn from every node beside the committed path, as far as the tree has it."""
        for length, token in enumerate(committed):
            path = tuple(committed[:length])
            for node in self.children(path):
                if node.evidence != "unread":
                    mixer.learn(node.evidence, node.inputs, hit=node.path[-1] == token)
            if (*path, token) not in self.nodes:
                break

    def _grow(self, path: Path, mixer: Mixer) -> None:
        """Add what the drafter lists behind a path, weigh it, go on behind what is likely."""
        for token, probability in self._tops.get(path, ()):
            node = self.nodes.setdefault((*path, token), Node((*path, token)))
            if node.guessed is None:
                node.guessed = probability
        children = self.children(path)
        for node in children:
            self._weigh(node, mixer)
        self._normalise(path)
        for node in children:
            if self._is_eligible(node):
                self._grow(node.path, mixer)

    def _is_eligible(self, node: Node) -> bool:
        return node.path_probability > 0 and node.path_probability >= self._min_probability

    def _weigh(self, node: Node, mixer: Mixer) -> None:
        place = node.path[:-1]
        if place not in self._tops:
            node.probability = node.retrieved or 0.0
            return
        top = [p for _, p in self._tops[place]]
        unlisted = max(LEAST_GUESS, min([1 - sum(top), *top, 1.0]))
        guessed = unlisted if node.guessed is None else node.guessed
        beside = [n.retrieved for n in self.children(place) if n.retrieved is not None]
        if node.retrieved is not None:
            node.evidence = "doubted" if node.guessed is None else "agreed"
            node.inputs = logit(node.retrieved), logit(guessed), 1.0
        else:
            node.evidence = "rival" if beside else "alone"
            node.inputs = logit(guessed), logit(1 - sum(beside)) if beside else 0.0, 1.0
        node.probability = mixer.probability(node.evidence, node.inputs)

    def _normalise(self, path: Path) -> None:
        """Probabilities of siblings add up to one at most; paths multiply them."""
        children = self.children(path)
        above = self.nodes[path].path_probability if path else 1.0
        total = sum(node.probability for node in children)
        for node in children:
            if total > 1.0:
                node.probability /= total
            node.path_probability = above * node.probability
