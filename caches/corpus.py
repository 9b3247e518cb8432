"""The store of corpora: frozen segments of a sharing scope, each corpus with a manifest.

::

    STORE/SCOPE/NAME/manifest.json       what the corpus is; replaced as a whole
    STORE/SCOPE/NAME/BUILD-00000.segment the segments the manifest names (`CorpusSegment`)
    STORE/SCOPE/NAME/lock                held while the corpus is written

SCOPE is the scope's name, percent-encoded. The manifest is what makes a corpus: segments that it
does not name are what a killed build left, invisible, and gone with the next one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.caches._native import CorpusSegment
from paceline.caches.records import ModelFingerprint, NewerSchemaError
from paceline.caches.segment import BORDER, MAX_SEGMENT_TOKENS, build_segment
from paceline.errors import CorpusError, RecordError

logger = logging.getLogger("paceline.corpus")

CORPUS_SCHEMA: Final = 1
DEFAULT_SEGMENT_TOKENS: Final = 33_554_432
MANIFEST: Final = "manifest.json"
LOCK: Final = "lock"
SEGMENT_SUFFIX: Final = ".segment"
READ_ATTEMPTS: Final = 3
"""How often a corpus is read again that was replaced while its segments were opened."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class SegmentEntry(msgspec.Struct, frozen=True):
    """A segment of a corpus.

    Attributes:
        file: name of the file beside the manifest.
        num_tokens: tokens without borders.
        num_bytes: size of the file.
    """

    file: str
    num_tokens: int
    num_bytes: int


class CorpusManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a corpus is.

    Attributes:
        schema: version of the manifest.
        name: unique within the scope.
        scope: sharing scope whose requests may be drafted from it (see `RequestInfo.scope`).
        tokenizer: digest of the tokenizer that made the tokens (see `tokenizer_digest`).
        tokenizer_source: folder or name the tokenizer was loaded from.
        sources: folders and files the text came from.
        segments: in the order of the text.
        num_documents: documents taken in.
        skipped: documents and files left out, by reason.
        created_at: Unix time in seconds.
    """

    schema: int
    name: str
    scope: str
    tokenizer: str
    tokenizer_source: str
    sources: tuple[str, ...]
    segments: tuple[SegmentEntry, ...]
    num_documents: int
    skipped: dict[str, int]
    created_at: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        return sum(segment.num_tokens for segment in self.segments)

    @property
    def num_bytes(self) -> int:
        """Bytes of all segments' files."""
        return sum(segment.num_bytes for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a store holds.

    Attributes:
        manifests: sorted by scope and name.
        faults: one line for each corpus that cannot be read.
    """

    manifests: tuple[CorpusManifest, ...]
    faults: tuple[str, ...]


StoreVersion = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change of each manifest of a scope."""


@dataclass(frozen=True, slots=True)
class OpenedCorpora:
    """What requests of a scope may be drafted from.

    Attributes:
        segments: of all corpora that could be opened, in the order of their names.
        num_left_out: corpora and manifests that could not be read; the reasons are logged.
    """

    segments: list[CorpusSegment]
    num_left_out: int


class CorpusWriter:
    """Takes a corpus document by document and writes a segment whenever one is full.

    Made by `CorpusStore.writing`. Memory: about 45 bytes a token of one segment.

    Args:
        folder: of the corpus.
        segment_tokens: most positions of a segment; a longer document is cut.
    """

    def __init__(self, folder: Path, *, segment_tokens: int = DEFAULT_SEGMENT_TOKENS) -> None:
        if not 1 <= segment_tokens < MAX_SEGMENT_TOKENS:
            raise CorpusError(
                f"segments of {segment_tokens} tokens cannot be built; give 1 to "
                f"{MAX_SEGMENT_TOKENS - 1}"
            )
        self.num_documents = 0
        self.segments: list[SegmentEntry] = []
        self._folder = folder
        self._build = uuid.uuid4().hex[:12]
        self._room = self._segment_tokens = segment_tokens
        self._pieces: list[npt.NDArray[np.int32]] = []
        self._border = np.array([BORDER], np.int32)

    def add(self, token_ids: npt.NDArray[np.int32]) -> None:
        """Take in one document.

        Args:
            token_ids: int32, (num_tokens,), ids >= 0. Kept until its segment is written.
        """
        self.num_documents += 1
        rest = token_ids
        while len(rest):
            taken, rest = rest[: self._room], rest[self._room :]
            self._pieces += [taken, self._border]
            self._room -= len(taken) + 1
            if self._room <= 0:
                self.flush()

    def flush(self) -> None:
        """Write what has come in since the last segment, if anything has.

        Raises:
            CorpusError: the segment cannot be written.
        """
        if not self._pieces:
            return
        path = self._folder / f"{self._build}-{len(self.segments):05}{SEGMENT_SUFFIX}"
        token_ids = np.concatenate(self._pieces)
        self._pieces = []
        try:
            segment = build_segment(path, token_ids)
        except OSError as error:
            raise CorpusError(f"{path} cannot be written: {error}") from error
        self.segments.append(SegmentEntry(path.name, segment.num_tokens, segment.num_bytes))
        self._room = self._segment_tokens


class CorpusStore:
    """Corpora in a folder of this machine.

    Any number of processes may read; a corpus is written by one at a time. Nothing of one scope is
    handed out for another: a manifest that was moved to another scope's folder is refused.

    Args:
        folder: of the store; made when something is added.
        clock: Unix time in seconds.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def listing(self, scope: str | None = None) -> Listing:
        """Every corpus of a scope, None for all scopes. O(corpora)."""
        pattern = "*" if scope is None else _scope_folder(scope)
        manifests, faults = [], []
        for path in sorted(self._folder.glob(f"{pattern}/*/{MANIFEST}")):
            try:
                manifests.append(_read(path))
            except FileNotFoundError:  # removed since the folder was read
                continue
            except RecordError as error:
                faults.append(str(error))
        manifests.sort(key=lambda manifest: (manifest.scope, manifest.name))
        return Listing(tuple(manifests), tuple(faults))

    def get(self, scope: str, name: str) -> CorpusManifest | None:
        """One corpus, None if there is none of that name.

        Raises:
            RecordError: its manifest cannot be read.
        """
        try:
            return _read(self._corpus_folder(scope, name) / MANIFEST)
        except FileNotFoundError:
            return None

    @contextmanager
    def writing(
        self, scope: str, name: str, *, segment_tokens: int = DEFAULT_SEGMENT_TOKENS
    ) -> Iterator[CorpusWriter]:
        """Hold the corpus for writing; nothing shows until `publish`, and nothing stays without.

        Raises:
            CorpusError: scope or name cannot be used, or another process writes the corpus.
        """
        folder = self._corpus_folder(scope, name)
        with _locked(folder):
            writer = CorpusWriter(folder, segment_tokens=segment_tokens)
            try:
                yield writer
            finally:
                _sweep(folder)

    def publish(
        self,
        writer: CorpusWriter,
        *,
        scope: str,
        name: str,
        tokenizer: str,
        tokenizer_source: str = "",
        sources: tuple[str, ...] = (),
        skipped: dict[str, int] | None = None,
    ) -> CorpusManifest:
        """Make what `writer` took in the corpus of that name, in place of one that was there.

        Raises:
            CorpusError: nothing was taken in, or it cannot be written.
        """
        writer.flush()
        if not writer.segments:
            raise CorpusError("nothing was taken in; give at least one document with a token")
        manifest = CorpusManifest(
            schema=CORPUS_SCHEMA,
            name=name,
            scope=scope,
            tokenizer=tokenizer,
            tokenizer_source=tokenizer_source,
            sources=sources,
            segments=tuple(writer.segments),
            num_documents=writer.num_documents,
            skipped=skipped or {},
            created_at=self._clock(),
        )
        _replace(self._corpus_folder(scope, name) / MANIFEST, msgspec.json.encode(manifest))
        return manifest

    def remove(self, scope: str, name: str) -> None:
        """Delete a corpus, a damaged one as well. Engines stop drafting from it within seconds.

        Raises:
            CorpusError: there is none of that name, or it is being written.
        """
        folder = self._corpus_folder(scope, name)
        if not (folder / MANIFEST).exists():
            known = ", ".join(f"{it.name} ({it.scope})" for it in self.listing().manifests)
            raise CorpusError(f"there is no corpus {name} of {scope}; there are: {known or 'none'}")
        with _locked(folder):
            (folder / MANIFEST).unlink(missing_ok=True)
            _sweep(folder)

    def version(self, scope: str) -> StoreVersion:
        """Another value once a corpus of `scope` has been added, replaced or removed.

        Reads no file. O(corpora of the scope).
        """
        folder = self._folder / _scope_folder(scope)
        version = []
        for path in sorted(folder.glob(f"*/{MANIFEST}")):
            with suppress(FileNotFoundError):  # removed since the folder was read
                found = path.stat()
                version.append((path.parent.name, found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(version)

    def segments(self, scope: str, fingerprint: ModelFingerprint) -> list[CorpusSegment]:
        """The segments that `open` finds."""
        return self.open(scope, fingerprint).segments

    def open(self, scope: str, fingerprint: ModelFingerprint) -> OpenedCorpora:
        """Open the segments that requests of `scope` may be drafted from on this model.

        Those of the corpora whose tokenizer is the model's, in the order of their names. What
        cannot be read is logged and left out: it costs drafts, nothing else. O(bytes).
        """
        opened: list[CorpusSegment] = []
        listing = self.listing(scope)
        num_left_out = len(listing.faults)
        for fault in listing.faults:
            logger.error("a corpus is left out: %s", fault)
        for manifest in listing.manifests:
            if fingerprint.tokenizer and manifest.tokenizer == fingerprint.tokenizer:
                segments = self._open(manifest, fingerprint)
                num_left_out += segments is None
                opened += segments or []
        return OpenedCorpora(opened, num_left_out)

    def _open(
        self, manifest: CorpusManifest, fingerprint: ModelFingerprint
    ) -> list[CorpusSegment] | None:
        """Segments of a corpus, or of what has taken its place; None if it cannot be read."""
        current: CorpusManifest | None = manifest
        for _ in range(READ_ATTEMPTS):
            if current is None or current.tokenizer != fingerprint.tokenizer:
                return []
            folder = self._corpus_folder(current.scope, current.name)
            try:
                return [CorpusSegment(str(folder / it.file)) for it in current.segments]
            except FileNotFoundError:  # replaced since the manifest was read
                current = self.get(manifest.scope, manifest.name)
            except (OSError, RecordError) as error:
                logger.error(
                    "corpus %s of %s is left out: %s", manifest.name, manifest.scope, error
                )
                return None
        logger.error("corpus %s of %s lacks segments", manifest.name, manifest.scope)
        return None

    def _corpus_folder(self, scope: str, name: str) -> Path:
        if not scope:
            raise CorpusError("a corpus needs a sharing scope; name a tenant or a group")
        if not _NAME.fullmatch(name):
            raise CorpusError(
                f"{name!r} cannot be a corpus's name; use up to 64 letters, digits, '.', '_' and "
                "'-', a letter or digit first"
            )
        return self._folder / _scope_folder(scope) / name


def _scope_folder(scope: str) -> str:
    return quote(scope, safe="").replace(".", "%2E")  # no scope is "." or ".."


def _read(path: Path) -> CorpusManifest:
    """The manifest at `path`; RecordError unless it is whole and stands where it says it does.

    FileNotFoundError if there is none.
    """
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Version).schema
        if version > CORPUS_SCHEMA:
            raise NewerSchemaError(
                f"{path} has schema {version}, this Paceline reads up to {CORPUS_SCHEMA}; update it"
            )
        manifest = msgspec.json.decode(data, type=CorpusManifest)
    except FileNotFoundError:
        raise
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}; add the corpus again") from error
    stands = (unquote(path.parent.parent.name), path.parent.name)
    if stands != (manifest.scope, manifest.name):
        raise RecordError(
            f"{path} is the manifest of {manifest.name} of {manifest.scope}; add the corpus again"
        )
    if any(Path(it.file).name != it.file for it in manifest.segments):
        raise RecordError(f"{path} names files outside its folder; add the corpus again")
    return manifest


class _Version(msgspec.Struct, frozen=True):
    schema: int


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole: readers see the old one or the new one."""
    passing = path.with_name(f"{path.name}.part")
    try:
        with passing.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        passing.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name too
        finally:
            os.close(folder)
    except OSError as error:
        raise CorpusError(f"{path} cannot be written: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a corpus's folder, made if missing, against other writers; killed ones let go."""
    path = folder / LOCK
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = path.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    break  # and not one that was removed with its corpus meanwhile
            except BaseException:
                lock.close()
                raise
            lock.close()
    except BlockingIOError as error:
        raise CorpusError(f"{folder} is being written by another process; wait for it") from error
    except OSError as error:
        raise CorpusError(f"{folder} cannot be written: {error}") from error
    with lock:
        yield


def _sweep(folder: Path) -> None:
    """Delete what the manifest does not name; without a manifest, all. The lock must be held."""
    try:
        kept = {MANIFEST, LOCK, *(segment.file for segment in _read(folder / MANIFEST).segments)}
    except FileNotFoundError:
        kept = set()
    except RecordError:
        return  # a newer Paceline's, perhaps: whatever it names is not ours to delete
    for file in folder.iterdir():
        if file.name not in kept:
            file.unlink()
    if not kept:
        folder.rmdir()
        with suppress(OSError):
            folder.parent.rmdir()  # the scope's last corpus is gone
