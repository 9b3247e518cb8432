"""Several sources' episodes as one tenant's traffic, each kind of work a workload."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from paceline.benchmarks.replay.episodes import Scope
from paceline.errors import ConfigError


def tenants_of(scopes: Iterable[Scope]) -> list[Scope]:
    """One scope for each model with more than one workload, over all of its sources.

    A source's episodes keep their order; those of several sources come in turn, so that each has
    come as far as the others at any time.

    Raises:
        ConfigError: no model has more than one workload.
    """
    by_model: dict[str, list[Scope]] = {}
    for scope in scopes:
        by_model.setdefault(scope.model, []).append(scope)
    mixed = [_mix(model, own) for model, own in by_model.items()]
    tenants = [scope for scope in mixed if len({e.workload for e in scope.episodes}) > 1]
    if not tenants:
        raise ConfigError(
            "no model of these traces has more than one workload; give more sources, or leave out "
            "--tenants"
        )
    return tenants


def _mix(model: str, scopes: list[Scope]) -> Scope:
    placed = [
        ((number + 0.5) / len(scope.episodes), place, number, scope.source, episode)
        for place, scope in enumerate(scopes)
        for number, episode in enumerate(scope.episodes)
    ]
    placed.sort(key=lambda row: row[:3])
    episodes = (
        replace(episode, session_id=f"{source}/{episode.session_id}")
        for *_, source, episode in placed
    )
    return Scope(model, model, tuple(episodes))
