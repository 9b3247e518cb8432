"""Requests that Schemathesis made up, changed so that most of them reach the model, and briefly."""

from __future__ import annotations

import os
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Two tokens suffice; a model of any other name would only be refused."""
    if not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("model"), str):
        case.body["model"] = os.environ["PACELINE_MODEL"]
    default = "max_output_tokens" if case.path == "/v1/responses" else "max_tokens"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        is_open = name in case.body or name == default
        asked = case.body.get(name, 2)
        if is_open and (asked is None or isinstance(asked, int)):  # else it is wrong on purpose
            case.body[name] = min(2, 2 if asked is None else asked)
