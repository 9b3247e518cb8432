"""Reading what the proxy needs from a request body, and writing into it what the engine needs.

A body can be long (a whole conversation) and is passed on as it is wherever possible: it is looked
at without being decoded, and our fields are spliced in before its last brace. Only a body that
holds fields we must remove or merge is re-encoded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from paceline.api_errors import ApiError

PROTECTED: Final = (
    "cache_salt",
    "priority",
    "kv_transfer_params",
    "ec_transfer_params",
    "request_id",
)
"""Fields with which a client could reach beyond its own request."""
XARGS: Final = "vllm_xargs"
REQUEST_ID: Final = "request_id"
STORE: Final = "store"
SERVICE_TIER: Final = "service_tier"
ASK_IDS: Final = "return_token_ids"
STREAM_OPTIONS: Final = "stream_options"
ASKED_USAGE: Final = {"include_usage": True, "continuous_usage_stats": True}
OWN_PREFIX: Final = "paceline_"
CACHE_MARK: Final = b'"cache_control"'
BILLING: Final = b"x-anthropic-billing-header"
ABSENT: Final = msgspec.Raw(b"")
UNSET: Final = (b"", b"null")
SPACE: Final = b" \t\r\n"
OPENING_BRACE: Final = ord("{")


class BodyView(msgspec.Struct):
    """The fields of a request that concern us, of any endpoint, undecoded; empty if absent."""

    model: msgspec.Raw = ABSENT
    stream: msgspec.Raw = ABSENT
    stream_options: msgspec.Raw = ABSENT
    n: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    max_output_tokens: msgspec.Raw = ABSENT
    echo: msgspec.Raw = ABSENT
    use_beam_search: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    top_logprobs: msgspec.Raw = ABSENT
    return_token_ids: msgspec.Raw = ABSENT
    messages: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    encoding_format: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    prompt_cache_key: msgspec.Raw = ABSENT
    prediction: msgspec.Raw = ABSENT
    service_tier: msgspec.Raw = ABSENT
    safety_identifier: msgspec.Raw = ABSENT
    user: msgspec.Raw = ABSENT
    metadata: msgspec.Raw = ABSENT
    previous_response_id: msgspec.Raw = ABSENT
    background: msgspec.Raw = ABSENT
    store: msgspec.Raw = ABSENT
    seed: msgspec.Raw = ABSENT
    temperature: msgspec.Raw = ABSENT
    vllm_xargs: msgspec.Raw = ABSENT
    cache_salt: msgspec.Raw = ABSENT
    priority: msgspec.Raw = ABSENT
    kv_transfer_params: msgspec.Raw = ABSENT
    ec_transfer_params: msgspec.Raw = ABSENT
    request_id: msgspec.Raw = ABSENT

    def has(self, name: str) -> bool:
        """Whether the body has that field, whatever its value."""
        value: msgspec.Raw = getattr(self, name)
        return len(value) > 0

    @property
    def model_name(self) -> str:
        """The model that is asked for, "" if that is no text."""
        try:
            return msgspec.json.decode(self.model, type=str)
        except msgspec.MsgspecError:
            return ""

    @property
    def is_stream(self) -> bool:
        """Whether the client asks for a stream."""
        return bytes(self.stream) == b"true"

    @property
    def num_choices(self) -> int:
        """Replies asked for (``n``), 0 if that is no number."""
        if bytes(self.n) in UNSET:
            return 1
        try:
            return max(msgspec.json.decode(self.n, type=int), 0)
        except msgspec.DecodeError:
            return 0

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives whose log probabilities are asked for, None for no log probabilities.

        A chat says ``logprobs: true`` and a number in ``top_logprobs``, a completion the number.
        """
        if bytes(self.logprobs) in (*UNSET, b"false"):
            return None
        number = self.top_logprobs if bytes(self.logprobs) == b"true" else self.logprobs
        try:
            return max(msgspec.json.decode(number, type=int), 0)
        except msgspec.DecodeError:
            return 0

    @property
    def most_said(self) -> int | None:
        """Most tokens that it may be answered with, over all choices; None if it does not tell."""
        for value in (self.max_completion_tokens, self.max_tokens, self.max_output_tokens):
            if bytes(value) not in UNSET:
                try:
                    return max(msgspec.json.decode(value, type=int), 0) * max(self.num_choices, 1)
                except msgspec.DecodeError:
                    return None
        return None

    @property
    def asks_usage(self) -> tuple[bool, bool]:
        """Whether the client asks for a stream's usage itself: at its end, and in each chunk."""
        if bytes(self.stream_options) in UNSET:
            return False, False
        try:
            options = _options.decode(self.stream_options)
        except msgspec.DecodeError:
            return False, False
        at_end = options.include_usage is True
        return at_end, at_end and options.continuous_usage_stats is True

    @property
    def asks_token_ids(self) -> bool:
        """Whether the client asks for token ids itself."""
        return bytes(self.return_token_ids) == b"true"

    @property
    def can_be_asked_for_ids(self) -> bool:
        """Whether an answer with token ids says otherwise what one without them would.

        A completion that repeats its prompt does not: vLLM then leaves the prompt's text out. A
        beam search's requests are not the ones that are answered.
        """
        unset = (bytes(self.echo), bytes(self.use_beam_search))
        return (
            all(value in (*UNSET, b"false") for value in unset)
            and bytes(self.return_token_ids) in (*UNSET, b"false", b"true")
            and self.num_choices > 0
        )

    @property
    def cache_key(self) -> str | None:
        """The field ``prompt_cache_key`` if it is text."""
        return _text(self.prompt_cache_key)

    @property
    def end_user(self) -> str:
        """Whom the client says it asks for, "" if it does not.

        OpenAI's ``safety_identifier`` or ``user``, Anthropic's ``metadata.user_id``.
        """
        named = _text(self.safety_identifier) or _text(self.user)
        if named or not bytes(self.metadata).startswith(b"{"):
            return named or ""
        try:
            return _metadata.decode(self.metadata).user_id or ""
        except msgspec.DecodeError:
            return ""

    @property
    def previous_response(self) -> str | None:
        """The response that a request goes on from, None if it begins anew."""
        return _text(self.previous_response_id)

    @property
    def is_background(self) -> bool:
        """Whether the answer is to be made after the request has ended.

        Whatever an engine may take for yes, ``1`` and ``"on"`` too, is one.
        """
        return bytes(self.background) not in (*UNSET, b"false")

    @property
    def is_without_usage(self) -> bool:
        """Whether vectors are asked for in vLLM's form that says nothing but them."""
        return _text(self.encoding_format) == "bytes_only"

    @property
    def is_stored(self) -> bool:
        """Whether a response may be kept by the engine."""
        return bytes(self.store) != b"false"

    @property
    def is_seeded_sampling(self) -> bool:
        """Whether the reply is drawn at random from a seed of the client's."""
        seeded = bytes(self.seed) not in (b"", b"null")
        return seeded and not self._is_greedy()

    def _is_greedy(self) -> bool:
        try:
            return msgspec.json.decode(self.temperature, type=float) == 0
        except msgspec.DecodeError:
            return False


