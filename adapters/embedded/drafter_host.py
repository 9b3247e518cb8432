"""The embedded engine's side of a drafter that changes while it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from paceline.adapters.drafter_files import check_weights, read_weights, require_vocabulary
from paceline.adapters.drafter_swap import Swap
from paceline.adapters.drafter_tally import DrafterTally
from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.model_drafter import require_same_tokens
from paceline.adapters.embedded.target import Target


class EmbeddedDrafterHost:
    """Loads drafters for an engine and hands them over (`DrafterHost`).

    Args:
        engine: may run or not.
        load: reads a folder; by itself with the trimmed head that its record names, to compute in
            what the target computes in.
    """

    def __init__(
        self, engine: EmbeddedEngine, *, load: Callable[[Path], Target] | None = None
    ) -> None:
        self._engine = engine
        self._load = load or partial(Target.load_drafter, dtype=engine.target.dtype)

    @property
    def tally(self) -> DrafterTally:
        """How often the drafter that runs is right."""
        return self._engine.tally

    @property
    def num_rounds(self) -> int:
        """Rounds of requests so far."""
        return self._engine.counts.rounds

    def load(self, folder: Path) -> Target:
        """The drafter in a folder.

        Raises:
            DamagedDrafterError: its files are not those of a drafter of this target.
        """
        require_vocabulary(folder, int(self._engine.target.model.config.vocab_size))
        check_weights(folder, read_weights(folder))
        model = self._load(folder)
        require_same_tokens(model, self._engine.target)
        return model

    def offer(self, swap: Swap) -> None:
        """Have the engine take it before its next round."""
        self._engine.drafter_swaps.offer(swap)

    def withdraw(self, swap: Swap) -> bool:
        """Take it back; False if the engine has taken it."""
        return self._engine.drafter_swaps.withdraw(swap)

    def settle(self) -> None:
        """Take what is offered; only before the engine is started."""
        self._engine.drafter_swaps.take()

    def judge(self, *, is_judging: bool) -> None:
        """Whether a new version is judged."""
        self._engine.is_judging = is_judging
