"""Memory and a small model in one chain, as the vLLM worker fuses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from paceline.adapters.chain_fusing import ChainFuser
from paceline.adapters.embedded.key_values import KeyValues
from paceline.adapters.embedded.prefixes import num_common
from paceline.adapters.embedded.target import Row, Target
from paceline.adapters.model_chains import Continued, ModelChains
from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.context import Context
from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter

TOP: Final = 8
BRANCHES: Final = 4
SPARE_NODES: Final = 2
KEY: Final = 1
"""A drafter serves one scope, whose requests share what fusion learns."""
PREFILL_TOKENS: Final = 512


class GreedyChains:
    """A small model that drafts its likeliest tokens, one request at a time.

    Args:
        model: drafts.
        num_steps: tokens of a chain, a pass each.
    """

    def __init__(self, model: Target, num_steps: int) -> None:
        self.num_passes = 0
        self._model = model
        self._num_steps = num_steps
        self._key_values: dict[int, KeyValues] = {}
        self._held: dict[int, TokenIds] = {}

    def begin(self, request_id: int) -> None:
        """Open a request; its prompt is read with the first chain."""
        self._key_values[request_id] = self._model.sequence()
        self._held[request_id] = np.empty(0, np.int32)

    def finish(self, request_id: int) -> None:
        """Close a request."""
        del self._key_values[request_id], self._held[request_id]

    def draft(self, request_id: int, tokens: TokenIds) -> ModelChains:
        """A chain behind `tokens`, which are all of the request's."""
        key_values = self._key_values[request_id]
        held = min(num_common(self._held[request_id], tokens), len(tokens) - 1)
        key_values.crop(held)
        while len(tokens) - held > PREFILL_TOKENS:
            self._read(key_values, tokens[held : held + PREFILL_TOKENS])
            held += PREFILL_TOKENS
        unread, chain, tops = tokens[held:], [], []
        for _ in range(self._num_steps):
            values, likeliest = self._read(key_values, unread).topk(TOP)
            tops.append((likeliest.numpy(), values.numpy()))
            chain.append(int(likeliest[0]))
            unread = np.array(chain[-1:], np.int32)
        self._held[request_id] = np.append(tokens, np.array(chain[:-1], np.int32))
        return ModelChains(
            np.array([chain], np.int32),
            np.array([[token_ids for token_ids, _ in tops]], np.int32),
            np.array([[probs for _, probs in tops]], np.float32),
            np.ones(1, np.bool_),
        )

    def _read(self, key_values: KeyValues, token_ids: TokenIds) -> torch.Tensor:
        """Probabilities of the next token."""
        self.num_passes += 1
        row = Row(request_id="", key_values=key_values, token_ids=token_ids.tolist())
        logits = self._model.in_vocabulary(self._model.forward([row])[0])
        return logits[-1].softmax(dim=-1)


@dataclass(slots=True)
class _Open:
    """A request."""

    context: Context
    news: list[int] = field(default_factory=list)
    """Committed since the last draft."""


class ChainedDrafter:
    """Chains of at most so many tokens a step; the model drafts in each.

    Args:
        model: drafts; its tokenizer is the one that the traces are rendered with.
        num_nodes: most tokens.
        min_probability: where a chain stops.
        max_steps: passes of the model a step.
        continues: whether memory is asked what follows the model's tokens.
    """

    def __init__(
        self,
        model: Target,
        num_nodes: int,
        *,
        min_probability: float,
        max_steps: int,
        continues: bool,
    ) -> None:
        self._memory = PacelineDrafter(min_probability=min_probability, max_branches=BRANCHES)
        self._chains = GreedyChains(model, max_steps)
        self._fuser = ChainFuser(min_probability=min_probability)
        self._num_nodes = num_nodes
        self._continues = continues
        self._open: dict[int, _Open] = {}

    @property
    def num_passes(self) -> int:
        """Forward passes of the model so far."""
        return self._chains.num_passes

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Open a request."""
        self._memory.start(request_id, session_id, scope, prompt_ids)
        self._chains.begin(request_id)
        self._open[request_id] = _Open(Context(prompt_ids))

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A batch of one, greedy."""
        opened, name = self._open[request_id], str(request_id)
        self._fuser.learn({name: opened.news} if opened.news else {})
        opened.news = []
        limit = min(max_tokens, self._num_nodes)
        trees = self._memory.propose_batch([request_id], [SPARE_NODES * limit])
        recalled = self._fuser.recall([name], [KEY], [limit], trees)
        chains = self._chains.draft(request_id, opened.context.token_ids)
        continued = None
        if self._continues:
            supposed = self._fuser.suppose(recalled, chains)
            found = self._memory.propose_behind(
                [request_id] * len(supposed.rows), supposed.token_ids, supposed.max_tokens
            )
            continued = Continued(supposed, found)
        return Draft(self._fuser.fuse(recalled, chains, continued)[0])

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append verified tokens."""
        self._memory.commit(request_id, token_ids)
        self._open[request_id].context.extend(token_ids)
        self._open[request_id].news += token_ids

    def finish(self, request_id: int) -> None:
        """Close a request."""
        self._memory.finish(request_id)
        self._chains.finish(request_id)
        del self._open[request_id]

    def memory(self) -> Memory | None:
        """Of memory, by its own account."""
        return self._memory.memory()
