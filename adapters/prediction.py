"""Predicted outputs: a client's guess of its reply (OpenAI's ``prediction``) as a source of drafts.

The predicted text is indexed for its own request, behind the end of its prompt, in a scope that no
other request reads and that goes when the request does. Look-ups find it as
they find anything else in memory: a copy goes on where the reply agrees, and after a rejected token
is looked for just past the edit. It is never recorded: only what is said is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.caches import DraftIndex

logger = logging.getLogger("paceline.prediction")

TokenArray = npt.NDArray[np.int32]
PREDICTION_KEY: Final = "paceline_prediction"
"""Extra argument in which the proxy carries the text to a worker."""
MAX_CHARACTERS: Final = 400_000
TAIL_TOKENS: Final = 64
"""Tokens of the prompt that the prediction is put behind: so its beginning is found."""
GRAM: Final = 3
"""Tokens that must agree for the reply to be taken up again elsewhere in the prediction."""


NOTHING: Final[TokenArray] = np.empty(0, np.int32)


class PredictedReplies:
    """The predictions of an index's open requests, each in a scope of its own. Thread-safe.

    Args:
        index: is asked for drafts.

    Attributes:
        encode: makes tokens of a text, for engines that are told texts; None elsewhere.
    """

    def __init__(self, index: DraftIndex) -> None:
        self.encode: Callable[[str], Sequence[int]] | None = None
        self._index = index
        self._reader: ThreadPoolExecutor | None = None
        self._scopes: dict[str, tuple[int, TokenArray]] = {}  # with the ends of their prompts
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of requests."""
        return len(self._scopes)

    def open(self, request_id: str, prompt: TokenArray, max_tokens: int) -> TokenArray:
        """Scopes, int32 (1,), that the request is to read, nothing in them yet. O(1).

        Args:
            request_id: not open yet.
            prompt: int32 (tokens,): the request's.
            max_tokens: most tokens of the prediction, at least 1.
        """
        tail = prompt[-TAIL_TOKENS:].copy()
        capacity = len(tail) + max_tokens + 2
        with self._lock:
            scope = self._index.scope(f"\0prediction\0{request_id}", capacity=capacity)
            self._scopes[request_id] = scope, tail
        return np.array([scope], np.int32)

    def tell(self, request_id: str, predicted_ids: Sequence[int]) -> None:
        """What is predicted of an open request, once; ignored when it has ended. O(tokens)."""
        with self._lock:
            if request_id in self._scopes:
                scope, tail = self._scopes[request_id]
                told = np.concatenate((tail, np.asarray(predicted_ids, np.int32)))
                self._index.append_shared(scope, told, num_prompt=len(tail))

    def tell_text(self, request_id: str, text: str, tally: PredictionTally) -> None:
        """`tell` a text, and the tally its tokens; on a thread of its own, for a text may be long.

        Engines go on meanwhile. Only with an `encode`. O(1).
        """
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "paceline-predictions")
        self._reader.submit(self._read, request_id, text, tally)

    def _read(self, request_id: str, text: str, tally: PredictionTally) -> None:
        assert self.encode is not None
        try:
            predicted_ids = self.encode(text)
            tally.know(predicted_ids)
            self.tell(request_id, predicted_ids)
        except Exception:  # logged: a request without its prediction is answered all the same
            logger.exception("a prediction cannot be drafted from")

    def stop(self) -> None:
        """Read no more texts. Harmless when repeated."""
        if self._reader is not None:
            self._reader.shutdown()

    def close(self, request_id: str) -> None:
        """Forget a request's prediction; unknown ones are ignored. O(1)."""
        with self._lock:
            scope, _ = self._scopes.pop(request_id, (-1, NOTHING))
            if scope >= 0:
                self._index.drop_scope(scope)


def predicted_text(xargs: Mapping[str, Any] | None) -> str:
    """What a request's extra arguments predict, "" for nothing or what cannot be understood."""
    text = xargs.get(PREDICTION_KEY) if isinstance(xargs, Mapping) else None
    return text if isinstance(text, str) and len(text) <= MAX_CHARACTERS else ""


class PredictionTally:
    """Which tokens of a prediction appear in a reply, in order.

    A token that is the prediction's next one counts. Where the reply leaves it, the prediction is
    taken up again at its next place that the last `GRAM` tokens of the reply lead to, or where it
    was left.

    Args:
        predicted_ids: tokens of the prediction; None if they will be known later.
    """

    def __init__(self, predicted_ids: Sequence[int] | None = None) -> None:
        self._predicted = list(predicted_ids or ())
        self._early: list[int] | None = [] if predicted_ids is None else None
        self._lock = threading.Lock()
        self._next = 0
        self._num_accepted = 0
        self._stray: list[int] = []  # of the reply's last tokens, those that have not counted
        self._places: dict[tuple[int, ...], list[int]] | None = None

    @property
    def num_accepted(self) -> int:
        """Tokens of the prediction that have appeared so far."""
        return self._num_accepted

    @property
    def num_rejected(self) -> int:
        """Tokens of it that have not."""
        return len(self._predicted) - self._num_accepted

    def usage(self) -> dict[str, int]:
        """Both, as OpenAI's usage names them."""
        return {
            "accepted_prediction_tokens": self.num_accepted,
            "rejected_prediction_tokens": self.num_rejected,
        }

    def know(self, predicted_ids: Sequence[int]) -> None:
        """The prediction's tokens are known now; from any thread, once. O(tokens so far)."""
        with self._lock:
            self._predicted = list(predicted_ids)
            early, self._early = self._early or [], None
            self._follow(early)

    def follow(self, token_ids: Iterable[int]) -> None:
        """Take further tokens of the reply. O(tokens), and once O(prediction)."""
        with self._lock:
            if self._early is None:
                self._follow(token_ids)
            else:
                self._early += token_ids

    def _follow(self, token_ids: Iterable[int]) -> None:
        for token_id in token_ids:
            if self._next < len(self._predicted) and self._predicted[self._next] == token_id:
                self._next += 1
                self._num_accepted += 1
                self._stray.clear()
            else:
                self._stray = [*self._stray[1 - GRAM :], token_id]
                self._take_up()

    def _take_up(self) -> None:
        """Go on elsewhere if all of the last tokens, none of which has counted, lead there."""
        if len(self._stray) < GRAM:
            return
        if self._places is None:
            self._places = {}
            for end in range(GRAM, len(self._predicted) + 1):
                gram = tuple(self._predicted[end - GRAM : end])
                self._places.setdefault(gram, []).append(end)
        ends = self._places.get(tuple(self._stray), [])
        later = [end for end in ends if end - GRAM >= self._next]
        if later:
            self._next = later[0]
            self._num_accepted += GRAM
            self._stray.clear()
