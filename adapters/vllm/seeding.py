"""Seeded sampling on devices whose random generators have no offset.

vLLM samples a row for each partial prefill too, throws the token away and rewinds the request's
generator by its offset. PyTorch's CPU generator has none and raises, which ends the whole engine:
one client's ``seed`` would take everybody down.
"""

from __future__ import annotations

from typing import Any

import torch


class RewindableGenerator(torch.Generator):
    """A CPU generator that can undo what it drew since `mark`.

    Behaves like the generator it was copied from.
    """

    _marked: torch.Tensor

    def mark(self) -> None:
        """Remember the state to come back to."""
        self._marked = self.get_state()

    def get_offset(self) -> int:
        """A constant: only differences to it are ever passed to `set_offset`."""
        return 0

    def set_offset(self, _offset: int) -> None:
        """Return to the state of the last `mark`."""
        self.set_state(self._marked)


def make_rewindable(runner: Any) -> None:
    """Make every generator in the runner's batch rewindable to its state now.

    O(seeded requests).
    """
    generators = runner.input_batch.generators
    for row, generator in generators.items():
        if not isinstance(generator, RewindableGenerator):
            rewindable = RewindableGenerator()
            rewindable.set_state(generator.get_state())
            generators[row] = rewindable
            runner.requests[runner.input_batch.req_ids[row]].generator = rewindable
        generators[row].mark()
