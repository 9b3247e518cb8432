"""How many requests an engine has, in a file that a learner on the same machine reads unasked.

Engines and learner share the folder of the drafters' registry. Beside the versions, in ``load/``,
each engine process keeps a file of a few bytes and holds a lock (flock) on it as long as it lives.
A file whose lock is free is of an engine that is gone. A file's name begins with the machine's boot
id: on a network file system the files of other machines lie there as well, and tell nothing of
this one.

A file is `SIZE` bytes, of unsigned 64-bit numbers in the machine's order: magic, version, how many
requests are open, and the monotonic clock's nanoseconds when the first of them began. Engines write
with ``pwrite`` and not through a mapping: a store into a mapping ends the process where a disk is
full on a file system that copies on write.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import stat
import struct
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

logger = logging.getLogger("paceline.load")

FOLDER: Final = "load"
SUFFIX: Final = ".load"
MAGIC: Final = int.from_bytes(b"paceload", "big")
VERSION: Final = 1
WHOLE: Final = struct.Struct("=4Q")
COUNT: Final = struct.Struct("=2Q")
SIZE: Final = WHOLE.size
COUNT_AT: Final = SIZE - COUNT.size
OPEN, BEGAN = 2, 3
"""Places of the numbers that change."""
BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
TEACHING_KEY: Final = "paceline_teaching"
"""Extra argument of requests that a learner's teacher asks: these are no load."""
RETRY_SECONDS: Final = 5.0
"""Between two looks whether the registry's folder is there."""
UNFINISHED_SECONDS: Final = 60.0
"""A file that is not locked and not in its place after so long is of an engine that died."""


def boot_id() -> str:
    """What names this machine until it is booted anew.

    Raises:
        OSError: the system tells none.
    """
    return BOOT_ID_FILE.read_text(encoding="ascii").strip()


