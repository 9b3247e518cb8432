"""Offline distillation on a small target: it helps, and stops and goes on without a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from paceline.drafter_folder import read_record
from paceline.errors import ConfigError, RecordError
from paceline.online.lessons import Lesson, LessonShards
from paceline.online.settings import DistilSettings, InitSettings
from small_chats import write_prompts, write_target

SETTINGS: dict[str, Any] = {
    "num_prompts": 24,
    "num_readings": 8,
    "held_out_prompts": 12,
    "held_out_share": 0.2,
    "reply_tokens": 20,
    "reply_batch": 6,
    "steps": 40,
    "batch": 4,
    "checkpoint_steps": 7,
    "learning_rate": 3e-3,
    "chain_tokens": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target of four layers, a drafter of two, prompts."""
    from paceline.online.cutting import init_drafter

    folder = tmp_path_factory.mktemp("distil")
    write_target(folder / "target", num_hidden_layers=4, hidden_size=64, eos_token_id=96)
    init_drafter(InitSettings(target=str(folder / "target"), out=str(folder / "drafter")))
    text = folder / "text.txt"
    text.write_text(" ".join(f"w{i}" for i in range(70)), encoding="utf-8")
    init_drafter(
        InitSettings(
            target=str(folder / "target"),
            out=str(folder / "trimmed"),
            head_tokens=60,
            token_counts=(str(text),),
        )
    )
    write_prompts(folder / "prompts.jsonl", 40)
    return folder


def told(folder: Path, out: Path, **changes: Any) -> DistilSettings:
    return DistilSettings(
        **{
            "drafter": str(folder / "drafter"),
            "target": str(folder / "target"),
            "prompts": (str(folder / "prompts.jsonl"),),
            "out": str(out),
            **SETTINGS,
            **changes,
        }
    )


def ticking() -> Callable[[], float]:
    """A clock that is a second later at every look."""
    seconds: Iterator[int] = count()
    return lambda: float(next(seconds))


def stopping_after(looks: int) -> Callable[[], bool]:
    """Wants to stop at the given look, and from then on."""
    seen = count(1)
    return lambda: next(seen) >= looks


def distil(settings: DistilSettings, is_stopping: Callable[[], bool] = lambda: False) -> Any:
    from paceline.online.distilling import Distillation

    return Distillation(settings=settings, clock=ticking(), is_stopping=is_stopping).run()


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("drafter", ["drafter", "trimmed"])
def test_training_brings_the_drafter_nearer(drafter: str, folder: Path, tmp_path: Path) -> None:
    """More tokens of held-out sessions agree; the record says so, and the head stays."""
    import torch

    settings = told(folder, tmp_path / "out", drafter=str(folder / drafter), steps=150)
    done = distil(settings)
    assert done.num_steps == 150
    assert done.before.num_tokens == done.after.num_tokens > 100
    assert done.after.agreement > done.before.agreement + 0.1
    assert done.after.accepted_length > done.before.accepted_length
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.distilled == done
    before = read_record(folder / drafter)
    assert before is not None
    assert record.kept_token_ids == before.kept_token_ids
    old, new = weights(folder / drafter), weights(tmp_path / "out")
    assert old.keys() == new.keys()
    for name in old:
        learns = name.startswith(("model.layers.", "model.norm."))
        assert torch.equal(old[name], new[name]) != learns, name


