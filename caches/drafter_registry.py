"""Versions of the model drafter: which there are, which one engines run, and how it does.

What is said of versions lies in Redis beside the model's journal, their files in a folder that
whoever trains and whoever runs them both see: ``FOLDER/NAMESPACE/GROUP/vNNNNNN/``. A version is
visible once its files are whole: its number is claimed, the files are written beside their place,
moved there, and only then recorded. What a crash leaves in between is never read, and swept later.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from paceline.caches import drafter_scripts as scripts
from paceline.caches.drafter_versions import (
    DrafterState,
    DrafterVersion,
    GateResult,
    GroupState,
    LiveFigures,
    SliceResult,
    copy_drafter,
    decode_version,
    encode_version,
    folder_checksum,
    no_rest,
    require_drafter,
)
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import DrafterKeys
from paceline.caches.records import NewerSchemaError
from paceline.errors import ConfigError, RecordError

__all__ = [
    "DrafterRegistry",
    "DrafterState",
    "DrafterVersion",
    "GateResult",
    "GroupState",
    "LiveFigures",
    "SliceResult",
    "folder_checksum",
]

LIVE_SECONDS: Final = 300.0
"""Figures that a replica has not renewed for so long drop out."""
MAX_REPLICAS: Final = 256
CANARY_SECONDS: Final = 300
"""A canary's replica that has not reported for so long has lost it: it is a candidate again."""
WRITE_SECONDS: Final = 3600
"""Longest time that the files of a version may take until it is recorded."""
MAX_NAME_BYTES: Final = 128
OLD_STATES: Final = frozenset({"retired", "rejected", "rolled_back"})