class EngineLoad:
    """Tells of one engine's open requests; from any thread.

    Never raises, and never keeps an engine from serving: where the file cannot be written, that is
    logged once and nothing is told. The registry's folder itself is not made here, as it has to
    belong to whoever publishes to it; until it is there it is looked for when a request begins.

    Args:
        registry: the folder of the drafters' versions.
        clock: monotonic seconds.
    """

    def __init__(self, registry: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry.expanduser().absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[Hashable] = set()
        self._place: Path | None = None
        self._fd = -1
        self._is_over = False
        self._next_try = 0.0
        self._num_told = 0
        self._began_at_ns = 0
        self._try_to_begin()

    @property
    def is_told(self) -> bool:
        """Whether there is a file."""
        return self._fd >= 0

    def begin(self, request: Hashable) -> None:
        """A request is open from now on; no change if it is already. O(1), a system call."""
        with self._lock:
            if self._fd < 0 and not self._is_over and self._clock() >= self._next_try:
                self._try_to_begin()
            self._open.add(request)
            self._tell()

    def end(self, request: Hashable) -> None:
        """It is no longer; no change if it was not. O(1), a system call."""
        with self._lock:
            self._open.discard(request)
            self._tell()

    def close(self) -> None:
        """The engine ends: remove the file."""
        with self._lock:
            self._is_over = True
            self._open.clear()
            self._tell()
            if self._fd >= 0:
                self._remove()

    def _tell(self) -> None:
        num = len(self._open)
        if self._fd < 0 or num == self._num_told:
            return
        if not self._num_told:
            self._began_at_ns = time.monotonic_ns()
        try:
            os.pwrite(self._fd, COUNT.pack(num, self._began_at_ns), COUNT_AT)
        except OSError as error:
            self._give_up(error)
        else:
            self._num_told = num

    def _try_to_begin(self) -> None:
        self._next_try = self._clock() + RETRY_SECONDS
        try:
            if not self._registry.is_dir():
                return
            self._make(self._registry / FOLDER)
        except OSError as error:
            self._give_up(error)

    def _make(self, folder: Path) -> None:
        """A file that is in its place once it is whole and locked."""
        machine = boot_id()
        folder.mkdir(exist_ok=True)
        _remove_left_over(folder, machine)
        place = folder / f"{machine}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        beside = place.with_name(f".{place.name}")
        self._fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._place = beside
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(self._fd, WHOLE.pack(MAGIC, VERSION, 0, 0), 0)
        beside.rename(place)
        self._place = place

    def _give_up(self, error: OSError) -> None:
        self._is_over = True
        logger.warning(
            "a learner beside this engine is not told of requests at once, it asks for metrics "
            "instead: %s cannot be written: %s",
            self._registry / FOLDER,
            error,
        )
        if self._fd >= 0:
            self._remove()

    def _remove(self) -> None:
        if self._place is not None:
            with suppress(OSError):
                self._place.unlink()
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            os.close(fd)


class EngineFiles:
    """Reads what this machine's engines tell.

    One thread calls `find` and `close`; all others may be called from any at any time.

    Args:
        registry: the folder of the drafters' versions.
    """

    def __init__(self, registry: Path) -> None:
        self._folder = registry.expanduser().absolute() / FOLDER
        self._files: tuple[_Read, ...] = ()
        self._unreadable: set[str] = set()
        try:
            self._machine: str | None = boot_id()
        except OSError:
            self._machine = None

    def __len__(self) -> int:
        """Engines that tell."""
        return len(self._files)

    def find(self) -> None:
        """Take in new files, and let go of those whose engine is gone; these are removed.

        O(files), a few system calls for each. What cannot be read is left out, and logged once.
        """
        if self._machine is None:
            return
        known = {read.name: read for read in self._files}
        found = {*known, *_names(self._folder, self._machine)}
        kept = []
        for name in sorted(found):
            try:
                read = known.get(name) or _Read(self._folder, name)
            except (OSError, ValueError) as error:
                self._note_unreadable(name, error)
                continue
            if _is_locked(read.fd):
                kept.append(read)
                continue
            _remove(self._folder / name)
            read.close()
        self._files = tuple(kept)

    def num_open(self) -> int:
        """Requests that this machine's engines have, together. O(engines), no system call."""
        return sum(read.numbers[OPEN] for read in self._files)

    def busy_since(self) -> float | None:
        """`time.monotonic` when the first request of those that are open began; None if none is.

        Of an engine whose requests overlap it is the beginning of the first of them all.
        """
        began = [read.numbers[BEGAN] for read in self._files if read.numbers[OPEN]]
        return min(began) / 1e9 if began else None

    def close(self) -> None:
        """Read no more; nothing is open from now on."""
        files, self._files = self._files, ()
        for read in files:
            read.close()

    def _note_unreadable(self, name: str, error: Exception) -> None:
        if name not in self._unreadable and not isinstance(error, FileNotFoundError):
            self._unreadable.add(name)
            logger.warning("%s tells nothing: %s", self._folder / name, error)


class _Read:
    """A file that is read.

    Its mapping goes with the last who reads it, so that no thread reads one that is gone.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is none of ours, or a newer version's.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(self.fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size < SIZE:
                raise ValueError(f"{found.st_size} bytes, not a file of {SIZE}")
            mapped = mmap.mmap(self.fd, SIZE, access=mmap.ACCESS_READ)
            self.numbers = memoryview(mapped).cast("Q")
            if tuple(self.numbers[:OPEN]) != (MAGIC, VERSION):
                raise ValueError("not of this version of Paceline")
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        os.close(self.fd)


def _names(folder: Path, beginning: str) -> Iterator[str]:
    """Files in a folder, none if it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(beginning) and entry.name.endswith(SUFFIX):
                yield entry.name


def _is_locked(fd: int) -> bool:
    """Whether an engine holds it; also where the file system does not say."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _remove_left_over(folder: Path, machine: str) -> None:
    """Remove files of engines that are gone, for learners that must not write here."""
    before = time.time() - UNFINISHED_SECONDS
    for beginning, is_whole in ((machine, True), (f".{machine}", False)):
        for name in [*_names(folder, beginning)]:
            with suppress(OSError):
                fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if (is_whole or os.fstat(fd).st_mtime < before) and not _is_locked(fd):
                        _remove(folder / name)
                finally:
                    os.close(fd)


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
