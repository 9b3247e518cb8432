"""A drafter that learns, and how well it does on lessons. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from paceline.drafter_folder import HeldOut
from paceline.errors import ConfigError
from paceline.online.cutting import decoder_layers
from paceline.online.greedy_replay import ReplayCounts, count_replay, total
from paceline.online.lessons import Lesson
from paceline.online.looks import never
from paceline.online.micro_steps import after_part
from paceline.online.objective import losses
from paceline.online.settings import Objective

HEAD_LOGITS: Final = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Most logits that are held at a time, by the kind of device; on a CPU each such part is one that
others may have to wait for."""
BODY_TOKENS: Final = {"cpu": 1024, "cuda": 1 << 30}
"""Most tokens that the body reads at a time, padding included, or one lesson: where others may want
the processor, attention over several long ones would be too long a part."""
SCALES: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Configuration of models that change what their head gives."""


class Student:
    """A drafter of which layers and norm learn; embeddings and head stay the target's.

    Args:
        model: transformers causal LM in float32, see `cutting.decoder_layers`; where it lies, it
            learns.
        kept_token_ids: tokens that its head is trimmed to, empty if it is whole.

    Raises:
        ConfigError: it is not built like a Llama, or changes its head's logits.
    """

    def __init__(self, model: Any, kept_token_ids: Sequence[int] = ()) -> None:
        layers = decoder_layers(model)
        scaled = [name for name in SCALES if getattr(model.config, name, None) not in {None, 1.0}]
        if scaled:
            raise ConfigError(
                f"{type(model).__name__} has {', '.join(scaled)}, which training does not know; "
                "give a model without"
            )
        self.model = model.eval().requires_grad_(False)  # without dropout: the same every time
        self.trained: list[torch.nn.Parameter] = []
        for part in (layers, model.model.norm):
            self.trained.extend(part.requires_grad_(True).parameters())
        vocab_size = int(model.config.vocab_size)
        self._device: torch.device = model.device
        kept = torch.tensor(kept_token_ids or range(vocab_size), dtype=torch.long)
        rows = torch.full((vocab_size,), -1).index_copy_(0, kept, torch.arange(len(kept)))
        self._rows = rows.to(self._device)
        kept = self._token_ids = kept.to(self._device)
        self._positions = max(
            1, HEAD_LOGITS.get(self._device.type, HEAD_LOGITS["cpu"]) // len(kept)
        )
        """Whose logits are held at a time."""
        head = model.lm_head
        self._weight = head.weight[kept] if kept_token_ids else head.weight
        self._bias = None if head.bias is None else head.bias[kept]

    def learn(
        self,
        lessons: Sequence[Lesson],
        *,
        objective: Objective = "forward_kl",
        total_weight: float | None = None,
        pause: Callable[[], None] = never,
    ) -> float:
        """Add the gradients of the objective's mean over the tokens of the replies.

        Memory: activations of the body, logits of `HEAD_LOGITS`.

        Args:
            lessons: maybe none.
            objective: what is minimised.
            total_weight: what the tokens of the whole step count for together, where these lessons
                are part of it.
            pause: called between parts of the head.

        Returns:
            Their part of that mean.
        """
        if total_weight is None:
            total_weight = weight_of(lessons)
        if not lessons or total_weight <= 0:
            return 0.0
        return sum(
            self._learn_part(part, objective, total_weight, pause)
            for part in _parts(lessons, BODY_TOKENS.get(self._device.type, BODY_TOKENS["cpu"]))
        )

    def _learn_part(
        self,
        lessons: Sequence[Lesson],
        objective: Objective,
        total_weight: float,
        pause: Callable[[], None],
    ) -> float:
        """As `learn`, for lessons that the body reads together."""
        hidden = self._hidden(lessons)
        top_ids = torch.from_numpy(np.concatenate([it.top_ids for it in lessons]))
        top_ids = top_ids.to(self._device).long()
        logprobs = torch.from_numpy(np.concatenate([it.top_logprobs for it in lessons]))
        logprobs = logprobs.to(self._device).float()
        weights = torch.from_numpy(np.concatenate([weights_of(it) for it in lessons]))
        weights = weights.to(self._device) / total_weight
        # through the head a part at a time: the logits of all would be the largest tensor by far
        cut = hidden.detach().requires_grad_(True)
        total = torch.zeros((), device=self._device)
        for part, ids, p, weight in zip(
            *(it.split(self._positions) for it in (cut, top_ids, logprobs, weights)), strict=True
        ):
            each = losses(objective, after_part(pause, self._logits(part)), self._rows[ids], p)
            loss = (each * weight).sum()
            pause()
            loss.backward()
            total += loss.detach()
            pause()
        hidden.backward(cut.grad)
        return float(total)

    @torch.inference_mode()
    def guesses(
        self, lessons: Sequence[Lesson], *, pause: Callable[[], None] = never
    ) -> torch.Tensor:
        """Its likeliest token at each token of the replies, one reply behind the other, int64.

        Args:
            lessons: at least one.
            pause: called between parts of the head.
        """
        hidden = self._hidden(lessons)
        rows: list[torch.Tensor] = []
        for part in hidden.split(self._positions):
            rows.append(self._logits(part).argmax(-1))
            pause()
        return self._token_ids[torch.cat(rows)].cpu()

    def _hidden(self, lessons: Sequence[Lesson]) -> torch.Tensor:
        """Last hidden states that predict the replies' tokens, (replies' tokens, hidden)."""
        longest = max(len(lesson.token_ids) for lesson in lessons)
        # padded on the right, where no token looks
        token_ids = torch.zeros(len(lessons), longest, dtype=torch.long)
        where = torch.zeros(len(lessons), longest, dtype=torch.bool)
        for i, lesson in enumerate(lessons):
            token_ids[i, : len(lesson.token_ids)] = torch.from_numpy(lesson.token_ids)
            where[i, lesson.num_prompt - 1 : len(lesson.token_ids) - 1] = True
        output = self.model.model(input_ids=token_ids.to(self._device), use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state[where.to(self._device)]
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, self._weight, self._bias)


def weights_of(lesson: Lesson) -> npt.NDArray[np.float32]:
    """What each token of a lesson's reply counts for, float32 (reply,)."""
    if lesson.weights is None:
        return np.ones(lesson.num_reply, np.float32)
    return lesson.weights.astype(np.float32)


