"""Whether sampled replies fit what transformers' own forward pass promises for every prefix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.benchmarks.exact.frequencies import Frequencies


def promised(
    logits: Any, *, temperature: float, top_p: float = 1.0, top_k: int | None = None
) -> Any:
    """The distribution to draw from after each prefix, computed the plain way."""
    import torch

    probs = torch.softmax(logits.double() / temperature, dim=-1)
    if top_k is not None:
        least = probs.topk(top_k, dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < least, 0.0)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    if top_p < 1.0:
        probs = torch.tensor([cut(row, top_p) for row in probs.tolist()], dtype=torch.float64)
    return probs / probs.sum(dim=-1, keepdim=True)


def cut(probs: list[float], top_p: float) -> list[float]:
    """The likeliest until they reach `top_p`, zeros for the others."""
    kept, total = [0.0] * len(probs), 0.0
    for token in sorted(range(len(probs)), key=lambda t: -probs[t]):
        if total < top_p:
            kept[token] = probs[token]
        total += probs[token]
    return kept


def frequencies(
    model: Any,
    replies: Iterable[tuple[Sequence[int], Sequence[int]]],
    sampling: dict[str, Any],
) -> dict[str, Frequencies]:
    """Counts by token, by the token's rank, and by the token together with the one before it.

    Args:
        model: the target, a transformers model.
        replies: prompt and reply, at least a token each.
        sampling: what `promised` takes.
    """
    import torch

    from paceline.benchmarks.exact.frequencies import Frequencies, by_rank

    vocabulary = model.config.vocab_size
    counts = {
        "token": Frequencies(vocabulary),
        "rank": Frequencies(4),
        "pair": Frequencies(vocabulary**2),
    }
    for prompt_ids, reply in replies:
        text = torch.tensor([[*prompt_ids, *reply]])
        with torch.inference_mode():
            logits = model(input_ids=text).logits[0, len(prompt_ids) - 1 : -1]
        probs, drawn = promised(logits, **sampling), torch.tensor(reply)
        counts["token"].add(probs, drawn)
        counts["rank"].add(*by_rank(probs, reply, borders=(1, 2, 3, 5)))
        before = text[0, len(prompt_ids) - 1 : -1]
        pairs = torch.zeros(len(reply), vocabulary, vocabulary, dtype=torch.float64)
        pairs[torch.arange(len(reply)), before] = probs
        counts["pair"].add(pairs.flatten(1), before * vocabulary + drawn)
    return counts