def _text(value: msgspec.Raw) -> str | None:
    if not len(value):
        return None
    try:
        return msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _MessageView(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = ABSENT


_view = msgspec.json.Decoder(BodyView)
_metadata = msgspec.json.Decoder(_Metadata)
_options = msgspec.json.Decoder(_StreamOptions)
_messages = msgspec.json.Decoder(list[_MessageView])


def view_body(body: bytes) -> BodyView:
    """Look at a request body. O(bytes).

    Raises:
        ApiError: 400, it is not a JSON object.
    """
    try:
        return _view.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request body is not a JSON object: {error}") from error


def opening_of(view: BodyView) -> tuple[bytes, bytes]:
    """The system prompt and the first user message, as they stand in the body.

    A chat's are its leading system message and the first of the user's; Anthropic's API and the
    Responses API have fields of their own for the first. Empty where there is none.
    """
    system = _steady(bytes(view.system) or bytes(view.instructions))
    talk = view.messages if len(view.messages) else view.input
    if bytes(memoryview(talk)[:1]) == b'"':
        return system, bytes(talk)
    try:
        messages = _messages.decode(talk)
    except msgspec.DecodeError:
        return system, b""
    if not system and messages and messages[0].role in ("system", "developer"):
        system = bytes(messages[0].content)
    user = next((bytes(m.content) for m in messages if m.role == "user"), b"")
    return system, _steady(user)


def _steady(content: bytes) -> bytes:
    """A content without what differs from one turn of a conversation to the next.

    Marks of Anthropic's cache move along with it; Claude Code has a block with a hash of the
    request, which vLLM leaves out too.
    """
    if CACHE_MARK not in content and BILLING not in content:
        return content
    try:
        blocks = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content
    if not isinstance(blocks, list):
        return content
    kept = [
        {name: value for name, value in block.items() if name != "cache_control"}
        for block in blocks
        if isinstance(block, dict) and not str(block.get("text", "")).startswith(BILLING.decode())
    ]
    return msgspec.json.encode(kept)


def text_of(content: bytes) -> str:
    """The text of a message's content, a string or parts of which some are text."""
    try:
        decoded = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return ""
    if isinstance(decoded, str):
        return decoded
    if not isinstance(decoded, list):
        return ""
    texts = (part.get("text") for part in decoded if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def with_fields(
    body: bytes,
    view: BodyView,
    *,
    xargs: Mapping[str, str | int | float] | None,
    cache_salt: str,
    allow: Collection[str] = (),
    ask_token_ids: bool = False,
    priority: int = 0,
    ask_usage: bool = False,
    request_id: str = "",
    is_stored: bool = True,
    service_tier: str = "",
) -> bytes:
    """The body with our identity in it and without what the client may not set.

    Args:
        body: the client's body, a JSON object.
        view: `view_body` of it.
        xargs: our extra arguments; the client's others are kept. None where the engine takes none.
        cache_salt: salt of the target's prefix cache, unless the client may set its own.
        allow: protected fields that the client may set.
        ask_token_ids: have the engine say the ids of prompt and reply.
        priority: for an engine that schedules by it, unless the client may set its own; 0 for none.
        ask_usage: have it say in each chunk of a stream how many tokens that makes.
        request_id: what the engine is to call it, whatever the client may set; "" leaves it alone.
        is_stored: False has the engine keep nothing of the answer.
        service_tier: the tier that the client gets in place of the one it asked for; "" for that.
    """
    forbidden = [name for name in PROTECTED if len(getattr(view, name)) and name not in allow]
    own: dict[str, Any] = {} if xargs is None else {XARGS: dict(xargs)}
    if "cache_salt" not in allow or not view.has("cache_salt"):
        own["cache_salt"] = cache_salt
    if priority and ("priority" not in allow or not view.has("priority")):
        own["priority"] = priority
    if request_id:
        own[REQUEST_ID] = request_id
    if not is_stored:
        own[STORE] = False
    if service_tier:
        own[SERVICE_TIER] = service_tier
    is_set = any(view.has(name) for name in (XARGS, REQUEST_ID, STORE, SERVICE_TIER) if name in own)
    if ask_token_ids and not view.asks_token_ids:
        own[ASK_IDS] = True
        is_set = is_set or view.has(ASK_IDS)
    if ask_usage and view.is_stream and not all(view.asks_usage):
        own[STREAM_OPTIONS] = dict(ASKED_USAGE)
        is_set = is_set or view.has(STREAM_OPTIONS)
    if not forbidden and not is_set:
        return _splice(body, own)
    fields: dict[str, Any] = msgspec.json.decode(body)
    options = fields.get(STREAM_OPTIONS)
    if STREAM_OPTIONS in own and isinstance(options, dict):
        own[STREAM_OPTIONS] = options | own[STREAM_OPTIONS]
    elif options is not None:  # the engine says what is wrong with it
        own.pop(STREAM_OPTIONS, None)
    for name in forbidden:
        fields.pop(name, None)
    theirs = fields.get(XARGS)
    if XARGS in own and isinstance(theirs, dict):
        kept = {k: v for k, v in theirs.items() if not k.startswith(OWN_PREFIX)}
        own[XARGS] = kept | own[XARGS]
    return msgspec.json.encode(fields | own)


def _splice(body: bytes, fields: Mapping[str, Any]) -> bytes:
    """Put `fields` before the last brace of a JSON object that has none of them.

    A long body is copied once, not each time that something is cut off or added.
    """
    end = body.rindex(b"}")
    while body[end - 1] in SPACE:
        end -= 1
    # In a valid object only the opening brace itself can stand there: the object is empty.
    comma = b"" if body[end - 1] == OPENING_BRACE else b","
    return b"".join((memoryview(body)[:end], comma, msgspec.json.encode(fields)[1:]))
