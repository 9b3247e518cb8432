"""A request that an engine is reading or answering."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.adapters.decisions import Tally
from paceline.adapters.embedded.drafts import NO_DRAFT, Draft
from paceline.adapters.embedded.key_values import KeyValues
from paceline.adapters.embedded.reply import Reply
from paceline.adapters.embedded.requests import Job
from paceline.adapters.embedded.target import Row


@dataclass(slots=True, eq=False)
class Running:
    """What the engine knows of it.

    Attributes:
        job: what was asked, and who listens.
        reply: prompt and reply so far.
        key_values: of what was read.
        is_drafting: whether memory follows it.
        generation: of the store that its keys and values are kept in.
        tally: counts its decisions.
        num_cached: tokens of the prompt that were read for an earlier request.
        draft: what the next step verifies.
    """

    job: Job
    reply: Reply
    key_values: KeyValues
    is_drafting: bool
    generation: int
    tally: Tally
    num_cached: int = 0
    draft: Draft = NO_DRAFT

    @property
    def request_id(self) -> str:
        """Its name in the engine."""
        return self.job.request.info.request_id

    @property
    def num_unread(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.reply.tokens) - len(self.key_values)

    @property
    def is_answering(self) -> bool:
        """Whether its prompt was read: each round says something from now on."""
        return self.reply.num_said > 0

    def answering_row(self) -> Row:
        """What a step reads for it: what was said and not read yet, and the draft."""
        last = self.reply.tokens[len(self.key_values) :].tolist()
        return Row(
            request_id=self.request_id,
            key_values=self.key_values,
            token_ids=[*last, *self.draft.token_ids],
            parents=self.draft.parents,
            num_logits=len(self.draft.parents) + 1,
        )
