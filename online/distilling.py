"""Offline distillation: a drafter learns to say what its target says. Needs torch.

Two parts, both of which can end anywhere and go on: the target answers prompts, held-out sessions
first, and reads others, and the drafter learns from what it would have said.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import torch

from paceline.drafter_folder import (
    Distilled,
    DrafterRecord,
    HeldOut,
    kept_token_ids,
    new_folder,
    read_record,
    require_new,
)
from paceline.errors import ConfigError
from paceline.models import load_model, target_path
from paceline.online.cutting import save_drafter
from paceline.online.lessons import Lesson, LessonShards
from paceline.online.prompts import Prompt, prompt_tokens, read_prompts, split
from paceline.online.settings import DistilSettings
from paceline.online.student import Student, examine
from paceline.online.teacher import Teacher
from paceline.online.training import Trainer, TrainingLimits

DEFAULT_STEPS: Final = 1000
HELD_OUT, REPLIES, READINGS = "held-out", "replies", "readings"
"""Folders of lessons, in the order they are made."""
TIME_SHARE: Final = {HELD_OUT: 0.25, REPLIES: 0.25, READINGS: 0.5}
"""Of the given minutes, when to go on to the next."""
CHECKPOINT: Final = "checkpoint.pt"
SETTINGS: Final = "settings.json"
OF_TRAINING: Final = frozenset(
    {"drafter", "steps", "minutes", "batch", "learning_rate", "objective", "chain_tokens"}
)
OF_NEITHER: Final = frozenset({"out", "work", "threads", "device", "checkpoint_steps"})
"""Settings that only training depends on, and those on which no result does but by rounding."""
DEFAULTS: Final = {"objective": "forward_kl"}
"""What was done where settings that came later are not noted."""


class StoppedError(Exception):
    """The work was asked to stop; what is done is on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """One run of `paceline drafter distil`, or the rest of it.

    Attributes:
        settings: what was told.
        clock: seconds that only grow.
        is_stopping: whether to end as soon as what is done can be kept.
    """

    settings: DistilSettings
    clock: Callable[[], float]
    is_stopping: Callable[[], bool] = field(default=lambda: False)

    def run(self) -> Distilled:
        """Do all that is left to do and write the trained drafter's folder.

        Raises:
            ConfigError: a file or setting is wrong, drafter and target have different vocabularies,
                `out` exists, or `work` holds what other settings gave.
            RecordError: what is in `work` is damaged.
            StoppedError: `is_stopping` became true.
        """
        settings = self.settings
        out = Path(settings.out).expanduser()
        folder = Path(settings.drafter).expanduser()
        require_new(out)
        model, tokenizer = load_model(folder, keep_dtype=True)
        dtype, vocab_size = model.dtype, int(model.config.vocab_size)
        work = self._open_work(out, vocab_size)
        device = self._device()
        student = Student(model.float().to(device), kept_token_ids(folder, vocab_size))
        train, held_out, seconds = self._lessons(work, vocab_size)
        distilled = self._train(student, train, held_out, work, seconds)
        record = msgspec.structs.replace(_record(folder, model, settings), distilled=distilled)
        with new_folder(out) as beside:
            save_drafter(student.model.to("cpu", dtype), tokenizer, record, beside)
        return distilled

    def _device(self) -> torch.device:
        """Where target and drafter compute.

        Raises:
            ConfigError: torch does not know it, or it is not there.
        """
        name = self.settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        # on a GPU matrices are multiplied in TF32: rounding is not what limits a drafter
        torch.set_float32_matmul_precision("high")
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"--device is {name!r}, which torch cannot use here ({reason}); give cpu, auto, or "
                "a device of this machine such as cuda:0"
            ) from error

    def _open_work(self, out: Path, vocab_size: int) -> Path:
        """The folder for replies and checkpoints, if it is of this run."""
        told = self.settings.work
        work = out.with_name(f"{out.name}.work") if told is None else Path(told).expanduser()
        work.mkdir(parents=True, exist_ok=True)
        check_settings(work, self.settings, vocab_size)
        return work

    def _lessons(self, work: Path, vocab_size: int) -> tuple[list[Lesson], list[Lesson], float]:
        """(lessons to learn from, held-out ones, seconds that all of them took)."""
        shards = {name: LessonShards(work / name) for name in TIME_SHARE}
        if not all(part.is_complete for part in shards.values()):
            self._write_lessons(shards, vocab_size)
        read = {name: part.read() for name, part in shards.items()}
        seconds = sum(took for _, took in read.values())
        return [*read[REPLIES][0], *read[READINGS][0]], read[HELD_OUT][0], seconds

    def _write_lessons(self, shards: dict[str, LessonShards], vocab_size: int) -> None:
        settings = self.settings
        prompts = read_prompts([Path(file).expanduser() for file in settings.prompts])
        train, held_out = split(prompts, held_out_share=settings.held_out_share, seed=settings.seed)
        target, tokenizer = load_model(target_path(settings.target))
        if (size := int(target.config.vocab_size)) != vocab_size:
            raise ConfigError(
                f"the drafter has {vocab_size} tokens and the target {size}; give a drafter with "
                "the target's tokenizer"
            )
        teacher = Teacher(
            target.to(self._device()), top_k=settings.top_k, temperature=settings.temperature
        )
        wanted = {
            HELD_OUT: held_out[: settings.held_out_prompts],
            REPLIES: train[: settings.num_prompts],
            READINGS: train[::-1][: settings.num_readings],  # first those that are not answered
        }
        for name, chosen in wanted.items():
            self._write_part(teacher, tokenizer, chosen, shards, name)
            shards[name].complete()

    def _write_part(
        self,
        teacher: Teacher,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        shards: dict[str, LessonShards],
        name: str,
    ) -> None:
        settings, mine = self.settings, shards[name]
        seconds = sum(part.read()[1] for part in shards.values())
        size = settings.reply_batch
        with _bar(name, len(prompts)) as advance:
            advance(min(mine.num_shards * size, len(prompts)))
            while (first := mine.num_shards * size) < len(prompts):
                if self._is_enough(shards, name, seconds):
                    break
                if self.is_stopping():
                    raise StoppedError
                started = self.clock()
                batch = prompt_tokens(
                    prompts[first : first + size], tokenizer, max_tokens=settings.prompt_tokens
                )
                lessons = self._taught(teacher, batch, name, settings.seed + first)
                took = self.clock() - started
                mine.add(lessons, seconds=took)
                seconds += took
                advance(len(batch))

    def _taught(
        self, teacher: Teacher, batch: Sequence[Sequence[int]], name: str, seed: int
    ) -> list[Lesson]:
        if name == READINGS:
            read: list[Lesson] = teacher.readings([ids for ids in batch if len(ids) > 1])
            return read
        replies: list[Lesson] = teacher.replies(
            batch, max_tokens=self.settings.reply_tokens, seed=seed
        )
        return replies

    def _is_enough(self, shards: dict[str, LessonShards], name: str, seconds: float) -> bool:
        """Whether lessons have taken all the disk or time that they may."""
        if shards[name].num_shards == 0 and name != READINGS:
            return False  # one batch of replies there must be
        minutes = self.settings.minutes
        if sum(part.num_bytes for part in shards.values()) >= self.settings.max_cache_mib << 20:
            return True
        return minutes is not None and seconds >= minutes * 60 * TIME_SHARE[name]

    def _train(
        self,
        student: Student,
        train: Sequence[Lesson],
        held_out: Sequence[Lesson],
        work: Path,
        seconds: float,
    ) -> Distilled:
        settings = self.settings
        before = self._examined(student, held_out)
        minutes = settings.minutes
        limits = TrainingLimits(
            steps=DEFAULT_STEPS if settings.steps is None and minutes is None else settings.steps,
            seconds=None if minutes is None else max(minutes * 60 - seconds, 1.0),
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            objective=settings.objective,
        )
        trainer = Trainer(student, train, limits, clock=self.clock)
        checkpoint = work / CHECKPOINT
        if checkpoint.exists():
            trainer.restore(checkpoint)
        self._run_trainer(trainer, checkpoint)
        return Distilled(
            num_steps=trainer.num_steps,
            num_tokens=sum(lesson.num_reply for lesson in train),
            before=before,
            after=self._examined(student, held_out),
        )

    def _run_trainer(self, trainer: Trainer, checkpoint: Path) -> None:
        shown = 0
        with _bar("training", 1000) as advance:
            for progress in trainer.run():
                advance(round(progress * 1000) - shown)
                shown = round(progress * 1000)
                if self.is_stopping():
                    trainer.save(checkpoint)
                    raise StoppedError
                if trainer.num_steps % self.settings.checkpoint_steps == 0:
                    trainer.save(checkpoint)
        trainer.save(checkpoint)

    def _examined(self, student: Student, lessons: Sequence[Lesson]) -> HeldOut:
        settings = self.settings
        return examine(student, lessons, chain_tokens=settings.chain_tokens, batch=settings.batch)