def test_the_report_is_what_drafting_finds(folder: Path, tmp_path: Path) -> None:
    """Chains drafted one token at a time by the written folder accept as many tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = told(folder, tmp_path / "out")
    done = distil(settings)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    lessons, _ = LessonShards(tmp_path / "out.work" / "held-out").read()
    rounds = accepted = 0
    for lesson in lessons:
        at = lesson.num_prompt + 1
        while at < len(lesson.token_ids):
            chain: list[int] = []
            while len(chain) < settings.chain_tokens:
                context = torch.tensor([[*lesson.token_ids[:at].tolist(), *chain]])
                with torch.inference_mode():
                    chain.append(int(model(context).logits[0, -1].argmax()))
            said = lesson.token_ids[at:].tolist()
            right = 0
            while right < min(len(chain), len(said)) and chain[right] == said[right]:
                right += 1
            rounds += 1
            accepted += right
            at += right + 1
    assert done.after.accepted_length == pytest.approx(accepted / rounds)


@pytest.mark.parametrize("looks", [1, 3, 8, 9, 12, 33])
def test_a_stop_anywhere_makes_no_difference(looks: int, folder: Path, tmp_path: Path) -> None:
    """Stopped among replies, readings or steps and started again, the weights are the same."""
    import torch

    from paceline.online.distilling import StoppedError

    distil(told(folder, tmp_path / "whole"))
    settings = told(folder, tmp_path / "parts")
    with pytest.raises(StoppedError):
        distil(settings, stopping_after(looks))
    assert not (tmp_path / "parts").exists()
    distil(settings)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_kill_between_checkpoints_makes_no_difference(folder: Path, tmp_path: Path) -> None:
    """Steps since the last checkpoint are done again, exactly."""
    import torch

    distil(told(folder, tmp_path / "whole"))

    class KilledError(Exception):
        pass

    looks = count(1)

    def killed() -> bool:
        if next(looks) == 31:  # ten batches of lessons, then steps; checkpoints every seven
            raise KilledError
        return False

    settings = told(folder, tmp_path / "parts")
    with pytest.raises(KilledError):
        distil(settings, killed)
    distil(settings)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_work_of_other_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    """What changed is named; training alone may be told anew once its checkpoint is gone."""
    work = tmp_path / "work"
    distil(told(folder, tmp_path / "one", work=str(work)))
    with pytest.raises(ConfigError, match="begun with other settings: reply_tokens 20, now 21"):
        distil(told(folder, tmp_path / "two", work=str(work), reply_tokens=21))
    with pytest.raises(ConfigError, match="steps 40, now 41"):
        distil(told(folder, tmp_path / "two", work=str(work), steps=41))
    (work / "checkpoint.pt").unlink()
    assert distil(told(folder, tmp_path / "two", work=str(work), steps=41)).num_steps == 41


def test_lessons_of_another_vocabulary_are_refused(folder: Path, tmp_path: Path) -> None:
    """A finished work folder is not taken for a drafter that has other tokens."""
    from paceline.online.cutting import init_drafter

    work = tmp_path / "work"
    distil(told(folder, tmp_path / "one", work=str(work), steps=1))
    (work / "checkpoint.pt").unlink()
    other = write_target(tmp_path / "target", vocab_size=120)
    init_drafter(InitSettings(target=str(other), out=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="vocab_size 97, now 120"):
        distil(told(folder, tmp_path / "two", work=str(work), drafter=str(tmp_path / "other")))


def test_weights_keep_their_type(folder: Path, tmp_path: Path) -> None:
    """A drafter in bfloat16 is trained in float32 and written in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "drafter", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(folder / "drafter").save_pretrained(tmp_path / "half")
    distil(told(folder, tmp_path / "out", drafter=str(tmp_path / "half"), steps=2))
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.bfloat16}


def test_minutes_bound_everything(folder: Path, tmp_path: Path) -> None:
    """By the clock: replies get a quarter, readings another, training the rest."""
    settings = told(folder, tmp_path / "out", minutes=0.2, steps=None, num_readings=24)
    done = distil(settings)  # twelve looks at the clock, each batch or step takes one second
    held_out, replies, readings = (
        LessonShards(tmp_path / "out.work" / name).num_shards
        for name in ("held-out", "replies", "readings")
    )
    assert (held_out, replies, readings) == (2, 1, 3)
    assert done.num_steps == 6


