"""Reading text from folders of text and code, and JSON lines, file by file."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from paceline.errors import ConfigError

JSON_LINES: Final = (".jsonl", ".jsonl.gz", ".ndjson")
TEXT_FIELDS: Final = ("messages", "text", "content")
"""Fields of a JSON line that are tried in this order where none is named."""
DEFAULT_MAX_BYTES: Final = 8 * 1024 * 1024
LEFT_OUT_FOLDERS: Final = ("__pycache__", "node_modules")


@dataclass(slots=True, kw_only=True)
class TextSource:
    """Files with text and what is read of them.

    Attributes:
        paths: folders, read recursively without hidden ones and `LEFT_OUT_FOLDERS`, and files.
        patterns: names a folder's files must match, one of them; empty takes every file.
        text_field: field of a JSON line that holds the text, dots between nested ones; None tries
            `TEXT_FIELDS`.
        max_bytes: largest text file and longest JSON line.
        skipped: how many files and lines were left out so far, by reason.
    """

    paths: Sequence[Path]
    patterns: Sequence[str] = ()
    text_field: str | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    skipped: Counter[str] = field(default_factory=Counter)

    def files(self) -> list[tuple[Path, int]]:
        """Files with their sizes in bytes, in a fixed order; symbolic links are not followed.

        Raises:
            ConfigError: a path does not exist.
        """
        found: dict[Path, int] = {}
        for path in self.paths:
            if not path.exists():
                raise ConfigError(f"{path} does not exist; give folders or files with text")
            for file in [path] if path.is_file() else self._walk(path):
                found.setdefault(file, file.stat().st_size)
        return list(found.items())

    def documents(self, file: Path) -> Iterator[tuple[str, int]]:
        """Texts of one file, each with the bytes of the file read by then."""
        try:
            if file.name.endswith(JSON_LINES):
                yield from self._json_lines(file)
            elif file.stat().st_size > self.max_bytes:
                self.skipped["too large"] += 1
            else:
                data = file.read_bytes()
                text = self._decode(data)
                if text is not None:
                    yield text, len(data)
        except (OSError, EOFError):  # also what gzip says of a file that is none
            self.skipped["unreadable"] += 1

    def _walk(self, folder: Path) -> Iterator[Path]:
        for where, folders, names in os.walk(folder):
            folders[:] = sorted(
                name for name in folders if name[0] != "." and name not in LEFT_OUT_FOLDERS
            )
            for name in sorted(names):
                file = Path(where, name)
                wanted = not self.patterns or any(fnmatch(name, it) for it in self.patterns)
                if wanted and name[0] != "." and file.is_file() and not file.is_symlink():
                    yield file

    def _decode(self, data: bytes) -> str | None:
        if b"\0" in data:
            self.skipped["binary"] += 1
            return None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.skipped["not UTF-8"] += 1
            return None
        if not text or text.isspace():
            self.skipped["empty"] += 1
            return None
        return text

    def _json_lines(self, file: Path) -> Iterator[tuple[str, int]]:
        with file.open("rb") as raw:
            zipped = file.name.endswith(".gz")
            lines: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if zipped else raw
            while line := lines.readline(self.max_bytes + 1):
                position = raw.tell()
                if len(line) > self.max_bytes:
                    self.skipped["line too long"] += 1
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(self.max_bytes + 1)  # its rest
                    continue
                for text in self._texts(line):
                    yield text, position

    def _texts(self, line: bytes) -> list[str]:
        if line.isspace():
            return []
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.skipped["line not JSON"] += 1
            return []
        names = TEXT_FIELDS if self.text_field is None else (self.text_field,)
        for name in names:
            texts = [text for text in _strings(_at(value, name)) if text and not text.isspace()]
            if texts:
                return texts
        self.skipped["line without text"] += 1
        return []


def _at(value: Any, name: str) -> Any:
    """What lies at a dotted name in a JSON object, None if nothing does."""
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _strings(value: Any) -> Iterator[str]:
    """A text, each of a list, or what was said in chat messages: contents and tool arguments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key in ("content", "text"):
            yield from _strings(value.get(key))
        for call in value.get("tool_calls") or ():
            yield from _strings(_at(call, "function.arguments"))
