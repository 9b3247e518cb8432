"""What the proxy serves: an allow list of routes, and what each of them takes from us.

Everything else that an engine has, vLLM's routes for its operators above all (``/sleep``,
``/collective_rpc``, ``/v1/load_lora_adapter``), is not passed on. A path is passed on as it stands
in the list; what a client puts into the variable part of one is checked against its form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final
from urllib.parse import parse_qsl, urlencode

from paceline.adapters.decisions import DECISIONS_PATH
from paceline.api_dialects import MESSAGES_PATH, RESPONSES_PATH, Dialect
from paceline.api_errors import ApiError
from paceline.middleware.dashboard_way import DASHBOARD_PATH, is_dashboard

MODELS_PATH: Final = "/v1/models"
OTHER: Final = "other"
STORED_QUERY: Final = ("stream", "starting_after")
_MODEL: Final = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[\w.:@+-]+(?:/[\w.:@+-]+)*", re.ASCII)
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class Job(Enum):
    """What is done with a request."""

    GENERATE = auto()
    """It goes through the model, as its tenant's."""
    LIST_MODELS = auto()
    READ_STORED = auto()
    """It is about a response that an engine keeps."""
    READ_DECISIONS = auto()


class Charge(Enum):
    """What of a request counts for a limit of tokens."""

    ALL = auto()
    PROMPT = auto()
    NOTHING = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """What of ours the engine's schema of a request has a field for.

    Attributes:
        xargs: ``vllm_xargs``: who asks, for the worker.
        cache_salt: the field of that name.
        priority: the field of that name.
        priority_header: vLLM's header in its place.
        token_ids: ``return_token_ids``.
        usage: ``stream_options``.
        request_id: the field of that name; the ids of its answers are made of it.
        prediction: whether its clients may predict their replies.
    """

    xargs: bool = False
    cache_salt: bool = False
    priority: bool = False
    priority_header: bool = False
    token_ids: bool = False
    usage: bool = False
    request_id: bool = False
    prediction: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route.

    Attributes:
        route: its bounded name, for metrics.
        job: what is done with its requests.
        dialect: whose API it belongs to.
        takes: what is written into a request.
        charge: what of it counts for a limit of tokens.
    """

    route: str
    job: Job
    dialect: Dialect = Dialect.OPENAI
    takes: Takes = Takes()
    charge: Charge = Charge.ALL


_COMPLETIONS: Final = Takes(xargs=True, cache_salt=True, priority=True, token_ids=True, usage=True)
CHAT: Final = Endpoint(
    "/v1/chat/completions", Job.GENERATE, takes=replace(_COMPLETIONS, prediction=True)
)
COMPLETIONS: Final = Endpoint("/v1/completions", Job.GENERATE, takes=_COMPLETIONS)
RESPONSES: Final = Endpoint(
    RESPONSES_PATH,
    Job.GENERATE,
    Dialect.RESPONSES,
    Takes(xargs=True, cache_salt=True, priority=True, request_id=True),
)
MESSAGES: Final = Endpoint(
    MESSAGES_PATH,
    Job.GENERATE,
    Dialect.ANTHROPIC,
    Takes(xargs=True, cache_salt=True, priority_header=True),
)
COUNT_TOKENS: Final = Endpoint(
    f"{MESSAGES_PATH}/count_tokens", Job.GENERATE, Dialect.ANTHROPIC, charge=Charge.NOTHING
)
EMBEDDINGS: Final = Endpoint(
    "/v1/embeddings",
    Job.GENERATE,
    takes=Takes(cache_salt=True, priority=True),
    charge=Charge.PROMPT,
)
TOKENIZE: Final = Endpoint("/tokenize", Job.GENERATE, charge=Charge.NOTHING)
DETOKENIZE: Final = Endpoint("/detokenize", Job.GENERATE, charge=Charge.NOTHING)
MODELS: Final = Endpoint(MODELS_PATH, Job.LIST_MODELS)
STORED: Final = Endpoint(f"{RESPONSES_PATH}/{{id}}", Job.READ_STORED, Dialect.RESPONSES)
CANCEL: Final = Endpoint(f"{RESPONSES_PATH}/{{id}}/cancel", Job.READ_STORED, Dialect.RESPONSES)
DECISIONS: Final = Endpoint(DECISIONS_PATH.rstrip("/"), Job.READ_DECISIONS)

BODIES: Final[Mapping[str, Endpoint]] = {
    each.route: each
    for each in (
        *(CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS),
        *(EMBEDDINGS, TOKENIZE, DETOKENIZE),
    )
}
"""Those that take a body, by path."""


def endpoint_of(method: str, path: str) -> Endpoint:
    """What serves a request. O(path).

    Args:
        method: HTTP method.
        path: percent-decoded path.

    Raises:
        ApiError: 404, nothing does; 405, not with that method.
    """
    wanted, endpoint = "GET", BODIES.get(path)
    if endpoint is not None:
        wanted = "POST"
    elif path == MODELS_PATH or path.startswith(f"{MODELS_PATH}/"):
        endpoint = MODELS if _is_models(path) else None
    elif path.startswith(f"{RESPONSES_PATH}/"):
        endpoint = STORED if stored_id(path) else None
        if stored_id(path) and path.endswith("/cancel"):
            wanted, endpoint = "POST", CANCEL
    elif path.startswith(DECISIONS_PATH):
        endpoint = DECISIONS
    if endpoint is None:
        raise ApiError(
            404,
            f"{path[:200]} is not served here; served are {', '.join(BODIES)}, {STORED.route}, "
            f"{CANCEL.route} and {MODELS_PATH}",
            code="unknown_url",
        )
    require_method(method, path, wanted)
    return endpoint


def require_method(method: str, path: str, wanted: str) -> None:
    """Check a request's method.

    Raises:
        ApiError: 405, it is another.
    """
    if method != wanted:
        raise ApiError(
            405,
            f"{path} takes {wanted}, not {method}",
            code="method_not_allowed",
            headers=[(b"allow", wanted.encode())],
        )


def route_of(path: str) -> str:
    """A bounded name of a path, for metrics; `OTHER` for what is not served."""
    if path in BODIES:
        return path
    if path.startswith(DECISIONS_PATH):
        return DECISIONS.route
    if path.startswith(f"{RESPONSES_PATH}/"):
        return CANCEL.route if path.endswith("/cancel") else STORED.route
    if is_dashboard(path):
        return DASHBOARD_PATH
    return MODELS_PATH if path.startswith(MODELS_PATH) else OTHER


def stored_id(path: str) -> str:
    """Id of the stored response that a path is about, "" if it cannot be one."""
    rest = path.removeprefix(f"{RESPONSES_PATH}/").removesuffix("/cancel")
    return rest if _ID.fullmatch(rest) else ""


def queried(query: bytes) -> str:
    """What of a URL's query goes on with the path of a stored response, with its ``?``."""
    known = [
        (name, value) for name, value in parse_qsl(query.decode("latin-1")) if name in STORED_QUERY
    ]
    return f"?{urlencode(known)}" if known else ""


def _is_models(path: str) -> bool:
    """Whether a path names all models or one; never one that leads elsewhere in the engine."""
    name = path.removeprefix(MODELS_PATH)
    return not name or _MODEL.fullmatch(name[1:]) is not None
