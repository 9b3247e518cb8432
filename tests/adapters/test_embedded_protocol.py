"""What a request may say about its own drafts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from paceline.api_errors import ApiError
from small_models import random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.requests import GenerationRequest


def read(xargs: dict[str, Any] | None, **options: Any) -> GenerationRequest:
    from paceline.adapters.embedded.protocol import generation_request, parse_completion
    from paceline.adapters.embedded.target import Target

    body = {"model": "m", "prompt": [1, 2], "max_tokens": 3, "vllm_xargs": xargs}
    request = parse_completion(json.dumps(body).encode())
    target = Target(random_model("llama"), tokenizer=None)
    return generation_request(request, [1, 2], target, request_id="r", **options)


def test_a_request_narrows_its_drafts() -> None:
    """By number of tokens and by source; without a word everything may draft as set."""
    plain = read(None)
    assert (plain.max_draft_tokens, plain.draft_sources) == (None, {"memory", "model"})
    asked = read({"draft_tokens": 3, "draft_sources": "model"})
    assert (asked.max_draft_tokens, asked.draft_sources) == (3, {"model"})
    assert read({"draft_tokens": 0}).max_draft_tokens == 0
    assert read({"draft_sources": "memory,model"}).draft_sources == {"memory", "model"}
    assert read({"draft_sources": ""}).draft_sources == set()


def test_a_request_brings_what_its_record_says() -> None:
    """Whether it is learned from, by whose drafter, and the temperature it is answered at."""
    info = read({"paceline_tenant": "t", "paceline_learn": 1, "paceline_drafter": "b"}).info
    assert (info.learn, info.drafter_group, info.temperature) == (True, "b", 1.0)
    assert not read({"paceline_tenant": "t"}).info.learn


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"draft_tokens": -1}, "draft_tokens is -1; give 0"),
        ({"draft_tokens": True}, "draft_tokens is True; give 0"),
        ({"draft_tokens": "8"}, "draft_tokens is '8'; give 0"),
        ({"draft_sources": "eagle"}, "draft_sources is 'eagle'; give memory, model"),
        ({"draft_sources": 1}, "draft_sources is 1; give memory, model"),
    ],
)
def test_drafts_that_there_are_not_are_refused(xargs: dict[str, Any], message: str) -> None:
    """400 with the value and what to give."""
    with pytest.raises(ApiError, match=message) as refused:
        read(xargs)
    assert refused.value.status == 400


def test_a_groups_drafter_is_not_for_others() -> None:
    """An engine that runs a group's drafter drafts for its requests with it, for others without."""
    others, own = (
        read(xargs, drafter_group="team") for xargs in (None, {"paceline_drafter": "team"})
    )
    assert others.draft_sources == {"memory"}
    assert own.draft_sources == {"memory", "model"}
