"""OpenAI's predicted outputs on their way to an engine, and what became of them on the way back.

vLLM ignores ``prediction``; its text travels to our worker among the extra arguments, and how much
of it appeared in the reply comes back in the engine's record of the request, from where it is put
into the answer's usage. An engine that tells it itself, as the embedded one does, is left alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec

from paceline.adapters.decisions import RequestDecisions
from paceline.adapters.prediction import MAX_CHARACTERS
from paceline.api_errors import ApiError
from paceline.middleware.request_body import UNSET, BodyView
from paceline.middleware.token_editing import address_of, payload_of, split_events

DETAILS: Final = "completion_tokens_details"
TOLD: Final = b'"accepted_prediction_tokens"'
LAST: Final = b'"choices":[]'
"""Of a stream's chunks, that with the usage has no choices."""

Ask = Callable[[], Awaitable[RequestDecisions | None]]


class _Text(msgspec.Struct):
    type: Literal["text"]
    text: str


class _Prediction(msgspec.Struct):
    type: Literal["content"]
    content: str | list[_Text]


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"")


_predictions: Final = msgspec.json.Decoder(_Prediction)
_answers: Final = msgspec.json.Decoder(_Answer)


def predicted_text(view: BodyView) -> str:
    """The text that a chat's client expects, "" for none. O(its text).

    Raises:
        ApiError: 400, it cannot be understood, or is too long.
    """
    if bytes(view.prediction) in UNSET:
        return ""
    try:
        content = _predictions.decode(view.prediction).content
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(
            400,
            f"prediction: {error}; give {{'type': 'content', 'content': TEXT}}, TEXT a string or "
            "parts of type text",
            param="prediction",
        ) from error
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    if len(text) > MAX_CHARACTERS:
        raise ApiError(
            400,
            f"prediction has {len(text)} characters; give {MAX_CHARACTERS} at most",
            param="prediction",
        )
    return text


class PredictedUsage:
    """Puts into an answer's usage how much of a prediction was right.

    Args:
        ask: reads the engine's record of the request; None if it cannot be had.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def whole(self, body: bytes) -> bytes:
        """A whole answer with it; unchanged where it is told already, or not known."""
        if TOLD in body:
            return body
        record = await self._ask()
        return body if record is None else with_prediction(body, record)

    async def events(self, ready: bytes) -> bytes:
        """Whole events of a stream, that with the usage with it."""
        if LAST not in ready or TOLD in ready:
            return ready
        shown: list[bytes] = []
        for event in split_events(ready):
            payload = payload_of(event) if LAST in event else None
            if payload is None:
                shown.append(event)
                continue
            at = event.rindex(payload)
            edited = await self.whole(payload)
            shown.append(event[:at] + edited + event[at + len(payload) :])
        return b"".join(shown)


def with_prediction(body: bytes, record: RequestDecisions) -> bytes:
    """An answer, or a chunk of one, whose usage tells it; every other byte stays. O(bytes)."""
    counts = record.accepted_prediction_tokens, record.rejected_prediction_tokens
    if not any(counts):  # no worker of ours, or it has not read the prediction yet
        return body
    try:
        raw = _answers.decode(body).usage
        usage: dict[str, Any] = msgspec.json.decode(raw)
        details = usage.get(DETAILS) or {}
        # a step may say more than the client is given
        accepted = min(counts[0], usage["completion_tokens"])
        details["accepted_prediction_tokens"] = accepted
        details["rejected_prediction_tokens"] = sum(counts) - accepted
        edited = msgspec.json.encode(usage | {DETAILS: details})
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return body
    place = address_of(raw) - address_of(body)
    return body[:place] + edited + body[place + len(bytes(raw)) :]
