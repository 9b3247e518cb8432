"""The target as a teacher: it answers prompts or reads them, and says how sure it was.

Needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch

from paceline.online.lessons import Lesson
from paceline.online.looks import never

READ_LOGITS: Final = {"cpu": 1 << 26, "cuda": 1 << 28}
"""Most logits of texts that are read in one pass, by the kind of device: 256 MiB, 1 GiB."""
PART_LOGITS: Final = 1 << 21
"""Of which the likeliest are found at a time on a CPU: some 10 ms."""


class Teacher:
    """Writes replies with a target.

    Args:
        model: transformers causal LM in evaluation mode.
        top_k: likeliest tokens that are noted for each token, at most its vocabulary.
        temperature: 0 writes greedily.
    """

    def __init__(self, model: Any, *, top_k: int, temperature: float) -> None:
        self._model = model
        self._top_k = min(top_k, int(model.config.vocab_size))
        self._temperature = temperature
        eos = model.generation_config.eos_token_id
        self._device: torch.device = model.device
        self._ends = torch.tensor(
            [] if eos is None else eos if isinstance(eos, list) else [eos],
            dtype=torch.long,
            device=self._device,
        )

    @torch.inference_mode()
    def replies(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, seed: int
    ) -> list[Lesson]:
        """One reply to each prompt, up to an end token (included) or `max_tokens`.

        The noted probabilities are those before the temperature.

        Args:
            prompts: token ids, each at least one.
            max_tokens: of a reply.
            seed: of sampled replies; these also depend on which prompts are in the batch.
        """
        writing = _Writing(self._model, prompts)
        generator = torch.Generator(self._device).manual_seed(seed)
        noted: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        is_open = torch.ones(len(prompts), dtype=torch.bool, device=self._device)
        lengths = torch.zeros(len(prompts), dtype=torch.long, device=self._device)
        for _ in range(max_tokens):
            logprobs = writing.logits.log_softmax(dim=-1)
            top = logprobs.topk(self._top_k, dim=-1)
            said = self._choose(logprobs, generator)
            noted.append((said, top.indices, top.values))
            lengths += is_open
            is_open &= ~torch.isin(said, self._ends)
            if not is_open.any():
                break
            writing.say(said)
        columns = [torch.stack(column, dim=1).cpu() for column in zip(*noted, strict=True)]
        return [
            _lesson(prompt, *(column[i, :length] for column in columns))
            for i, (prompt, length) in enumerate(zip(prompts, lengths.tolist(), strict=True))
        ]

    @torch.inference_mode()
    def readings(
        self, texts: Sequence[Sequence[int]], *, pause: Callable[[], None] = never
    ) -> list[Lesson]:
        """What it would have said after each token of texts; a tenth of the price of replies.

        Texts that are read together are padded on their right, where no token looks.

        Args:
            texts: token ids, each at least two.
            pause: called between parts of what is done with the logits.
        """
        lessons: list[Lesson] = []
        vocab_size = int(self._model.config.vocab_size)
        most = READ_LOGITS.get(self._device.type, READ_LOGITS["cpu"])
        for part in _parts(texts, max(1, most // vocab_size)):
            token_ids = torch.zeros(len(part), max(map(len, part)) - 1, dtype=torch.long)
            for i, text in enumerate(part):
                token_ids[i, : len(text) - 1] = torch.tensor(text[:-1])
            output = self._model(input_ids=token_ids.to(self._device), use_cache=False)
            for text, logits in zip(part, output.logits, strict=True):
                said = torch.tensor(text[1:])
                lessons.append(
                    _lesson(text[:1], said, *self._likeliest(logits[: len(said)], pause))
                )
        return lessons

    def _likeliest(
        self, logits: torch.Tensor, pause: Callable[[], None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, log probabilities) of the likeliest tokens at each place, best first."""
        is_cpu = logits.device.type == "cpu"
        size = max(1, PART_LOGITS // logits.shape[-1]) if is_cpu else len(logits)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for part in logits.split(size):
            top = part.float().log_softmax(dim=-1).topk(self._top_k, dim=-1)
            found.append((top.indices.cpu(), top.values.cpu()))
            pause()
        return torch.cat([ids for ids, _ in found]), torch.cat([values for _, values in found])

    def _choose(self, logprobs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self._temperature == 0:
            return logprobs.argmax(dim=-1)
        probs = (logprobs / self._temperature).softmax(dim=-1)
        return torch.multinomial(probs, 1, generator=generator)[:, 0]


class _Writing:
    """A batch of sequences that grow, prompts padded on their left."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        from transformers import DynamicCache

        longest = max(map(len, prompts))
        self._model = model
        device = model.device
        self._mask = torch.zeros(len(prompts), longest, dtype=torch.long)
        token_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            token_ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            self._mask[i, longest - len(prompt) :] = 1
        self._mask = self._mask.to(device)
        self._cache = DynamicCache(config=model.config)
        self.logits = self._read(token_ids.to(device))

    def say(self, token_ids: torch.Tensor) -> None:
        """Add a token to each sequence, int64 (sequences,)."""
        more = torch.ones_like(token_ids[:, None])
        self._mask = torch.cat([self._mask, more], dim=1)
        self.logits = self._read(token_ids[:, None])

    def _read(self, token_ids: torch.Tensor) -> torch.Tensor:
        positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)[:, -token_ids.shape[1] :]
        output = self._model(
            input_ids=token_ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _parts(texts: Sequence[Sequence[int]], most: int) -> Iterator[Sequence[Sequence[int]]]:
    """Texts that follow one another and are at most `most` tokens with their padding, or one."""
    first, longest = 0, 0
    for i, text in enumerate(texts):
        longest = max(longest, len(text))
        if i > first and longest * (i + 1 - first) > most:
            yield texts[first:i]
            first, longest = i, len(text)
    if first < len(texts):
        yield texts[first:]


def _lesson(
    prompt: Sequence[int], said: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor
) -> Lesson:
    return Lesson(
        token_ids=np.concatenate([np.array(prompt, np.int32), said.numpy().astype(np.int32)]),
        num_prompt=len(prompt),
        top_ids=top_ids.numpy().astype(np.int32),
        top_logprobs=top_logprobs.numpy().astype(np.float16),
    )
