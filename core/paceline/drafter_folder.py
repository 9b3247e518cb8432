"""The file beside a drafter's weights that says what the Hugging Face format has no place for.

A drafter is an ordinary Hugging Face folder; whoever loads it without knowing of `paceline.json`
gets the same model with its whole head.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from paceline.errors import ConfigError

RECORD_FILE: Final = "paceline.json"
VERSION: Final = 1


class HeldOut(msgspec.Struct, frozen=True, kw_only=True):
    """How well a drafter does on sessions it was not trained on.

    Attributes:
        num_tokens: of the target's replies, that were predicted.
        agreement: share of them where drafter and target have the same likeliest token.
        accepted_length: mean number of accepted tokens of a greedy chain, the target's own token
            not counted.
        chain_tokens: longest chain.
    """

    num_tokens: int
    agreement: float
    accepted_length: float
    chain_tokens: int


class Distilled(msgspec.Struct, frozen=True, kw_only=True):
    """A training of the drafter, as `paceline drafter distil` reports it.

    Attributes:
        num_steps: of the optimiser.
        num_tokens: of the target's replies that there were to learn from.
        before: on held-out sessions, before the first step.
        after: on the same, after the last.
    """

    num_steps: int
    num_tokens: int
    before: HeldOut
    after: HeldOut


class DrafterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `paceline.json` holds.

    Attributes:
        target: folder name of the model that the drafter was cut from.
        layers: which of its layers, from 0.
        vocab_size: of both models.
        kept_token_ids: tokens that the trimmed head still drafts, most frequent first; empty if
            the head is whole.
        distilled: its last training, None if it is as it was cut.
        version: of this record.
    """

    target: str
    layers: tuple[int, ...]
    vocab_size: int
    kept_token_ids: tuple[int, ...] = ()
    distilled: Distilled | None = None
    version: int = VERSION


def read_record(folder: Path) -> DrafterRecord | None:
    """What is said of the drafter in `folder`; None of a model that Paceline did not make.

    Raises:
        ConfigError: the file is damaged, from a newer version, or names tokens out of range.
    """
    file = folder / RECORD_FILE
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if (version := msgspec.json.decode(data, type=_Versioned).version) > VERSION:
            raise ConfigError(
                f"{file} has version {version}, this Paceline reads up to {VERSION}; update it"
            )
        record = msgspec.json.decode(data, type=DrafterRecord)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is damaged ({error}); make the drafter again") from error
    kept = record.kept_token_ids
    if kept and not (
        min(kept) >= 0 and max(kept) < record.vocab_size and len({*kept}) == len(kept)
    ):
        raise ConfigError(
            f"{file} keeps tokens outside 0..{record.vocab_size - 1} or some twice; make the "
            "drafter again"
        )
    return record


def kept_token_ids(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Tokens that the drafter in `folder` keeps in its head; empty if it is whole.

    Args:
        folder: of the drafter.
        vocab_size: of its weights.

    Raises:
        ConfigError: as `read_record`, or what is kept is of another vocabulary.
    """
    record = read_record(folder)
    if record is None or not record.kept_token_ids:
        return ()
    if record.vocab_size != vocab_size:
        raise ConfigError(
            f"{folder / RECORD_FILE} is of {record.vocab_size} tokens, the model of {vocab_size}; "
            "make the drafter again"
        )
    return record.kept_token_ids


def write_record(folder: Path, record: DrafterRecord) -> None:
    """Write `paceline.json` into a drafter's folder."""
    data = msgspec.json.format(msgspec.json.encode(record), indent=0)
    (folder / RECORD_FILE).write_bytes(data)


def require_new(folder: Path) -> None:
    """Check that a folder can be made.

    Raises:
        ConfigError: it exists already, or the one above it does not.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists; give a folder that does not, nothing is overwritten")
    if not folder.absolute().parent.is_dir():
        raise ConfigError(f"{folder.absolute().parent} does not exist; make it first")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder that appears whole, when the body has filled it without an error, or not at all.

    Yields:
        Where to write: a hidden folder beside it.

    Raises:
        ConfigError: as `require_new`.
    """
    require_new(folder)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield beside
        beside.chmod(0o755)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


class _Versioned(msgspec.Struct):
    version: int
