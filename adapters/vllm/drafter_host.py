"""vLLM's side of a drafter that changes while it runs."""

from __future__ import annotations

from pathlib import Path

from paceline.adapters.drafter_swap import Swap
from paceline.adapters.drafter_tally import DrafterTally
from paceline.adapters.vllm.drafter_weights import DrafterWeights, read_drafter
from paceline.adapters.vllm.fused import FusedProposer


class VllmDrafterHost:
    """Loads drafters for a worker and hands them over (`DrafterHost`).

    Args:
        proposer: drafts in the worker.
        folder: of the drafter that vLLM was started with; others have its shapes.
        pin: whether a GPU computes.
    """

    def __init__(self, proposer: FusedProposer, folder: Path, *, pin: bool) -> None:
        self._proposer = proposer
        self._folder = folder
        self._pin = pin

    @property
    def tally(self) -> DrafterTally:
        """How often the drafter that runs is right."""
        return self._proposer.tally

    @property
    def num_rounds(self) -> int:
        """Rounds of the batch so far."""
        return self._proposer.num_rounds

    def load(self, folder: Path) -> DrafterWeights:
        """The weights in a folder.

        Raises:
            DamagedDrafterError: its files are not those of a drafter like the one at the start.
        """
        return read_drafter(folder, self._folder, pin=self._pin)

    def offer(self, swap: Swap) -> None:
        """Have the worker take it before its next step."""
        self._proposer.swaps.offer(swap)

    def withdraw(self, swap: Swap) -> bool:
        """Take it back; False if the worker has taken it."""
        return self._proposer.swaps.withdraw(swap)

    def settle(self) -> None:
        """Take what is offered; only before the first step."""
        self._proposer.swaps.take()

    def judge(self, *, is_judging: bool) -> None:
        """Whether a new version is judged."""
        self._proposer.judge(is_judging=is_judging)
