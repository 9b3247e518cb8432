"""Errors as OpenAI's API shapes them, so that every SDK raises what its users expect."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from paceline.errors import PacelineError


class ApiError(PacelineError):
    """An answer other than success.

    Args:
        status: HTTP status.
        message: what is wrong, with the value, the limit and the fix.
        kind: OpenAI's error type.
        code: OpenAI's error code, None if it has none for this.
        param: request field at fault, None if none is.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers

    def body(self) -> bytes:
        """The JSON body of the answer."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def event(self) -> bytes:
        """The error as the last event of a stream."""
        return b"data: " + self.body() + b"\n\n"


def upstream_failed(detail: str) -> ApiError:
    """No engine could answer, or the one that was answering died."""
    return ApiError(
        502, f"the engine failed: {detail}; try again", "api_error", code="upstream_error"
    )
