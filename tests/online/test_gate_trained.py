"""The gate on drafters that were really trained: on the right lessons, and on wrong ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paceline.caches.drafter_registry import GateResult
from paceline.online.lessons import Lesson
from paceline.online.promotion import GateSettings, gathered, judge
from small_models import VOCABULARY, random_model

NUM_TRAINED, NUM_HELD_OUT = 96, 40


class School:
    """A target, another one, and a drafter cut from the first and trained a little."""

    def __init__(self) -> None:
        from paceline.online.cutting import cut

        changes: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 64, "eos_token_id": 96}
        target = random_model("llama", **changes)
        other = random_model("llama", seed=11, **changes)
        rng = np.random.default_rng(0)
        places = rng.permutation(7**4)[: NUM_TRAINED + NUM_HELD_OUT]
        prompts = [[1, *(2 + place // 7 ** np.arange(4) % 7).tolist()] for place in places]
        self.lessons = self._replies(target, prompts[:NUM_TRAINED])
        self.held_out = self._replies(target, prompts[NUM_TRAINED:])
        self.others = self._replies(other, prompts[:NUM_TRAINED])
        self.before = self.trained(cut(target, [0, 3]), self.lessons[:24], steps=30)

    def _replies(self, target: Any, prompts: list[list[int]]) -> list[Lesson]:
        from paceline.online.teacher import Teacher

        teacher = Teacher(target, top_k=8, temperature=0.0)
        return list(teacher.replies(prompts, max_tokens=20, seed=0))

    def trained(self, model: Any, lessons: Sequence[Lesson], *, steps: int = 150) -> Any:
        from paceline.online.student import Student
        from paceline.online.training import Trainer, TrainingLimits

        model = copy.deepcopy(model)
        limits = TrainingLimits(steps=steps, seconds=None, batch=6, learning_rate=3e-3, seed=0)
        trainer = Trainer(Student(model), lessons, limits, clock=lambda: 0.0)
        for _ in trainer.run():
            pass
        return model

    def judged(self, candidate: Any) -> GateResult:
        """By the held-out sessions, each of one reply."""
        from paceline.online.student import Student, replay_lessons

        before, after = (
            replay_lessons(Student(copy.deepcopy(model)), self.held_out, chain_tokens=4, batch=16)
            for model in (self.before, candidate)
        )
        keys = [(f"s{number}", f"w{number % 2}") for number in range(len(self.held_out))]
        return judge(gathered(keys, before, after), GateSettings(num_resamples=2000))


@pytest.fixture(scope="module")
def school() -> School:
    return School()


def test_one_that_learned_more_passes(school: School) -> None:
    """On other replies of its target than it is judged by."""
    result = school.judged(school.trained(school.before, school.lessons))
    assert result.reasons == ()
    assert result.after > result.before
    assert result.agreement_after > result.agreement_before
    assert result.num_sessions > NUM_HELD_OUT - 5  # some replies end at once and take no round


def test_one_that_learned_shuffled_labels_is_refused(school: School) -> None:
    """As trained as the good one, on the target's words with what others say of other places."""
    rng = np.random.default_rng(1)
    shuffled = []
    for lesson in school.lessons:
        order = rng.permutation(VOCABULARY).astype(np.int32)
        shuffled.append(replace(lesson, top_ids=order[lesson.top_ids]))
    result = school.judged(school.trained(school.before, shuffled))
    assert not result.passed
    assert result.after < result.before
    assert any("not surely better" in reason for reason in result.reasons)


def test_one_that_learned_another_target_is_refused(school: School) -> None:
    """Of the same vocabulary and shape, so that nothing but the gate can tell."""
    result = school.judged(school.trained(school.before, school.others))
    assert not result.passed
    assert result.after < result.before


def test_the_same_one_again_is_refused(school: School) -> None:
    """A training that changed nothing costs no swap."""
    result = school.judged(school.before)
    assert result.lower_bound == 0
    assert not result.passed
    assert result.before == result.after > 0
    assert result.agreement_before == result.agreement_after


def test_what_was_read_takes_no_round(school: School) -> None:
    """Read places are left out by their weight, or by a mask that says what was said."""
    from paceline.online.student import Student, replay_lessons

    student = Student(copy.deepcopy(school.before))
    weights = np.ones(school.held_out[0].num_reply, np.float16)
    weights[:9] = 0
    lesson = replace(school.held_out[0], weights=weights)
    cut_off = replace(
        lesson,
        num_prompt=lesson.num_prompt + 9,
        top_ids=lesson.top_ids[9:],
        top_logprobs=lesson.top_logprobs[9:],
        weights=None,
    )
    other = school.held_out[1]
    by_weight, beside = replay_lessons(student, [lesson, other], chain_tokens=4, batch=2)
    (expected,) = replay_lessons(student, [cut_off], chain_tokens=4, batch=1)
    (alone,) = replay_lessons(student, [other], chain_tokens=4, batch=1)
    assert (by_weight, beside) == (expected, alone)
    masks = [weights > 0, np.zeros(other.num_reply, np.bool_)]
    found = replay_lessons(student, [lesson, other], chain_tokens=4, batch=1, said=masks)
    assert found[0] == expected
    assert (found[1].num_tokens, found[1].num_rounds) == (0, 0)
    assert replay_lessons(student, [], chain_tokens=4, batch=1) == []
