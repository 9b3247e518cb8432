"""The token ids of one answer, held as the engine wrote them until the client has its bytes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.adapters.request_info import RequestInfo
from paceline.middleware.token_editing import WHOLE_PROMPT, IdStream, Taken, edit_answer

REQUEST_BYTES: Final = 1024
"""Held for a request beside its ids: bounds how many short ones are in flight."""

_token_id = Annotated[int, msgspec.Meta(ge=0, le=np.iinfo(np.int32).max)]
_ids: Final = msgspec.json.Decoder(list[_token_id])


class HeldBytes:
    """How much all requests hold together; safe to use from several threads.

    Args:
        max_bytes: the bound.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Held at the moment."""
        return self._num_bytes

    def hold(self, num_bytes: int) -> bool:
        """Hold some more; False, and nothing is held, if that would pass the bound. O(1)."""
        with self._lock:
            if self._num_bytes + num_bytes > self._max_bytes:
                return False
            self._num_bytes += num_bytes
            return True

    def release(self, num_bytes: int) -> None:
        """Hold so much less. O(1)."""
        with self._lock:
            self._num_bytes -= num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRequest:
    """A request whose answer is to be recorded.

    Attributes:
        info: whose it is, adapter unknown yet.
        num_choices: replies to each prompt.
        asked: whether the client asked for the ids itself and is to see them.
        began_at: Unix time at which it came.
    """

    info: RequestInfo
    num_choices: int
    asked: bool
    began_at: float


@dataclass(frozen=True, slots=True)
class Sequence:
    """One prompt and one reply to it.

    Attributes:
        prompt: which of the request's prompts, from 0.
        choice: which reply to it, from 0.
        prompt_ids: int32, (num_prompt,), at least one.
        said_ids: int32, (num_said,), possibly none.
    """

    prompt: int
    choice: int
    prompt_ids: npt.NDArray[np.int32]
    said_ids: npt.NDArray[np.int32]


@dataclass(slots=True, eq=False)
class CapturedIds:
    """What one answer has told so far. Used by one thread at a time.

    Attributes:
        request: the request.
        held: bytes held by all requests.
        max_bytes: most held for this one.
        model: name of the model that answers.
        reason: why it cannot be recorded, "" while it can.
    """

    request: CaptureRequest
    held: HeldBytes
    max_bytes: int
    model: str = ""
    reason: str = ""
    num_bytes: int = field(default=0, init=False)
    _prompts: dict[int, bytes] = field(default_factory=dict, init=False)
    _said: dict[int, bytearray] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._hold(REQUEST_BYTES)

    def stream(self) -> IdStream:
        """Passes an event stream on without ids, which are kept here."""
        return IdStream(self, keeps=self.request.asked)

    def whole(self, body: bytes) -> bytes:
        """A whole answer without ids, which are kept here. O(bytes)."""
        edited, taken = edit_answer(body)
        self.take(taken)
        return body if self.request.asked else edited

    def take(self, taken: Taken) -> None:
        """Keep what one event held. O(bytes of ids)."""
        if self.reason:
            return
        if taken.is_odd or taken.is_hidden:
            self.give_up("odd_answer" if taken.is_odd else "no_token_ids")
            return
        self.model = taken.model or self.model
        for choice, array in taken.prompts:
            if choice not in self._prompts and self._hold(len(array)):
                self._prompts[choice] = array
        for choice, array in taken.said:
            inner = array[1:-1].strip()
            if inner and self._hold(len(inner) + 1):
                said = self._said.setdefault(choice, bytearray())
                if said:
                    said += b","
                said += inner

    def give_up(self, reason: str) -> None:
        """Record nothing of it, and hold nothing any more."""
        self.reason = self.reason or reason
        self.release()

    def release(self) -> None:
        """Hold nothing any more; harmless when repeated."""
        self.held.release(self.num_bytes)
        self.num_bytes = 0
        self._prompts.clear()
        self._said.clear()

    def sequences(self) -> list[Sequence]:
        """What was told, by choice. O(tokens).

        Raises:
            msgspec.DecodeError: an array holds something else than token ids.
        """
        prompts = {choice: _array(data) for choice, data in self._prompts.items()}
        found: list[Sequence] = []
        for choice in sorted({*self._said, *prompts} - {WHOLE_PROMPT}):
            prompt_ids = prompts.get(choice, prompts.get(WHOLE_PROMPT))
            if prompt_ids is None or not len(prompt_ids):
                continue
            prompt, number = divmod(choice, self.request.num_choices)
            said_ids = _array(b"[%b]" % bytes(self._said.get(choice, b"")))
            found.append(Sequence(prompt, number, prompt_ids, said_ids))
        return found

    def _hold(self, num_bytes: int) -> bool:
        if self.reason:
            return False
        if self.num_bytes + num_bytes > self.max_bytes:
            self.give_up("too_long")
        elif not self.held.hold(num_bytes):
            self.give_up("too_many_in_flight")
        else:
            self.num_bytes += num_bytes
            return True
        return False


def _array(data: bytes) -> npt.NDArray[np.int32]:
    return np.array(_ids.decode(data), np.int32)
