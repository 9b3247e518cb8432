"""Prompts of recorded agents: those that are asked, and those of other sessions to measure by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paceline.benchmarks.learn.records import Asked, Workload
from paceline.benchmarks.rendering import requests_of
from paceline.benchmarks.replay.tokens import Renderer
from paceline.benchmarks.traces import read_recorded
from paceline.errors import ConfigError

TURNS: Final = 6


@dataclass(frozen=True, slots=True)
class Prompts:
    """Of one workload.

    Attributes:
        asked: whose replies are learned from.
        held_out: of other sessions.
    """

    asked: list[Asked]
    held_out: list[Asked]


def read_prompts(
    traces: Path,
    workload: Workload,
    renderer: Renderer,
    context_tokens: int,
    num_held_out: int,
    *,
    held_out_turns: int = TURNS,
) -> Prompts:
    """Prompts of a workload; those of its last tasks are held out.

    Args:
        traces: folder of recorded traces.
        workload: which of them.
        renderer: how they become tokens.
        context_tokens: longest prompt.
        num_held_out: prompts to measure by.
        held_out_turns: most of them from one task, all of its first try.

    Raises:
        ConfigError: there are too few.
    """
    found: dict[str, list[Asked]] = {}
    for episode in read_recorded(traces, workload.source):
        if not episode.task_group.startswith(workload.tasks):
            continue
        requests = requests_of(
            episode,
            renderer,
            context_tokens=context_tokens,
            output_tokens=1,
            max_requests=TURNS,
        )
        # a task that was tried several times is one session here: none of it is on both sides
        found.setdefault(episode.task_group, []).extend(
            Asked(f"{workload.name}/{request.episode_id}", request.prompt_ids)
            for request in requests
        )
    sessions = list(found.values())
    held_out: list[Asked] = []
    while sessions and len(held_out) < num_held_out:
        task = sessions.pop()
        held_out += [it for it in task if it.session == task[0].session][:held_out_turns]
    asked = [prompt for session in sessions for prompt in session]
    if not asked or len(held_out) < num_held_out:
        raise ConfigError(
            f"{workload.name} has {len(asked)} prompts beside {len(held_out)} held-out ones; take "
            "fewer (--held-out) or another workload"
        )
    return Prompts(asked, held_out[:num_held_out])


def around(prompts: Sequence[Asked]) -> Iterator[Asked]:
    """All of them again and again, each time as other sessions."""
    turn = 0
    while True:
        for asked in prompts:
            yield Asked(f"{asked.session}#{turn}", asked.token_ids)
        turn += 1
