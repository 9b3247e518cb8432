"""Versions of drafters as records: what one is, how it was judged, how it does; and its files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from paceline.caches.records import NewerSchemaError
from paceline.errors import ConfigError, RecordError

SCHEMA: Final = 1
CHECKSUM_BYTES: Final = 16
READ_BYTES: Final = 1 << 20
COPY_BYTES: Final = 1 << 22

DrafterState = Literal["candidate", "canary", "current", "retired", "rejected", "rolled_back"]
"""What a version is: published and not tried yet; on one replica; on all; was on all; refused by
the gate; taken back."""


class SliceResult(msgspec.Struct, frozen=True, kw_only=True):
    """How drafters did on the held-out sessions of one workload.

    Attributes:
        workload: its name.
        num_sessions: held out.
        before: accepted tokens a round of the drafter that runs.
        after: of the candidate.
    """

    workload: str
    num_sessions: int
    before: float
    after: float


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the promotion gate found.

    Attributes:
        passed: whether engines may try the candidate.
        num_sessions: held-out sessions it was judged on.
        num_rounds: rounds of greedy replay with the drafter that runs.
        before: accepted tokens a round over all sessions, of the drafter that runs.
        after: of the candidate.
        lower_bound: of `after - before`, one-sided, by paired bootstrap over sessions.
        agreement_before: share of tokens that the drafter that runs finds likeliest as the target.
        agreement_after: of the candidate.
        slices: workload by workload.
        reasons: why it did not pass, empty if it did.
    """

    passed: bool
    num_sessions: int
    num_rounds: int
    before: float
    after: float
    lower_bound: float
    agreement_before: float
    agreement_after: float
    slices: tuple[SliceResult, ...]
    reasons: tuple[str, ...]


class DrafterVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a group's drafter.

    Attributes:
        schema: of this record.
        group: whose drafter.
        version: 1, 2, ... as the registry gave it; a number is never given twice.
        folder: absolute path of its files, an ordinary Hugging Face folder.
        checksum: `folder_checksum` of it.
        parent: version that it was trained from, 0 for none.
        state: what it is now.
        created_at: Unix time in seconds.
        num_tokens: that it has learned from, in all.
        gate: what the gate found, None if it was not asked.
        reason: of the last change of its state.
    """

    schema: int = SCHEMA
    group: str
    version: int
    folder: str
    checksum: str
    parent: int
    state: DrafterState
    created_at: float
    num_tokens: int
    gate: GateResult | None = None
    reason: str = ""


class LiveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How the version that a replica runs does there.

    Attributes:
        replica: name of the engine.
        version: that it runs.
        num_rounds: rounds in which the model drafted for a request, each request's counted.
        num_agreed: of them those in which its first token was right.
        accepted_length: tokens of its own chain that were right, mean a round and request.
        updated_at: Unix time in seconds.
    """

    replica: str
    version: int
    num_rounds: int
    num_agreed: int
    accepted_length: float
    updated_at: float


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """What a group's engines should run.

    Attributes:
        current: version for all of them, 0 for none.
        last_good: that was current before and was not taken back, 0 for none.
        canary: version that one replica tries, 0 for none.
        canary_replica: which one, "" for none.
        generation: grows with every change, also of versions.
    """

    current: int
    last_good: int
    canary: int
    canary_replica: str
    generation: int


def encode_version(version: DrafterVersion) -> bytes:
    """What does not change of a version, as JSON.

    Raises:
        RecordError: it has a number that JSON has not (infinity, NaN).
    """
    fields = msgspec.to_builtins(version)
    del fields["state"], fields["reason"]
    encoded = msgspec.json.encode(fields)
    decode_version(encoded, b"candidate:")
    return encoded


def decode_version(data: bytes, state: bytes) -> DrafterVersion:
    """The version in a record.

    Args:
        data: what `encode_version` gave.
        state: its state, a colon, the reason.

    Raises:
        NewerSchemaError: a newer Paceline wrote it.
        RecordError: it is damaged.
    """
    try:
        fields = msgspec.json.decode(data, type=dict[str, Any])
        schema = msgspec.convert(fields.get("schema"), int)
        if schema > SCHEMA:
            raise NewerSchemaError(
                f"a drafter's record has schema {schema}, this Paceline reads up to {SCHEMA}; "
                "update it to use the version"
            )
        name, _, reason = state.decode().partition(":")
        return msgspec.convert({**fields, "state": name, "reason": reason}, DrafterVersion)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError(f"a drafter's record of {len(data)} bytes is damaged: {error}") from error


def no_rest() -> None:
    """Between parts of what nobody waits for."""


def folder_checksum(folder: Path, *, rest: Callable[[], object] = no_rest) -> str:
    """Hex digest over the names and contents of all files in a folder and below. O(bytes).

    Args:
        folder: whose files.
        rest: called after every `READ_BYTES`.

    Raises:
        ConfigError: it is no folder, or cannot be read.
    """
    hashed = blake2b(digest_size=CHECKSUM_BYTES)
    try:
        for name, file in _files(folder):
            hashed.update(len(name).to_bytes(8, "little") + name)
            hashed.update(file.stat().st_size.to_bytes(8, "little"))
            with file.open("rb") as opened:
                while part := opened.read(READ_BYTES):
                    hashed.update(part)
                    rest()
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
    return hashed.hexdigest()


def require_drafter(folder: Path) -> None:
    """Check that a folder looks like one of Hugging Face; nothing is loaded.

    Raises:
        ConfigError: it does not.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} has no config.json or no *.safetensors; give the Hugging Face folder of a "
            "drafter, as `paceline drafter distil` writes it"
        )


def copy_drafter(source: Path, target: Path, *, rest: Callable[[], object] = no_rest) -> str:
    """Copy a drafter's files into a new folder, and see them on disk; returns their checksum.

    Links are followed: what lies in the new folder is whole by itself.

    Args:
        source: of the drafter.
        target: made.
        rest: called after every `COPY_BYTES`, and while checksums are taken; does not raise.

    Raises:
        ConfigError: the source cannot be read or changes meanwhile, or the target exists or cannot
            be written.
    """
    try:
        shutil.copytree(source, target, copy_function=partial(_copy_file, rest=rest))
        target.chmod(0o755)  # a folder that was made as a temporary one is its maker's alone
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"{source} cannot be copied to {target}: {error}") from error
    checksum = folder_checksum(target, rest=rest)
    if checksum != folder_checksum(source, rest=rest):
        raise ConfigError(f"{source} changed while it was copied; wait for who writes it")
    return checksum


def _files(folder: Path) -> Iterator[tuple[bytes, Path]]:
    """(name below the folder, file) of every file, in an order that only the names determine."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; a drafter is a Hugging Face folder")
    found = [
        Path(above) / name
        for above, _, names in os.walk(folder, followlinks=True)
        for name in names
    ]
    yield from sorted((os.fsencode(file.relative_to(folder).as_posix()), file) for file in found)


def _copy_file(source: str, target: str, *, rest: Callable[[], object]) -> str:
    """A file's content and mode, on disk; as `shutil.copy2`, which gives no leave in between."""
    with Path(source).open("rb") as read, Path(target).open("wb", buffering=0) as written:
        while part := memoryview(read.read(COPY_BYTES)):
            while part:
                part = part[written.write(part) :]
            os.fsync(written.fileno())
            rest()
    shutil.copystat(source, target)
    return target
