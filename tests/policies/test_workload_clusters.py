"""Kinds of work found by nearness: who joins whom, which names stay, what is stored."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError, RecordError
from paceline.policies.text_features import NUM_BUCKETS, TextFeatures, Vectors, normalised
from paceline.policies.workload_clusters import (
    MAX_EXAMPLES,
    NUM_PARTS,
    TEXT,
    Change,
    ClusterSettings,
    Example,
    Usage,
    WorkloadClusters,
    decode_cluster,
    encode_cluster,
)

PILOT = (
    "You are a travel agent of an airline. You book, change and cancel flights, and explain what "
    "each of these costs. Ask for the user's id first, and never for a password. Refuse what the "
    "policy does not allow. "
)
CODER = (
    "You are an engineer at work in a repository. You read files, write patches and run the tests "
    "until all of them pass. Never commit to the main branch, and say what you changed. "
)


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return TextFeatures()


def prompt(
    features: TextFeatures, name: str, system: str, tools: str = "", at: float = 0
) -> Example:
    return Example(name, features.vectors((system, tools, "")), at)


def opening(features: TextFeatures, name: str, text: str, at: float = 0) -> Example:
    return Example(name, features.vectors(("", "", text)), at)


def direction(*shares: float, part: int = TEXT) -> Vectors:
    """A vector with the given sizes in its first buckets."""
    made = np.zeros((NUM_PARTS, NUM_BUCKETS), np.float32)
    made[part, : len(shares)] = shares
    return normalised(made)


def put(clusters: WorkloadClusters, example: Example) -> Change:
    change = clusters.place(example)
    clusters.apply(change)
    return change


def test_prompts_that_differ_in_details_are_one_kind(features: TextFeatures) -> None:
    """A date and a name in the prompt found no new kind; another agent's prompt does."""
    clusters = WorkloadClusters()
    first = put(clusters, prompt(features, "a", f"Today is Monday, 2 May 2026. {PILOT * 3}"))
    second = put(clusters, prompt(features, "b", f"Today is Friday, 9 June 2026. {PILOT * 3}"))
    third = put(clusters, prompt(features, "c", CODER * 3))
    assert (first.name, first.founded) == ("a", True)
    assert (second.name, second.founded) == ("a", False)
    assert (third.name, third.founded) == ("c", True)
    assert clusters["a"].examples == ("a", "b")
    assert clusters["a"].num_texts == 2


def test_every_part_has_to_be_near(features: TextFeatures) -> None:
    """Helpers that share all tools with their agent are kinds of their own."""
    tools = '[{"name": "bash", "description": "runs a command and gives its output back"}]' * 4
    clusters = WorkloadClusters()
    put(clusters, prompt(features, "main", PILOT, tools))
    assert put(clusters, prompt(features, "helper", CODER, tools)).founded
    assert put(clusters, prompt(features, "toolless", PILOT)).founded
    assert put(clusters, opening(features, "asked", PILOT)).founded
    assert put(clusters, prompt(features, "again", PILOT, tools)).name == "main"


def test_first_messages_of_one_template_are_one_kind(features: TextFeatures) -> None:
    """Requests without system prompt are named by how they are put."""
    clusters = WorkloadClusters()
    query = 'Query: "{}". Write one SQL statement and do not generate any output or reward.'
    asked = ("How many singers are there?", "Which city has most airports?", "Name all concerts")
    names = [put(clusters, opening(features, q, query.format(q))).name for q in asked]
    assert set(names) == {asked[0]}
    other = put(clusters, opening(features, "p", "Please help me cancel my flight to Rome."))
    assert other.founded


def test_placing_changes_nothing_until_it_is_applied(features: TextFeatures) -> None:
    """A refused change leaves no trace."""
    clusters = WorkloadClusters()
    put(clusters, prompt(features, "a", PILOT))
    before = clusters.clusters()
    clusters.place(prompt(features, "b", PILOT + "Be brief."))
    clusters.place(prompt(features, "c", CODER))
    assert clusters.clusters() == before


def test_kinds_that_grow_together_are_merged_and_the_old_name_leads_on() -> None:
    """The better known one keeps its name; texts, examples and later merges follow."""
    settings = ClusterSettings(join_text=0.9, merge_text=0.9)
    clusters = WorkloadClusters(settings)
    for number in range(4):
        put(clusters, Example(f"a{number}", direction(1, 0), number))
    for number in range(3):
        assert put(clusters, Example(f"b{number}", direction(0.8, 1), number)).name == "b0"
    assert len(clusters) == 2
    # each text that lies between draws the nearer one's mean over
    number = 0
    while len(clusters) == 2:
        number += 1
        assert number < 100
        drawn = normalised(clusters["b0"].vectors() + 0.5 * clusters["a0"].vectors())
        change = put(clusters, Example(f"c{number}", drawn, 10))
    assert dict(change.gone) in ({"a0": "b0"}, {"b0": "a0"})
    (lost, kept), *_ = change.gone.items()
    assert clusters.resolve(lost) == kept == change.name
    assert clusters[kept].num_texts == 7 + number
    clusters.apply(
        Change("d", founded=True, put=(_renamed(clusters, kept, "d"),), gone={kept: "d"})
    )
    assert clusters.resolve(lost) == clusters.resolve(kept) == "d"


def _renamed(clusters: WorkloadClusters, name: str, new: str):  # type: ignore[no-untyped-def]
    return msgspec.structs.replace(clusters[name], name=new)