def test_disk_bounds_lessons(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they take as much as they may, training begins with what there is."""
    monkeypatch.setattr(LessonShards, "num_bytes", 1 << 20)
    distil(told(folder, tmp_path / "out", max_cache_mib=2))
    held_out = LessonShards(tmp_path / "out.work" / "held-out")
    assert held_out.num_shards == 1


def test_a_target_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    """Both sizes are named."""
    other = write_target(tmp_path / "target", vocab_size=120)
    with pytest.raises(ConfigError, match="the drafter has 97 tokens and the target 120"):
        distil(told(folder, tmp_path / "out", target=str(other)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "give --prompts FILE"),
        ({"steps": 0}, r"--steps is 0; give 1 or more"),
        ({"reply_batch": 0}, r"--reply-batch is 0"),
        ({"num_readings": -1}, r"--num-readings is -1"),
        ({"minutes": 0.0}, r"--minutes is 0"),
        ({"temperature": -1.0}, r"--temperature is -1"),
        ({"held_out_share": 1.0}, r"--held-out-share is 1"),
        ({"learning_rate": 2.0}, r"--learning-rate is 2"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The value, its limit, and what to give."""
    with pytest.raises(ConfigError, match=message):
        told(tmp_path, tmp_path / "out", **changes)


def test_settings_survive_their_way_to_the_process(tmp_path: Path) -> None:
    """As JSON and back they are the same."""
    settings = told(tmp_path, tmp_path / "out", minutes=2.5)
    assert msgspec.json.decode(msgspec.json.encode(settings), type=DistilSettings) == settings


def test_lessons_come_back_as_they_were(tmp_path: Path) -> None:
    """Shard by shard, in order; a damaged one is named."""
    rng = np.random.default_rng(0)
    shards = LessonShards(tmp_path)
    lessons = [
        Lesson(
            token_ids=rng.integers(0, 99, num + 3).astype(np.int32),
            num_prompt=num,
            top_ids=rng.integers(0, 99, (3, 4)).astype(np.int32),
            top_logprobs=rng.normal(size=(3, 4)).astype(np.float16),
        )
        for num in range(1, 6)
    ]
    shards.add(lessons[:2], seconds=1.5)
    shards.add(lessons[2:], seconds=2.0)
    shards.add([], seconds=0.5)
    found, seconds = LessonShards(tmp_path).read()
    assert seconds == 4.0
    for one, two in zip(found, lessons, strict=True):
        assert one.num_prompt == two.num_prompt
        for name in ("token_ids", "top_ids", "top_logprobs"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
    (tmp_path / "shard-000001.npz").write_bytes(b"PK broken")
    with pytest.raises(RecordError, match=r"shard-000001\.npz is damaged"):
        shards.read()


def test_replies_in_a_batch_are_those_alone(folder: Path) -> None:
    """Padding and neighbours change no token and no probability of a greedy reply."""
    from paceline.models import load_model
    from paceline.online.teacher import Teacher

    teacher = Teacher(load_model(folder / "target")[0], top_k=4, temperature=0.0)
    prompts = [[5, 6, 7, 8, 9, 10], [3], [50, 51, 52]]
    together = teacher.replies(prompts, max_tokens=12, seed=0)
    for prompt, lesson in zip(prompts, together, strict=True):
        alone = teacher.replies([prompt], max_tokens=12, seed=0)[0]
        assert lesson.token_ids.tolist() == alone.token_ids.tolist()
        assert np.allclose(lesson.top_logprobs, alone.top_logprobs, atol=2e-2)
        assert lesson.token_ids[lesson.num_prompt :].tolist() == lesson.top_ids[:, 0].tolist()
    texts = [lesson.token_ids.tolist() for lesson in together]
    for read, lesson in zip(teacher.readings(texts), together, strict=True):
        assert np.array_equal(read.token_ids, lesson.token_ids)
        assert np.array_equal(read.top_ids[lesson.num_prompt - 1 :, 0], lesson.top_ids[:, 0])


def test_texts_are_read_in_parts_that_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts a pass holds, each gets the lesson that it gets alone, in order."""
    from paceline.models import load_model
    from paceline.online import teacher as module

    model = load_model(folder / "target")[0]
    teacher = module.Teacher(model, top_k=4, temperature=0.0)
    texts = [list(range(5, 5 + length)) for length in (9, 2, 30, 3, 4, 12)]
    widths: list[int] = []
    model.register_forward_pre_hook(
        lambda _model, _args, kwargs: widths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    whole = teacher.readings(texts)
    assert widths == [len(texts) * 29]
    monkeypatch.setattr(module, "READ_LOGITS", {"cpu": 24 * model.config.vocab_size})
    parts = teacher.readings(texts)
    assert widths[1:] == [16, 29, 6, 11]
    for one, two, text in zip(whole, parts, texts, strict=True):
        assert one.token_ids.tolist() == two.token_ids.tolist() == text
        assert np.array_equal(one.top_ids, two.top_ids)


def test_a_device_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    """An unknown or missing device ends the work before it begins, and says what to give."""
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ConfigError, match=f"--device is '{name}'.*give cpu, auto"):
            distil(told(folder, tmp_path / "out", device=name))
    assert not (tmp_path / "out").exists()


def test_sampled_replies_depend_on_the_seed(folder: Path) -> None:
    """The same seed gives the same replies, another one others; a reply ends with its end token."""
    from paceline.models import load_model
    from paceline.online.teacher import Teacher

    teacher = Teacher(load_model(folder / "target")[0], top_k=4, temperature=3.0)
    prompts = [[5, 6, 7]] * 4

    def said(seed: int) -> list[list[int]]:
        lessons = teacher.replies(prompts, max_tokens=60, seed=seed)
        return [lesson.token_ids[3:].tolist() for lesson in lessons]

    assert said(1) == said(1)
    assert said(1) != said(2)
    ended = [reply for seed in range(6) for reply in said(seed) if 96 in reply]
    assert ended
    assert all(reply.index(96) == len(reply) - 1 for reply in ended)