def weight_of(lessons: Sequence[Lesson]) -> float:
    """What the tokens of the replies count for together."""
    return float(sum(weights_of(lesson).sum(dtype=np.float64) for lesson in lessons))


def examine(
    student: Student, lessons: Sequence[Lesson], *, chain_tokens: int, batch: int
) -> HeldOut:
    """How a drafter does on lessons.

    Args:
        student: not changed.
        lessons: at least one.
        chain_tokens: longest chain.
        batch: lessons read at a time.
    """
    counts = total(replay_lessons(student, lessons, chain_tokens=chain_tokens, batch=batch))
    return HeldOut(
        num_tokens=counts.num_tokens,
        agreement=counts.agreement,
        accepted_length=counts.accepted_length,
        chain_tokens=chain_tokens,
    )


def replay_lessons(
    student: Student,
    lessons: Sequence[Lesson],
    *,
    chain_tokens: int,
    batch: int,
    said: Sequence[npt.NDArray[np.bool_]] | None = None,
    pause: Callable[[], None] = never,
) -> list[ReplayCounts]:
    """What greedy drafting would have accepted of each lesson.

    Args:
        student: not changed.
        lessons: maybe none.
        chain_tokens: longest chain.
        batch: lessons read at a time.
        said: of each lesson's reply, which tokens the target said; the others were read, and take
            no round. None: all that count for something.
        pause: called between parts of the head, and after each lesson.
    """
    found: list[ReplayCounts] = []
    for start in range(0, len(lessons), batch):
        part = lessons[start : start + batch]
        guesses = student.guesses(part, pause=pause).numpy()
        for i, lesson in enumerate(part, start):
            mine, guesses = guesses[: lesson.num_reply], guesses[lesson.num_reply :]
            is_said = weights_of(lesson) > 0 if said is None else said[i]
            found.append(
                count_replay(
                    mine,
                    lesson.token_ids[lesson.num_prompt :],
                    lesson.top_ids[:, 0],
                    is_said=is_said,
                    chain_tokens=chain_tokens,
                )
            )
            pause()
    return found


def _parts(lessons: Sequence[Lesson], most: int) -> Iterator[Sequence[Lesson]]:
    """Lessons that follow one another and are at most `most` tokens with their padding, or one."""
    first, longest = 0, 0
    for i, lesson in enumerate(lessons):
        longest = max(longest, len(lesson.token_ids))
        if i > first and longest * (i + 1 - first) > most:
            yield lessons[first:i]
            first, longest = i, len(lesson.token_ids)
    yield lessons[first:]
