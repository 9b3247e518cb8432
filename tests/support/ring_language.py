"""A language whose rule can be learned, and a target that has learned it.

Each kind of talk has the words in a ring of its own; a reply goes round it from the prompt's last
word on. So the last word and the kind say what comes next, and no two prompts are answered alike:
what is learned from some replies is put to the test by others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from small_chats import word_tokenizer
from small_models import VOCABULARY, random_model

FIRST_WORD: Final = 2
"""0 is what the tokenizer does not know, 1 ends a message."""
END: Final = VOCABULARY - 1
"""Would end a reply, and stands in none."""
NUM_HEAD: Final = 6
"""Words of a prompt that say which kind it is of."""
REPLY_TOKENS: Final = 24
"""Of the replies that the target learns from."""
STEPS: Final = 120
BATCH: Final = 32
LEARNING_RATE: Final = 1e-2
NOT_LEARNED: Final = -100
"""What transformers wants as the label of a token that is not predicted."""


class RingLanguage:
    """Prompts and what is said to them, the same each time.

    Args:
        num_kinds: of talk; there are 94 prompts of each.
    """

    def __init__(self, num_kinds: int = 6) -> None:
        rng = np.random.default_rng(5)
        words = np.arange(FIRST_WORD, END)
        self._heads = rng.integers(FIRST_WORD, END, (num_kinds, NUM_HEAD))
        self._next = np.zeros((num_kinds, VOCABULARY), np.int64)
        for ring in self._next:
            order = rng.permutation(words)
            ring[order] = np.roll(order, -1)
        kinds, starts = np.meshgrid(np.arange(num_kinds), words)
        self._prompts = rng.permutation(np.stack([kinds.ravel(), starts.ravel()], axis=1))

    def prompts(self) -> list[list[int]]:
        """All there are, each once, the kinds mixed."""
        return self.texts(0).tolist()

    def texts(self, num_tokens: int) -> npt.NDArray[np.int64]:
        """All prompts, each with as many tokens of its reply: (num_prompts, tokens)."""
        kinds, last = self._prompts.T
        columns = [last]
        for _ in range(num_tokens):
            last = self._next[kinds, last]
            columns.append(last)
        return np.concatenate([self._heads[kinds], np.stack(columns, axis=1)], axis=1)

    def write_target(self, folder: Path) -> Path:
        """A model of four layers that speaks the language, with its tokenizer; takes some seconds.

        Its first and last layer are as random as they were made: a drafter cut from them has the
        words but not the rule, which stands in the layers between.
        """
        model = random_model(
            "llama",
            num_hidden_layers=4,
            hidden_size=64,
            eos_token_id=END,
            initializer_range=0.02,  # decided: what is drafted at first is next to nothing
        )
        self._teach(model)
        model.save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
        return folder

    def _teach(self, model: Any) -> None:
        """Teach all but embeddings and outer layers, and look whether the rule was learned."""
        import torch

        body = model.model
        learned = (*body.layers[1:-1], body.norm, model.lm_head)
        parameters = [each for part in learned for each in part.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
        texts = torch.from_numpy(self.texts(REPLY_TOKENS))
        labels = texts.clone()
        labels[:, : NUM_HEAD + 1] = NOT_LEARNED
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            chosen = torch.randint(len(texts), (BATCH,), generator=generator)
            optimiser.zero_grad()
            model(texts[chosen], labels=labels[chosen]).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            rate.step()
        with torch.inference_mode():
            said = model(texts).logits.argmax(dim=-1)[:, NUM_HEAD:-1]
        share = float((said == texts[:, NUM_HEAD + 1 :]).float().mean())
        assert share > 0.99, f"the target says only {share:.1%} of the tokens by the rule"
