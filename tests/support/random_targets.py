"""Targets of the embedded engine on small models of random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from small_models import random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.target import Target


class Spelling:
    """Stands in for a tokenizer where only tokens count: a letter each."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """One letter a token."""
        return "".join(chr(65 + token_id % 26) for token_id in token_ids)


def make_target(seed: int = 3, **changes: Any) -> Target:
    """A Llama that never ends by itself; `changes` of its configuration."""
    from paceline.adapters.embedded.target import Target

    target = Target(random_model("llama", seed=seed, **changes), Spelling())
    target.eos_token_ids = frozenset()
    return target
