"""Where a model drafter stands in each request, and what it has read of earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.embedded.key_values import KeyValues
from paceline.adapters.embedded.prefixes import PrefixStore, num_common

Tokens = npt.NDArray[np.int32]

_numbers: Final = count()


@dataclass(slots=True)
class Reading:
    """Where the drafter stands in one request.

    Attributes:
        key_values: of what it has read.
        tokens: theirs, int32, one for each.
        owner: whose later requests may go on from there, "" for nobody's.
        generation: of the store of kept beginnings, when the request began.
    """

    key_values: KeyValues
    tokens: Tokens = field(default_factory=lambda: np.empty(0, np.int32))
    owner: str = ""
    generation: int = 0


class Readings:
    """A drafter's keys and values of the requests that run.

    Kept beginnings lie beside the target's, under one bound, and are found by the same owners'
    requests alone. They are looked for when the drafter first reads a request, as it may never.

    Args:
        sequence: makes an empty one for the model.
        prefixes: keeps what was read of requests that have ended; None keeps nothing.
    """

    def __init__(
        self, sequence: Callable[[], KeyValues], prefixes: PrefixStore | None = None
    ) -> None:
        self._sequence = sequence
        self._prefixes = prefixes
        self._number = next(_numbers)
        """Of the weights: no others can go on from what these have read."""
        self._open: dict[str, Reading] = {}

    def begin(self, request_id: str, owner: str = "") -> None:
        """Open a request; nothing is read yet.

        Args:
            request_id: whose.
            owner: whose later requests may go on from what is read of it, "" for nobody's.
        """
        generation = 0 if self._prefixes is None else self._prefixes.generation
        self._open[request_id] = Reading(self._sequence(), owner=owner, generation=generation)

    def of(self, request_id: str) -> Reading:
        """Where the drafter stands: at the beginning of a request that was not opened here."""
        if request_id not in self._open:
            self.begin(request_id)
        return self._open[request_id]

    def num_read(self, request_id: str, tokens: Tokens) -> int:
        """Tokens of a request that need not be read again, at most all but the last."""
        reading = self.of(request_id)
        if not len(reading.tokens) and reading.owner and self._prefixes is not None:
            return self._prefixes.num_held(self._name(reading), tokens)
        # a pass that failed may have left fewer keys and values than tokens
        held = min(len(reading.key_values), len(tokens) - 1)
        return min(num_common(reading.tokens, tokens), held)

    def resume(self, request_id: str, tokens: Tokens) -> Reading:
        """As `of`, cropped to what need not be read again, be it from an earlier request."""
        reading = self.of(request_id)
        if not len(reading.tokens) and reading.owner and self._prefixes is not None:
            kept = self._prefixes.take(self._name(reading), tokens)
            if kept is not None:
                reading.key_values, reading.tokens = kept, tokens[: len(kept)].copy()
        num_read = min(len(reading.key_values), num_common(reading.tokens, tokens), len(tokens) - 1)
        reading.key_values.crop(num_read)
        reading.tokens = reading.tokens[:num_read]
        return reading

    def finish(self, request_id: str) -> None:
        """Close a request, and keep what was read of it for the next that begins alike."""
        reading = self._open.pop(request_id, None)
        if reading is None or not reading.owner or self._prefixes is None:
            return
        held = min(len(reading.key_values), len(reading.tokens))
        reading.key_values.crop(held)
        self._prefixes.keep(
            self._name(reading), reading.tokens[:held], reading.key_values, reading.generation
        )

    def renew(self, sequence: Callable[[], KeyValues]) -> None:
        """Begin anew in every request: the weights are others. What is kept of the old ones ages.

        Args:
            sequence: makes an empty one for the new model.
        """
        self._sequence = sequence
        self._number = next(_numbers)
        for reading in self._open.values():
            reading.key_values, reading.tokens = sequence(), np.empty(0, np.int32)

    def _name(self, reading: Reading) -> str:
        """Under which its owner's sequences of these weights are kept."""
        return f"{reading.owner}\0{self._number}"
