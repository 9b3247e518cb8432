"""Predicted outputs as a source of drafts: found, taken up again after an edit, and forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.adapters.decisions import DecisionLog
from paceline.adapters.prediction import MAX_CHARACTERS, PredictionTally, predicted_text
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from waiting import wait_until

PROMPT = list(range(900, 990))
PREDICTED = list(range(100, 160))


def info(request_id: str, tenant: str = "t") -> RequestInfo:
    return RequestInfo(request_id=request_id, tenant=tenant)


def drafted(speculator: Speculator, request_id: str, num_tokens: int = 6) -> list[int]:
    (tree,) = speculator.propose([request_id], max_tokens=num_tokens)
    return [int(token) for token in tree.token_ids]


@pytest.mark.parametrize("tenant", ["t", ""])
def test_the_prediction_is_drafted_from_its_beginning(tenant: str) -> None:
    """The first tokens of the reply come from it, of whomever the request is."""
    speculator = Speculator()
    speculator.begin(info("a", tenant), PROMPT, max_predicted=len(PREDICTED))
    assert drafted(speculator, "a") == []
    speculator.predictions.tell("a", PREDICTED)
    assert drafted(speculator, "a") == PREDICTED[:6]


def test_it_is_taken_up_again_past_an_edit() -> None:
    """A token is said that was not predicted: the draft goes on behind the one in its place."""
    speculator = Speculator()
    speculator.begin(info("a"), PROMPT, max_predicted=len(PREDICTED))
    speculator.predictions.tell("a", PREDICTED)
    speculator.commit("a", PREDICTED[:20])
    assert drafted(speculator, "a") == PREDICTED[20:26]
    speculator.commit("a", [777])
    assert drafted(speculator, "a")[:1] == PREDICTED[21:22]
    speculator.commit("a", PREDICTED[21:25])
    assert drafted(speculator, "a")[:3] == PREDICTED[25:28]


def test_nobody_else_drafts_from_it() -> None:
    """Neither beside the request nor after it; nor is it recorded."""
    published = []

    class Sink:
        def publish(self, record: object) -> None:
            published.append(record)

    speculator = Speculator(journal=Sink())
    speculator.begin(info("a"), PROMPT, max_predicted=len(PREDICTED))
    speculator.predictions.tell("a", PREDICTED)
    speculator.begin(info("b"), PROMPT)
    assert drafted(speculator, "b") == []
    speculator.commit("a", [5, 6])
    speculator.finish("a")
    speculator.begin(info("c"), PROMPT)
    speculator.commit("c", PREDICTED[:20])
    assert not set(drafted(speculator, "c")) & set(PREDICTED)
    assert len(speculator.predictions) == 0
    (record,) = published
    assert not set(record.token_ids.tolist()) & set(PREDICTED)  # type: ignore[attr-defined]


def test_a_text_is_read_on_a_thread_of_its_own() -> None:
    """What it comes to is drafted from and counted, also what was said meanwhile."""
    speculator = Speculator()
    speculator.predictions.encode = lambda text: [int(word) for word in text.split()]
    log = DecisionLog()
    tally = log.open("a")
    tally.prediction = PredictionTally()
    speculator.begin(info("a"), PROMPT, max_predicted=1000)
    log.settle({"a": PREDICTED[:2]})
    text = " ".join(map(str, PREDICTED))
    speculator.predictions.tell_text("a", text, tally.prediction)
    wait_until(lambda: drafted(speculator, "a") != [])
    log.settle({"a": PREDICTED[2:5]})
    record = log.find("a")
    assert record is not None
    assert (record.accepted_prediction_tokens, record.rejected_prediction_tokens) == (5, 55)
    speculator.predictions.tell_text("a", "no number", PredictionTally())
    speculator.close()
    speculator.predictions.tell("a", PREDICTED)  # it has ended: ignored


def test_what_cannot_be_begun_leaves_nothing() -> None:
    """A request that fails to open leaves no prediction behind."""
    speculator = Speculator()
    wrong = np.array([-1], np.int32)
    with pytest.raises(ValueError, match="token"):
        speculator.begin(info("a"), wrong, max_predicted=3)
    assert len(speculator.predictions) == 0


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], 8),
        ([1, 2, 9, 3, 4, 5, 6, 7, 8], 8),
        ([1, 2, 9, 4, 5, 6, 7, 8], 7),
        ([1, 5, 6, 7, 8], 5),
        ([9, 9, 9], 0),
        ([], 0),
    ],
    ids=["right", "inserted", "replaced", "left out", "wrong", "empty"],
)
def test_tokens_are_counted_that_appear_in_the_reply(reply: list[int], accepted: int) -> None:
    """OpenAI's two numbers: those that appear, and the rest."""
    tally = PredictionTally([1, 2, 3, 4, 5, 6, 7, 8])
    tally.follow(reply)
    assert tally.usage() == {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": 8 - accepted,
    }


@given(
    predicted=st.lists(st.integers(0, 3), max_size=30),
    reply=st.lists(st.integers(0, 3), max_size=30),
    cut=st.integers(0, 30),
)
def test_counts_do_not_depend_on_how_a_reply_comes(
    predicted: list[int], reply: list[int], cut: int
) -> None:
    """In one piece or two, before or after the prediction is known; never more than there are."""
    tallies = [PredictionTally(predicted), PredictionTally(predicted), PredictionTally()]
    tallies[0].follow(reply)
    for tally in tallies[1:]:
        tally.follow(reply[:cut])
        if tally is tallies[2]:
            tally.know(predicted)
        tally.follow(reply[cut:])
    assert len({tally.num_accepted for tally in tallies}) == 1
    assert 0 <= tallies[0].num_accepted <= min(len(predicted), len(reply))
    assert tallies[0].num_rejected == len(predicted) - tallies[0].num_accepted


def test_only_a_text_of_bounded_length_is_a_prediction() -> None:
    """Anything else is no prediction: the request is answered without."""
    assert predicted_text({"paceline_prediction": "x"}) == "x"
    for odd in (
        None,
        {},
        {"paceline_prediction": 1},
        {"paceline_prediction": "x" * (MAX_CHARACTERS + 1)},
    ):
        assert predicted_text(odd) == ""
