"""What a teacher said of passages, kept on disk until they are forgotten.

A file a passage, named by its digest: no name of a tenant or session stands there. Layout: ``PL``,
version (1 byte), whether ids take four bytes (1), whose lesson it is (8), tokens (4), k (2), CRC-32
of the rest (4), then the ids and the log probabilities as float16: 4 k bytes a token where all ids
fit in two bytes, else 6 k.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from paceline.errors import ConfigError
from paceline.online.passages import Passage

VERSION: Final = 1
SUFFIX: Final = ".lesson"
DROPPED: Final = 65_536
"""Passages remembered as gone, so that a lesson that comes late is not kept."""
COUNTERS: Final = ("hits", "misses", "put", "evicted", "dropped", "refused", "damaged", "failed")
_MAGIC: Final = b"PL"
_HEADER: Final = struct.Struct("<2sBB8sIHI")
_NARROW_MAX: Final = int(np.iinfo(np.uint16).max)


class Kept(NamedTuple):
    """Likeliest tokens after each token but the last: int32 and float16, (tokens - 1, k)."""

    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float16]


class LessonCache:
    """Lessons of one teacher in a folder; the least recently used go first.

    Safe to use from several threads. A file that cannot be read counts as missing, one that cannot
    be written is not kept: both are counted.

    Args:
        folder: made if missing.
        teacher: who taught, and how: target, tokenizer, number of likeliest tokens. What another
            has taught is let go when it is met.
        max_bytes: most that the files take.

    Raises:
        ConfigError: `max_bytes` is less than 1.
    """

    def __init__(self, folder: Path, *, teacher: str, max_bytes: int) -> None:
        if max_bytes < 1:
            raise ConfigError(f"max_bytes of kept lessons is {max_bytes}; give 1 or more")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._teacher = blake2b(teacher.encode(), digest_size=8).digest()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._counts = Counter(dict.fromkeys(COUNTERS, 0))
        found = [(path.stat(), path.stem) for path in folder.glob(f"*{SUFFIX}")]
        found.sort(key=lambda item: (item[0].st_mtime_ns, item[1]))
        self._sizes = OrderedDict((name, status.st_size) for status, name in found)
        self._num_bytes = sum(self._sizes.values())
        with self._lock:
            self._shrink()

    def get(self, passage: Passage) -> Kept | None:
        """What was taught of a passage, None if that is not known."""
        name = passage.digest
        with self._lock:
            kept = self._read(name, len(passage.token_ids)) if name in self._sizes else None
            self._counts["misses" if kept is None else "hits"] += 1
            return kept

    def put(
        self,
        passage: Passage,
        top_ids: npt.NDArray[np.int32],
        top_logprobs: npt.NDArray[np.float16],
    ) -> None:
        """Keep what was taught, unless the passage has gone meanwhile.

        Args:
            passage: whose.
            top_ids: int32 (tokens - 1, k).
            top_logprobs: float16 (tokens - 1, k).
        """
        name = passage.digest
        data = self._encoded(top_ids, top_logprobs)
        with self._lock:
            if name in self._gone:
                self._counts["refused"] += 1
                return
            try:
                _replace(self._path(name), data)
            except OSError:
                self._counts["failed"] += 1
                return
            self._forget_size(name)
            self._sizes[name] = len(data)
            self._num_bytes += len(data)
            self._counts["put"] += 1
            self._shrink()

    def drop(self, passage: Passage) -> None:
        """Let go of a passage's lesson, and of one that comes later (as `Replay`'s `on_gone`)."""
        name = passage.digest
        with self._lock:
            self._gone[name] = None
            if len(self._gone) > DROPPED:
                self._gone.popitem(last=False)
            if name in self._sizes:
                self._counts["dropped"] += 1
                self._remove(name)

    def keep(self, passages: Iterable[Passage]) -> int:
        """Let go of all lessons but of these passages; returns how many went."""
        names = {passage.digest for passage in passages}
        with self._lock:
            gone = [name for name in self._sizes if name not in names]
            for name in gone:
                self._remove(name)
            self._counts["dropped"] += len(gone)
            return len(gone)

    def stats(self) -> dict[str, int]:
        """Counters since the start; lessons and their bytes."""
        with self._lock:
            return {**self._counts, "lessons": len(self._sizes), "bytes": self._num_bytes}

    def _encoded(
        self, top_ids: npt.NDArray[np.int32], top_logprobs: npt.NDArray[np.float16]
    ) -> bytes:
        num_tokens, top_k = top_ids.shape
        is_wide = bool(top_ids.size) and int(top_ids.max()) > _NARROW_MAX
        body = top_ids.astype("<u4" if is_wide else "<u2").tobytes()
        body += top_logprobs.astype("<f2").tobytes()
        return (
            _HEADER.pack(
                _MAGIC, VERSION, is_wide, self._teacher, num_tokens, top_k, zlib.crc32(body)
            )
            + body
        )

    def _read(self, name: str, num_passage_tokens: int) -> Kept | None:
        """With the lock held; what cannot be used is removed."""
        try:
            data = self._path(name).read_bytes()
            kept = self._decoded(data, num_passage_tokens - 1)
        except OSError:
            kept = None
        if kept is None:
            self._counts["damaged"] += 1
            self._remove(name)
            return None
        self._sizes.move_to_end(name)
        return kept

    def _decoded(self, data: bytes, num_expected: int) -> Kept | None:
        if len(data) < _HEADER.size:
            return None
        magic, version, is_wide, teacher, num_tokens, top_k, checksum = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        num_entries = num_tokens * top_k
        if (magic, version, teacher) != (_MAGIC, VERSION, self._teacher):
            return None
        id_bytes = num_entries * (4 if is_wide else 2)
        if num_tokens != num_expected or len(body) != id_bytes + 2 * num_entries:
            return None
        if zlib.crc32(body) != checksum:
            return None
        ids = np.frombuffer(body[:id_bytes], "<u4" if is_wide else "<u2").astype(np.int32)
        logprobs = np.frombuffer(body[id_bytes:], "<f2").astype(np.float16)
        return Kept(ids.reshape(num_tokens, top_k), logprobs.reshape(num_tokens, top_k))

    def _shrink(self) -> None:
        while self._num_bytes > self._max_bytes:
            self._counts["evicted"] += 1
            self._remove(next(iter(self._sizes)))

    def _remove(self, name: str) -> None:
        self._forget_size(name)
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError:
            self._counts["failed"] += 1

    def _forget_size(self, name: str) -> None:
        self._num_bytes -= self._sizes.pop(name, 0)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"


def _replace(path: Path, data: bytes) -> None:
    descriptor, beside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
