"""A whole `paceline serve` with something to show in every panel of the dashboard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import openai

from learning import write_models
from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_store import JournalStore, registered_models
from paceline.caches.keys import JournalKeys, namespace_of
from paceline.middleware.dashboard.stored import read_stored
from paceline.online.greedy_replay import ReplayCounts
from paceline.online.promotion import GateSettings, SessionReplay, judge
from paceline.policies.tenants import hash_key
from serving import Serving

ADMIN_KEY = "the-admins-key"
TENANTS = ("search-team", "night-batch")
WORKLOADS = ("sql", "edit-files")


@contextmanager
def dashboard_stack(folder: Path, redis_url: str) -> Iterator[Serving]:
    """Serve a small model to two tenants, with a drafter, a bandit and a registry of versions."""
    models = write_models(folder / "models")
    policy = folder / "policy.yaml"
    tenants = [{"name": name, "keys": [hash_key(name)]} for name in TENANTS]
    policy.write_text(json.dumps({"tenants": tenants, "admin_keys": [hash_key(ADMIN_KEY)]}))
    registry = folder / "registry"
    env = {"PACELINE_BANDIT": "1", "PACELINE_DRAFTER_REGISTRY": str(registry)}
    arguments = ("--model", str(models / "target"), "--drafter", str(models / "drafter"))
    arguments = (*arguments, "--redis", redis_url, "--policy", str(policy))
    with mock.patch.dict(os.environ, env), Serving(folder, *arguments, dashboard=True) as serving:
        while not any(model.contexts for model in read_stored(redis_url)):
            serve_some(serving, 2)
        # from here on a version is tried, and the bandit learns nothing more
        publish(redis_url, registry, models / "drafter")
        yield serving


def publish(redis_url: str, registry: Path, drafter: Path) -> None:
    """Two versions of the drafter: one that the gate lets pass, one that it refuses."""
    client = RedisAddress(redis_url).connect()
    (fingerprint,) = registered_models(client)
    store = JournalStore(client, JournalKeys(namespace_of(fingerprint)))
    versions = DrafterRegistry(store, registry)
    for after, num_tokens in ((70, 48_000), (48, 96_000)):
        sessions = [replayed(f"s{i}", after + i % 5) for i in range(30)]
        gate = judge(sessions, GateSettings(num_resamples=500))
        versions.publish("shared", drafter, parent=0, num_tokens=num_tokens, gate=gate)
    client.close()


def replayed(session: str, num_accepted: int) -> SessionReplay:
    """A held-out session on which the running drafter has 50 tokens accepted."""
    before, after = (
        ReplayCounts(num_tokens=150, num_agreed=60, num_rounds=150 - num, num_accepted=num)
        for num in (50, num_accepted)
    )
    return SessionReplay(session=session, workload="sql", before=before, after=after)


def ask(serving: Serving, tenant: str, workload: str, number: int) -> int:
    """One streamed chat of a session; few different ones, as agents have."""
    with openai.OpenAI(base_url=serving.base_url, api_key=tenant, max_retries=0) as client:
        asked: Any = client.chat.completions.create(
            model="target",
            messages=[{"role": "user", "content": f"w{number % 3} w{7 + number % 3} w12"}],
            max_tokens=48,
            temperature=0,
            stream=True,
            extra_headers={"x-paceline-workload": workload, "x-session-id": f"{number}"},
        )
        return sum(1 for _ in asked)


def serve_some(serving: Serving, num_rounds: int) -> None:
    """Every tenant's workloads, at the same time, a few times over."""
    with ThreadPoolExecutor(4) as pool:
        for number in range(num_rounds):
            asked = [
                pool.submit(ask, serving, tenant, workload, number)
                for tenant in TENANTS
                for workload in WORKLOADS
            ]
            for each in asked:
                assert each.result(60) > 0
