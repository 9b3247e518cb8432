"""Teachers say the same of a passage in the same shape; what was taught is kept, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paceline.errors import ConfigError
from paceline.online.errors_first import emphasised, hardest, num_wrong
from paceline.online.lesson_cache import LessonCache
from paceline.online.lessons import Lesson, LessonShards
from paceline.online.passage_teaching import CachedTeacher, TargetTeacher, TextTeacher, lesson_of
from paceline.online.passages import Passage


def passage(number: int, num_tokens: int = 8, *, vocabulary: int = 90) -> Passage:
    rng = np.random.default_rng(number)
    return Passage(
        token_ids=rng.integers(0, vocabulary, num_tokens).astype(np.int32),
        is_said=np.arange(num_tokens) >= num_tokens // 2,
        tenant="a",
        scope="tenant:a",
        workload="w",
        session=f"s{number}",
        begun_at=1.0,
        finished_at=2.0,
    )


class Counting:
    """Teaches by number, as long as it has leave."""

    def __init__(self, leave: int = 10**6) -> None:
        self.asked: list[str] = []
        self.leave = leave

    def teach(self, passages: Sequence[Passage]) -> list[Lesson]:
        taught = passages[: self.leave]
        self.leave -= len(taught)
        self.asked += [p.session for p in taught]
        return [self.lesson(p) for p in taught]

    def lesson(self, p: Passage) -> Lesson:
        rng = np.random.default_rng(int(p.session[1:]))
        shape = len(p.token_ids) - 1, 3
        ids = rng.integers(0, 90, shape).astype(np.int32)
        return lesson_of(p, ids, -rng.random(shape).astype(np.float16), 0.25)


def assert_alike(one: Lesson, other: Lesson) -> None:
    assert one.num_prompt == other.num_prompt
    for name in ("token_ids", "top_ids", "top_logprobs", "weights"):
        mine, others = getattr(one, name), getattr(other, name)
        assert mine.dtype == others.dtype
        np.testing.assert_array_equal(mine, others)


def test_a_target_in_this_process_reads_passages() -> None:
    """Likeliest tokens of each position as a forward pass gives them, said ones counting more."""
    torch = pytest.importorskip("torch")
    from paceline.online.teacher import Teacher
    from small_models import random_model

    model = random_model("llama")
    passages = [passage(1), passage(2, 12)]
    lessons = TargetTeacher(Teacher(model, top_k=4, temperature=0.0), read_weight=0.5).teach(
        passages
    )
    for p, lesson in zip(passages, lessons, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor(p.token_ids[None]).long()).logits[0, :-1]
        top = logits.log_softmax(-1).topk(4)
        np.testing.assert_array_equal(lesson.top_ids, top.indices)
        np.testing.assert_allclose(lesson.top_logprobs, top.values, atol=2e-3)
        assert lesson.num_prompt == 1
        assert lesson.weights is not None
        assert lesson.weights.tolist() == np.where(p.is_said[1:], 1.0, 0.5).tolist()


def test_text_teaches_what_was_said_and_nothing_else() -> None:
    """Without a target the token that was said is certain, and what was read counts nothing."""
    p = passage(1)
    [lesson] = TextTeacher().teach([p])
    assert lesson.top_ids[:, 0].tolist() == p.token_ids[1:].tolist()
    assert lesson.top_logprobs.tolist() == [[0.0]] * 7
    assert lesson.weights is not None
    assert lesson.weights.tolist() == p.is_said[1:].astype(float).tolist()


def test_shards_keep_weights_and_read_those_that_have_none(tmp_path: Path) -> None:
    """A batch with weights gives them back, one without stays as it was."""
    shards = LessonShards(tmp_path)
    [with_weights] = Counting().teach([passage(1)])
    plain = replace(with_weights, weights=None)
    shards.add([with_weights, plain], seconds=1.0)
    shards.add([plain], seconds=1.0)
    lessons, _ = shards.read()
    assert_alike(lessons[0], with_weights)
    assert lessons[1].weights is not None
    assert lessons[1].weights.tolist() == [1.0] * 7
    assert lessons[2].weights is None


def cache(folder: Path, *, teacher: str = "t", max_bytes: int = 10**6) -> LessonCache:
    return LessonCache(folder, teacher=teacher, max_bytes=max_bytes)


def test_a_passage_is_taught_once(tmp_path: Path) -> None:
    """Across restarts; what is kept is what was taught, with its weights."""
    teacher = Counting()
    passages = [passage(n) for n in range(5)]
    first = CachedTeacher(teacher, cache(tmp_path)).teach(passages[:3])
    again = CachedTeacher(teacher, cache(tmp_path)).teach(passages)
    assert teacher.asked == ["s0", "s1", "s2", "s3", "s4"]
    for p, lesson in zip(passages, again, strict=True):
        assert_alike(lesson, teacher.lesson(p))
    for one, other in zip(first, again, strict=False):
        assert_alike(one, other)


def test_without_leave_the_first_lessons_are_given(tmp_path: Path) -> None:
    """Up to the first that could not be taught; those behind it stay known."""
    kept = cache(tmp_path)
    passages = [passage(n) for n in range(5)]
    CachedTeacher(Counting(), kept).teach([passages[1], passages[4]])
    teacher = Counting(leave=1)
    lessons = CachedTeacher(teacher, kept).teach(passages)
    assert [lesson.token_ids.tolist() for lesson in lessons] == [
        p.token_ids.tolist() for p in passages[:2]
    ]
    assert teacher.asked == ["s0"]


def test_forgotten_lessons_are_gone_and_late_ones_are_not_kept(tmp_path: Path) -> None:
    """Also one that was being taught while its passage was forgotten."""
    kept = cache(tmp_path)
    passages = [passage(n) for n in range(3)]
    teacher = Counting()
    CachedTeacher(teacher, kept).teach(passages[:2])
    kept.drop(passages[0])
    kept.drop(passages[2])
    CachedTeacher(teacher, kept).teach(passages)
    assert kept.stats()["lessons"] == len(list(tmp_path.iterdir())) == 1
    assert kept.stats()["refused"] == 2
    assert kept.keep([passages[2]]) == 1
    assert list(tmp_path.iterdir()) == []


def test_kept_lessons_are_bounded_and_take_what_is_said(tmp_path: Path) -> None:
    """The least recently used go; four bytes a likeliest token where ids are small, else six."""
    kept = cache(tmp_path, max_bytes=700)
    size = 22 + 7 * 3 * 4
    taught = CachedTeacher(Counting(), kept)
    passages = [passage(n) for n in range(8)]
    for p in passages[:6]:
        taught.teach([p])
    assert kept.stats()["bytes"] == 6 * size
    taught.teach([passages[0]])
    taught.teach([passages[6]])
    assert kept.get(passages[1]) is None
    assert kept.get(passages[0]) is not None
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) == kept.stats()["bytes"] <= 700
    smaller = cache(tmp_path, max_bytes=3 * size)
    assert smaller.stats()["lessons"] == 3
    wide = np.full((7, 3), 100_000, np.int32)
    smaller.put(passages[7], wide, np.zeros((7, 3), np.float16))
    found = smaller.get(passages[7])
    assert found is not None
    assert found.top_ids.tolist() == wide.tolist()
    assert smaller.stats()["bytes"] == 22 + 7 * 3 * 6 + size


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "other teacher", "other passage"])
def test_what_cannot_be_used_is_taught_again(tmp_path: Path, damage: str) -> None:
    """A damaged file, or another teacher's, is never learned from."""
    p = passage(1)
    kept = cache(tmp_path)
    CachedTeacher(Counting(), kept).teach([p])
    [file] = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "gone":
        file.unlink()
    elif damage == "other teacher":
        kept = cache(tmp_path, teacher="u")
    else:
        longer = passage(2, 9)
        CachedTeacher(Counting(), kept).teach([longer])
        (tmp_path / f"{longer.digest}.lesson").replace(file)
    teacher = Counting()
    [lesson] = CachedTeacher(teacher, kept).teach([p])
    assert teacher.asked == ["s1"]
    assert kept.stats()["damaged"] == 1
    assert_alike(lesson, teacher.lesson(p))
    assert CachedTeacher(teacher, kept).teach([p])
    assert teacher.asked == ["s1"]


