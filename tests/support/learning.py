"""A learner on a small target, with real sessions of it and a real registry."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.journal_store import JournalStore
from paceline.online.settings import InitSettings
from sessions import NAMESPACE, Clock, settled, turn
from small_chats import write_target

SETTINGS: dict[str, Any] = {
    "redis_url": "redis://nowhere",
    "model": "small",
    "load": {"load_average": True},
    "replay": {"held_out_share": 0.3, "passage_tokens": 64, "context_tokens": 8},
    "gate": {"min_sessions": 5, "num_resamples": 500},
    "judging": {"canary": False, "chain_tokens": 4},
    "cycle": {
        "min_new_tokens": 100,
        "passages": 40,
        "epochs": 6,
        "batch": 4,
        "learning_rate": 5e-3,
        "checkpoint_steps": 7,
        "idle_price": 0.0,
    },
}


def write_models(folder: Path) -> Path:
    """A target of four layers and a drafter cut from it that has learned nothing."""
    write_target(folder / "target", num_hidden_layers=4, hidden_size=64, eos_token_id=96)
    return with_drafter(folder)


def with_drafter(folder: Path) -> Path:
    """Beside ``target`` in a folder, a drafter of its outer layers that has learned nothing."""
    from paceline.online.cutting import init_drafter

    init_drafter(InitSettings(target=str(folder / "target"), out=str(folder / "drafter")))
    return folder


def sessions_of(target: Path, num: int, *, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Prompts and what the target says to them, greedily; few different prompts, as agents have."""
    generator = np.random.default_rng(seed)
    kinds = [generator.integers(2, 90, 6).tolist() for _ in range(6)]
    return answered(target, [[*kinds[i % 6], int(generator.integers(2, 90))] for i in range(num)])


def answered(target: Path, prompts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Prompts, each with what the target says to it, greedily."""
    from paceline.models import load_model
    from paceline.online.teacher import Teacher

    model, _ = load_model(target)
    lessons = Teacher(model, top_k=4, temperature=0).replies(prompts, max_tokens=20, seed=0)
    return [
        (prompt, it.token_ids[len(prompt) :].tolist())
        for prompt, it in zip(prompts, lessons, strict=True)
    ]


@dataclass
class SmallLearner:
    """A learner and what it works with."""

    learner: Any
    replay: Any
    registry: DrafterRegistry
    gate: Any
    stop: threading.Event
    taught: list[int]
    """Passages of each call of the teacher."""
    clock: Clock

    def hear(self, sessions: list[tuple[list[int], list[int]]], *, first: int = 0) -> None:
        """Take in sessions, and let them go quiet."""
        for i, (read, said) in enumerate(sessions, first):
            self.replay.add(turn(i, read, said, session=f"s{i}", num_before=0, at=self.clock.now))
        settled(self.replay, self.clock)


def small_learner(
    models: Path,
    folder: Path,
    store: JournalStore,
    *,
    hook: Callable[[], Any] = lambda: None,
    stop: threading.Event | None = None,
    **changes: Any,
) -> SmallLearner:
    """A learner whose gate is open.

    Args:
        models: of `write_models`.
        folder: of the learner and of the registry.
        store: of the registry's model.
        hook: called at every look at the gate.
        stop: ends the learner.
        changes: of settings, each a block's.
    """
    from paceline.models import load_model
    from paceline.online.idle import IdleGate, IdleSettings
    from paceline.online.learner import Learner
    from paceline.online.learner_parts import LearnerParts
    from paceline.online.learner_settings import checked
    from paceline.online.looks import Looks
    from paceline.online.passage_teaching import TargetTeacher
    from paceline.online.ranks import Ranks
    from paceline.online.replay import Replay
    from paceline.online.teacher import Teacher

    told = {
        name: value | changes.pop(name, {}) if isinstance(value, dict) else value
        for name, value in SETTINGS.items()
    }
    settings = checked(
        {
            **told,
            "registry": str(folder / "registry"),
            "data": str(folder / "data"),
            "target": str(models / "target"),
            "drafter": str(models / "drafter"),
            **changes,
        }
    )
    clock = Clock()
    taught: list[int] = []

    class HookedGate(IdleGate):
        def is_open(self) -> bool:
            hook()
            return super().is_open()

    class CountingTeacher(TargetTeacher):
        def teach(self, passages: Any) -> Any:
            taught.append(len(passages))
            return super().teach(passages)

    gate_clock = Clock()
    gate = HookedGate([], IdleSettings(open_after_seconds=0.0), clock=gate_clock)
    gate_clock.now += 10.0  # in which it was closed: somebody was served
    gate.look()
    gate_clock.now += 10.0
    replay = Replay.open(
        folder / "data" / "replay", namespace=NAMESPACE, settings=settings.replay, clock=clock
    )
    registry = DrafterRegistry(store, folder / "registry")
    target, _ = load_model(models / "target")
    stop = stop or threading.Event()
    parts = LearnerParts(
        replay=replay,
        teacher=CountingTeacher(Teacher(target, top_k=8, temperature=0)),
        registry=registry,
        gate=gate,
        looks=Looks(gate, stop),
        ranks=Ranks(),
    )
    learner = Learner(settings, parts)
    return SmallLearner(learner, replay, registry, gate, stop, taught, clock)