def check_settings(work: Path, settings: DistilSettings, vocab_size: int) -> None:
    """Note in `work` what it is made with; refuse to go on with something else.

    Training may be told anew once there is no checkpoint.

    Raises:
        ConfigError: it was made with other settings, or its note cannot be read.
    """
    told = {**_told(settings), "vocab_size": vocab_size}
    file = work / SETTINGS
    if file.exists():
        try:
            before = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ConfigError(f"{file} is damaged ({error}); delete {work}") from error
        has_checkpoint = (work / CHECKPOINT).exists()
        changed = [
            f"{name} {before.get(name)}, now {value}"
            for name, value in told.items()
            if before.get(name, DEFAULTS.get(name)) != value
            and (has_checkpoint or name not in OF_TRAINING)
        ]
        if changed:
            raise ConfigError(
                f"{work} was begun with other settings: {'; '.join(changed)}. Give another --work, "
                f"delete it, or delete {CHECKPOINT} in it to train anew on the same replies"
            )
    beside = file.with_suffix(".new")
    beside.write_bytes(msgspec.json.encode(told))
    beside.replace(file)


def _told(settings: DistilSettings) -> dict[str, Any]:
    """Settings that results depend on, as JSON has them; files with their sizes."""
    told = msgspec.to_builtins(settings)
    for name in OF_NEITHER:
        del told[name]
    files = [Path(file).expanduser() for file in settings.prompts]
    told["prompts"] = [
        [str(file), file.stat().st_size if file.exists() else None] for file in files
    ]
    return dict(told)


def _record(folder: Path, model: Any, settings: DistilSettings) -> DrafterRecord:
    """What `paceline.json` says of a drafter, also of one that was not cut by us."""
    return read_record(folder) or DrafterRecord(
        target=Path(settings.target).name,
        layers=(),
        vocab_size=int(model.config.vocab_size),
        kept_token_ids=(),
    )


@contextmanager
def _bar(label: str, length: int) -> Iterator[Callable[[int], None]]:
    with click.progressbar(length=length, label=f"{label:<18}", file=sys.stderr) as bar:
        yield bar.update