class DrafterRegistry:
    """The drafters of one model; use one object a thread.

    Every method may raise what `journal_client.UNREACHABLE` lists, and ConfigError where a group's
    name is empty or too long.

    Args:
        store: the model's journal.
        folder: where the files of all models' versions lie; made when first published to.
        clock: Unix time in seconds, of versions and figures. What is left over is told by Redis's.

    Attributes:
        num_skipped_newer: records of a newer Paceline that were left out, since the start.
        num_skipped_malformed: records that could not be read.
    """

    def __init__(
        self, store: JournalStore, folder: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.num_skipped_newer = 0
        self.num_skipped_malformed = 0
        self._store = store
        self._folder = folder.expanduser().absolute() / store.keys.namespace
        self._clock = clock

    def publish(
        self,
        group: str,
        source: Path,
        *,
        parent: int,
        num_tokens: int,
        gate: GateResult | None,
        reason: str = "",
        rest: Callable[[], object] = no_rest,
    ) -> DrafterVersion:
        """Copy a drafter into its place and record it.

        It is a candidate, or rejected if the gate did not let it pass.

        Args:
            group: whose drafter.
            source: its Hugging Face folder; not changed.
            parent: version that it was trained from, 0 for none.
            num_tokens: that it has learned from, in all.
            gate: what the gate found, None if it was not asked.
            reason: why it is published, for people.
            rest: called between parts of the copying; does not raise.

        Raises:
            ConfigError: the source is no drafter or changes meanwhile, its place cannot be written,
                or writing took so long that what was written has been swept away.
        """
        require_drafter(source)
        self.sweep(group)
        number = self._reserve(group)
        place = self._place(group, number)
        beside = place.with_name(f".{place.name}")
        try:
            checksum = copy_drafter(source, beside, rest=rest)
            _rename(beside, place)
            version = DrafterVersion(
                group=group,
                version=number,
                folder=str(place),
                checksum=checksum,
                parent=parent,
                state="candidate" if gate is None or gate.passed else "rejected",
                created_at=self._clock(),
                num_tokens=num_tokens,
                gate=gate,
                reason=reason or ("" if gate is None else "; ".join(gate.reasons)),
            )
            self._record(version)
        except (ConfigError, RecordError):
            self._remove_files(group, [number])
            raise
        return version

    def versions(self, group: str) -> list[DrafterVersion]:
        """Every version of a group that can be read, oldest first."""
        answer = self._run(scripts.READ, group)
        found: list[DrafterVersion] = []
        for data, state in zip(answer[::2], answer[1::2], strict=True):
            try:
                found.append(decode_version(data, state))
            except NewerSchemaError:
                self.num_skipped_newer += 1
            except RecordError:
                self.num_skipped_malformed += 1
        return sorted(found, key=lambda version: version.version)

    def version(self, group: str, version: int) -> DrafterVersion:
        """One version.

        Raises:
            ConfigError: there is no such version that can be read.
        """
        found = self.versions(group)
        for each in found:
            if each.version == version:
                return each
        raise self._unknown(group, version, found)

    def groups(self) -> list[str]:
        """Groups that have a drafter."""
        answer = self._store.client.smembers(self._store.keys.drafter_groups)
        return sorted(unquote(name.decode(), errors="surrogatepass") for name in answer)

    def state(self, group: str) -> GroupState:
        """What the group's engines should run: one round trip.

        A canary whose replica has gone quiet is given back first, so that another can try it.
        """
        answer = self._run(scripts.STATE, group, CANARY_SECONDS)
        current, last_good, canary, replica, generation = answer
        return GroupState(
            current=int(current),
            last_good=int(last_good),
            canary=int(canary),
            canary_replica=replica.decode("utf-8", "replace"),
            generation=int(generation),
        )

    def begin_canary(self, group: str, version: int, replica: str) -> bool:
        """Have one replica try a candidate; False if it may not.

        It may while no canary runs and the version is a candidate, also again if it has it already.
        It keeps it as long as it reports (`report`) at least every `CANARY_SECONDS`.
        """
        return bool(self._run(scripts.BEGIN_CANARY, group, version, replica, CANARY_SECONDS))

    def promote(self, group: str, version: int, *, reason: str) -> DrafterVersion:
        """Make a candidate, a canary or a retired version the current one; no change if it is.

        The one before is retired, and the last good one from then on. A canary of another version
        becomes a candidate again: what it was compared with has changed.

        Raises:
            ConfigError: there is no such version, or it was rejected or rolled back.
        """
        self.version(group, version)  # what this Paceline cannot read, it does not promote
        state = self._run(scripts.PROMOTE, group, version, reason).decode()
        if state:
            raise ConfigError(
                f"version {version} of {group} is {state}; a candidate, canary or retired version "
                "can be promoted. Publish its folder again if it should run all the same"
            )
        return self.version(group, version)

    def roll_back(
        self, group: str, *, reason: str, version: int | None = None, to: int | None = None
    ) -> GroupState:
        """Take a version back for good; if it is the current one, go back to the last good one.

        Args:
            group: whose drafter.
            reason: for people.
            version: which to take back, so that nobody takes back what another has just promoted;
                None for the canary if there is one, else the current one. If it has been taken back
                already, nothing changes.
            to: retired version to go back to in place of the last good one; then the current
                version is taken back, never a canary.

        Raises:
            ConfigError: there is nothing to take back, or a version is in another state.
        """
        arguments = ["" if number is None else number for number in (version, to)]
        answer = self._run(scripts.ROLL_BACK, group, *arguments, reason)
        number, state, others = (part.decode() for part in answer)
        if state == "none":
            raise ConfigError(f"{group} has neither a current version nor a canary to roll back")
        for named, found in ((int(number), state), (to, others)):
            if found == "unknown" and named is not None:
                raise self._unknown(group, named, self.versions(group))
        if others:
            raise ConfigError(f"version {to} of {group} is {others}; go back to a retired one")
        if state:
            allowed = "the current version" if to is not None else "any version but a rejected one"
            raise ConfigError(
                f"version {number} of {group} is {state}; {allowed} can be rolled back"
            )
        return self.state(group)

    def report(self, group: str, figures: LiveFigures) -> None:
        """Say how a version does on a replica; keeps that replica's canary.

        Stale replicas drop out, and the longest silent ones beyond `MAX_REPLICAS`.
        """
        encoded = msgspec.json.encode(figures)
        stale = repr(self._clock() - LIVE_SECONDS)
        arguments = [figures.replica, encoded, stale, MAX_REPLICAS, figures.version]
        self._run(scripts.REPORT, group, *arguments)

    def live(self, group: str) -> list[LiveFigures]:
        """What replicas say that have reported lately, by name."""
        found: list[LiveFigures] = []
        for data in self._store.client.hvals(self._keys(group).live):
            try:
                figures = msgspec.json.decode(data, type=LiveFigures)
            except msgspec.MsgspecError:
                self.num_skipped_malformed += 1
                continue
            if figures.updated_at >= self._clock() - LIVE_SECONDS:
                found.append(figures)
        return sorted(found, key=lambda figures: figures.replica)

    def prune(self, group: str, *, keep: int) -> list[int]:
        """Remove files and records of old versions but the newest `keep`; returns which.

        Old are retired, rejected and rolled back ones, but the last good one. What crashed
        publishers left goes too.

        Raises:
            ConfigError: `keep` is negative.
        """
        if keep < 0:
            raise ConfigError(f"keep is {keep}; give 0 or more versions to keep")
        last_good = self.state(group).last_good
        states = self._store.client.hgetall(self._keys(group).states)
        old = sorted(
            (
                int(number)
                for number, state in states.items()
                if state.partition(b":")[0].decode() in OLD_STATES and int(number) != last_good
            ),
            reverse=True,
        )
        removed = [int(number) for number in self._run(scripts.REMOVE, group, *old[keep:])]
        self._remove_files(group, removed)
        self.sweep(group)
        return sorted(removed)

    def retire(self, group: str) -> list[int]:
        """Take a group's drafter out of use and remove all of its versions; returns which.

        What is being published meanwhile is refused. Engines of the group go back to what they were
        started with.
        """
        name = self._encoded(group)
        removed = [int(number) for number in self._run(scripts.RETIRE, group, name)]
        self._remove_files(group, removed)
        return sorted(removed)

    def sweep(self, group: str) -> list[int]:
        """Remove files that nobody recorded within `WRITE_SECONDS`; returns of which numbers.

        Folders that this Redis has given no number to stay.
        """
        stale = [int(number) for number in self._run(scripts.SWEEP, group, WRITE_SECONDS)]
        self._remove_files(group, stale)
        return sorted(stale)

    def _reserve(self, group: str) -> int:
        """A number that neither Redis nor the folder has seen."""
        above = self._place(group, 0).parent
        try:
            above.mkdir(parents=True, exist_ok=True)
            highest = max((_number(file.name) for file in above.iterdir()), default=0)
        except OSError as error:
            raise ConfigError(f"{above} cannot be written: {error}") from error
        return int(self._run(scripts.RESERVE, group, highest + 1))

    def _record(self, version: DrafterVersion) -> None:
        encoded = encode_version(version)
        arguments = [version.version, encoded, version.state, version.reason]
        arguments.append(self._encoded(version.group))
        if not self._run(scripts.RECORD, version.group, *arguments):
            raise ConfigError(
                f"version {version.version} of {version.group} was swept away before it was "
                f"recorded: its group was retired meanwhile, or writing it took longer than "
                f"{WRITE_SECONDS} s; publish it again"
            )

    def _remove_files(self, group: str, versions: Iterable[int]) -> None:
        """Remove what lies of versions whose records are gone, then their claims."""
        for number in versions:
            place = self._place(group, number)
            for folder in (place, place.with_name(f".{place.name}")):
                shutil.rmtree(folder, ignore_errors=True)
            if not place.exists():
                self._store.client.hdel(self._keys(group).claims, number)

    def _place(self, group: str, version: int) -> Path:
        return self._folder / self._encoded(group) / f"v{version:06d}"

    def _keys(self, group: str) -> DrafterKeys:
        self._encoded(group)
        return self._store.keys.drafter(group)

    def _run(self, script: str, group: str, *arguments: object) -> Any:
        return self._store.run(script, self._keys(group).all(), arguments)

    @staticmethod
    def _encoded(group: str) -> str:
        """Name of a group's folder."""
        name = quote(group, safe="", errors="surrogatepass").replace(".", "%2E")
        if not 0 < len(name) <= MAX_NAME_BYTES:
            raise ConfigError(
                f"a drafter group's name is {group!r}; give one of 1 to {MAX_NAME_BYTES} bytes, "
                "percent-encoded"
            )
        return name

    @staticmethod
    def _unknown(group: str, version: int, found: list[DrafterVersion]) -> ConfigError:
        there = ", ".join(str(each.version) for each in found) or "none"
        return ConfigError(f"{group} has no version {version}; there are: {there}")


def _rename(beside: Path, place: Path) -> None:
    try:
        beside.rename(place)
    except OSError as error:
        raise ConfigError(f"{beside} cannot be moved to {place}: {error}") from error


def _number(name: str) -> int:
    """Number of a version's folder, whole or not; 0 of anything else."""
    digits = name.lstrip(".").removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdigit() else 0