def lesson_with(tops: list[int], weights: list[float] | None = None) -> Lesson:
    return Lesson(
        token_ids=np.arange(len(tops) + 1, dtype=np.int32),
        num_prompt=1,
        top_ids=np.array([[top, 99] for top in tops], np.int32),
        top_logprobs=np.zeros((len(tops), 2), np.float16),
        weights=None if weights is None else np.array(weights, np.float16),
    )


def test_the_lessons_with_most_mistakes_come_first() -> None:
    """By what their positions count for; those without a mistake are left out."""
    guesses = [np.array(g) for g in ([1, 2, 3], [1, 0, 3], [0, 0, 0], [0, 0, 3])]
    lessons = [
        lesson_with([1, 2, 3]),
        lesson_with([1, 2, 3]),
        lesson_with([1, 2, 3], [0.25, 0.25, 0.25]),
        lesson_with([1, 2, 3], [1.0, 0.5, 1.0]),
    ]
    assert [num_wrong(g, it) for g, it in zip(guesses, lessons, strict=True)] == [0, 1, 0.75, 1.5]
    assert hardest(guesses, lessons, 10) == [3, 1, 2]
    assert hardest(guesses, lessons, 1) == [3]
    with pytest.raises(ConfigError, match="reply of 3 tokens"):
        num_wrong(np.array([1, 2]), lessons[0])


def test_mistakes_weigh_more_and_all_as_much_as_before() -> None:
    """Relative to what is right; the sum stays, and what counts nothing still does not."""
    lesson = lesson_with([1, 2, 3, 4], [1.0, 0.0, 1.0, 0.5])
    found = emphasised(lesson, np.array([1, 0, 0, 4]), emphasis=3.0).weights
    assert found is not None
    assert found[2] / found[0] == pytest.approx(3.0, rel=2e-3)
    assert found[3] / found[0] == pytest.approx(0.5, rel=2e-3)
    assert found[1] == 0
    assert float(found.sum()) == pytest.approx(2.5, rel=2e-3)
    same = emphasised(lesson, np.array([1, 2, 3, 4])).weights
    assert same is not None
    assert same.tolist() == [1.0, 0.0, 1.0, 0.5]
    with pytest.raises(ConfigError, match=r"emphasis is 0\.5"):
        emphasised(lesson, np.array([1, 2, 3, 4]), emphasis=0.5)