def test_the_least_counted_makes_room_and_comes_back_under_its_name() -> None:
    """Counts halve with time; a kind that was dropped has the same name when it is founded anew."""
    clusters = WorkloadClusters(ClusterSettings(max_clusters=2, half_life_seconds=100))
    busy, quiet, new = direction(1), direction(0, 1), direction(0, 0, 1)
    put(clusters, Example("busy", busy, 0))
    put(clusters, Example("quiet", quiet, 0))
    clusters.use("busy", 100, 0)
    clusters.use("nobody", 5, 0)
    assert put(clusters, Example("new", new, 10)).gone == {"quiet": ""}
    assert "busy" in clusters
    assert clusters.resolve("quiet") == "quiet"
    clusters.use("new", 1, 990)
    # ten half-lives later a hundred requests are worth less than one of now
    assert put(clusters, Example("quiet", quiet, 1000)).gone == {"busy": ""}
    clusters.set_usage({"new": Usage(1, 5000.0), "stranger": Usage(1, 0)})
    assert put(clusters, Example("busy", busy, 5000)).gone == {"quiet": ""}


def test_what_was_not_used_expires() -> None:
    """Requests keep a kind that gets no new texts."""
    clusters = WorkloadClusters()
    for number, name in enumerate(("old", "used")):
        put(clusters, Example(name, direction(*[0] * number, 1), 0))
    clusters.use("used", 1, 500)
    assert clusters.expired(0) is None
    change = clusters.expired(400)
    assert change is not None
    assert change.gone == {"old": ""}


def test_a_kind_found_elsewhere_joins_a_near_one_or_keeps_its_name() -> None:
    """What two processes found apart becomes one kind, with the other name as an alias."""
    here, there = WorkloadClusters(), WorkloadClusters()
    put(here, Example("here", direction(1, 0.1), 1))
    put(there, Example("there", direction(1, 0.2), 2))
    put(there, Example("only", direction(0, 0, 0, 1), 3))
    put(there, Example("here", direction(0, 0, 0, 0, 1), 3))
    near, far, same = (here.adopt(there[name]) for name in ("there", "only", "here"))
    here.apply(near)
    here.apply(far)
    assert (near.name, near.gone) == ("here", {"there": "here"})
    assert here["here"].num_texts == 2
    assert (far.name, far.founded) == ("only", True)
    assert (same.name, same.put) == ("here", ())
    assert here.adopt(there["there"]).put == ()


def test_records_come_back_and_hold_no_text(features: TextFeatures) -> None:
    """A stored kind is small, the same when read, and has none of the words."""
    clusters = WorkloadClusters()
    for number in range(20):
        put(
            clusters,
            prompt(features, f"{number:016x}", f"{PILOT * 3} You serve guest {number * 7}x"),
        )
    (cluster,) = clusters.clusters()
    data = encode_cluster(cluster)
    assert decode_cluster(data) == cluster
    assert len(cluster.examples) == MAX_EXAMPLES
    assert len(data) < 1500
    assert not [word for word in PILOT.split() if len(word) > 3 and word.encode() in data]
    again = WorkloadClusters(clusters=[decode_cluster(data)])
    assert again.nearest(features.vectors((PILOT * 3, "", ""))) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "schema 99.*update Paceline"),
        ({"parts": 0}, "parts 0b0"),
        ({"parts": 3}, "expected 2048"),
        ({"mean": b"12"}, "in 2 bytes"),
    ],
)
def test_records_that_cannot_be_used_are_refused(changes: dict[str, object], message: str) -> None:
    """A newer schema and odd sizes are named."""
    clusters = WorkloadClusters()
    put(clusters, Example("a", direction(1), 0))
    odd = msgspec.structs.replace(clusters["a"], **changes)
    with pytest.raises(RecordError, match=message):
        decode_cluster(encode_cluster(odd))
    with pytest.raises(RecordError, match="cannot be read"):
        decode_cluster(b"\x00")


def test_wrong_settings_are_named() -> None:
    """Value, limit and fix are in the message."""
    for changes, message in (
        ({"max_clusters": 0}, "max_clusters is 0"),
        ({"join_text": 1.5}, "join_text is 1.5; it is a cosine"),
        ({"half_life_seconds": 0.0}, "half_life_seconds is 0.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ClusterSettings(**changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no kind"):
        WorkloadClusters().place(Example("a", direction(), 0))


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 5)), max_size=60
    ),
    limit=st.integers(1, 6),
)
@settings(deadline=None)
def test_invariants_hold_whatever_comes(steps: list[tuple[int, int, int]], limit: int) -> None:
    """Bounds are kept, aliases lead to kinds that exist, and a name is always a first text's."""
    clusters = WorkloadClusters(ClusterSettings(max_clusters=limit, join_text=0.8, merge_text=0.85))
    seen: set[str] = set()
    for number, (angle, part, used) in enumerate(steps):
        name = f"{angle}-{part}"
        seen.add(name)
        vectors = direction(np.cos(angle / 10), np.sin(angle / 10), part=part)
        change = put(clusters, Example(name, vectors, float(number)))
        clusters.use(change.name, used, float(number))
        assert change.name in clusters
        assert len(clusters) <= limit
        assert len(clusters.aliases) <= clusters.max_aliases
        assert all(successor in clusters for successor in clusters.aliases.values())
        assert not [alias for alias in clusters.aliases if alias in clusters]
        assert {c.name for c in clusters.clusters()} <= seen
        nearest = clusters.nearest(clusters[change.name].vectors())
        assert nearest is not None
        assert nearest.nearness == pytest.approx(1, abs=1e-3)
