"""Drafting for the engine's requests, so that nothing that goes wrong in it reaches the target."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.failures import FailureLog
from paceline.adapters.speculator import RequestInfo, Speculator

logger = logging.getLogger("paceline.embedded")


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next.

    Attributes:
        token_ids: of a tree's nodes.
        parents: index of each node's parent, or `ROOT`; a parent comes before its children.
    """

    token_ids: Sequence[int] = ()
    parents: Sequence[int] = ()


NO_DRAFT: Final = Draft()


class Drafts:
    """A `Speculator` that may be missing and may fail.

    Args:
        speculator: where drafts come from, None for none.
        max_branches: most drafted tokens that continue one.

    Attributes:
        failures: what went wrong.
    """

    def __init__(self, speculator: Speculator | None, *, max_branches: int) -> None:
        self.failures = FailureLog(logger, "drafting")
        self._speculator = speculator
        self._max_branches = max_branches

    def begin(self, info: RequestInfo, prompt_ids: Sequence[int]) -> bool:
        """Open a request in the draft memory; False if it goes undrafted."""
        if self._speculator is None:
            return False
        try:
            self._speculator.begin(info, prompt_ids)
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.failures.record(error)
            return False
        return True

    def propose(
        self,
        request_ids: Sequence[str],
        tokens: Sequence[npt.NDArray[np.int32]],
        limits: Sequence[int],
    ) -> list[Draft]:
        """Drafts for open requests, in one call.

        Args:
            request_ids: whose.
            tokens: prompt and reply of each.
            limits: most tokens to draft for each.
        """
        if self._speculator is None or not request_ids:
            return []
        try:
            self._speculator.observe(request_ids, tokens, [len(row) for row in tokens])
            trees = self._speculator.propose(
                request_ids,
                max_tokens=dict(zip(request_ids, limits, strict=True)),
                max_branches=self._max_branches,
            )
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.failures.record(error)
            return [NO_DRAFT] * len(request_ids)
        return [Draft(tree.token_ids.tolist(), tree.parent.tolist()) for tree in trees]

    def finish(self, request_id: str, tokens: npt.NDArray[np.int32]) -> None:
        """Close an open request, whose prompt and reply are `tokens`."""
        if self._speculator is None:
            return
        try:
            self._speculator.observe([request_id], [tokens], [len(tokens)])
            self._speculator.finish(request_id)
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.failures.record(error)
