"""`paceline corpus`: from folders of real text to segments of the model's own tokens."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from paceline.caches import CorpusSegment, ModelFingerprint
from paceline.caches.corpus import CorpusStore
from paceline.caches.text_source import TextSource
from paceline.caches.tokenizer import TextTokenizer
from paceline.errors import ConfigError
from paceline.middleware.cli import cli

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.model


class Corpora:
    """The command on a store of its own."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.store = CorpusStore(folder)

    def run(self, *arguments: str | Path) -> Result:
        return CliRunner(env={"PACELINE_CORPUS_DIR": str(self.folder)}).invoke(
            cli, ["corpus", *map(str, arguments)], catch_exceptions=False
        )

    def add(self, *arguments: str | Path, name: str = "n") -> str:
        done = self.run("add", *arguments, "--name", name, "--tokenizer", self.tokenizer)
        assert done.exit_code == 0, done.output
        return done.stdout

    def fails(self, *arguments: str | Path) -> str:
        done = self.run(*arguments)
        assert done.exit_code == 1
        assert "Traceback" not in done.output
        (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
        return line

    def segments(self, scope: str = "tenant:local") -> list[CorpusSegment]:
        digest = TextTokenizer(str(self.tokenizer)).digest
        return self.store.segments(scope, ModelFingerprint("m", digest))

    def texts(self, scope: str = "tenant:local") -> list[list[int]]:
        """Documents of a scope's segments."""
        documents: list[list[int]] = []
        for segment in self.segments(scope):
            for token in segment.read(0, segment.num_positions - 1).tolist():
                if token < 0:
                    documents.append([])
                else:
                    documents[-1].append(token)
        return documents

    def tokens(self, *texts: str) -> list[list[int]]:
        return [ids.tolist() for ids in TextTokenizer(str(self.tokenizer)).encode(texts)]


@pytest.fixture
def corpora(tmp_path: Path, target_folder: Path) -> Corpora:
    return Corpora(tmp_path / "corpora", target_folder)


def test_a_folder_of_code_can_be_drafted_from(corpora: Corpora) -> None:
    """After a line of a file, the segment's likeliest places go on as the file does."""
    said = corpora.add(ROOT / "caches", "--glob", "*.py", "--glob", "*.hpp")
    assert "documents in 1 segment(s)" in said
    (segment,) = corpora.segments()
    segment.check_integrity()
    (tokens,) = corpora.tokens((ROOT / "caches" / "corpus.py").read_text(encoding="utf-8"))
    num_right = 0
    for at in range(20, 120):
        places, *_ = segment.find(np.array(tokens[:at], np.int32), max_candidates=1)
        num_right += int(segment.read(places[0], places[0] + 1)[0]) == tokens[at]
    assert num_right == 100


def test_tokens_are_the_models(corpora: Corpora, tmp_path: Path) -> None:
    """Digest and tokens are those of transformers; special tokens in a file are plain text."""
    text = "def f(x):\n    return x  # naïve 日本\n"
    special = "<|im_start|>user\nhello<|im_end|>"
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt").write_text(special, encoding="utf-8")
    corpora.add(tmp_path / "a.py", tmp_path / "b.txt")
    code = """
import json, sys
from transformers import AutoTokenizer
from paceline.caches import tokenizer_digest
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
       for text in json.loads(sys.argv[2])]
special = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
print(json.dumps([tokenizer_digest(tokenizer.get_vocab()), ids, special]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(corpora.tokenizer), json.dumps([text, special])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    digest, ids, marks = json.loads(done.stdout)
    (manifest,) = corpora.store.listing().manifests
    assert manifest.tokenizer == digest
    assert corpora.texts() == ids
    assert not set(marks) & {token for document in ids for token in document}


def test_json_lines_are_read_by_field_or_as_chats(corpora: Corpora, tmp_path: Path) -> None:
    """Texts, messages with parts and tool calls, nested fields; each text is a document."""
    chat = {
        "messages": [
            {"role": "user", "content": "first question"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Rome"}'}}],
            },
            {
                "role": "user",
                "content": [{"type": "text", "text": "third part"}, {"type": "image"}],
            },
        ]
    }
    lines = [chat, {"text": "plain text"}, {"deep": {"inner": "nested text"}}, ["no object"]]
    content = "".join(json.dumps(line) + "\n" for line in lines) + "not json\n\n"
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    said = corpora.add(tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz")
    assert "skipped: 2 line not JSON, 4 line without text" in said
    expected = ["first question", '{"city": "Rome"}', "third part", "plain text"]
    assert corpora.texts() == corpora.tokens(*expected) * 2
    corpora.add(tmp_path / "a.jsonl", "--field", "deep.inner")
    assert corpora.texts() == corpora.tokens("nested text")


def test_what_is_skipped_is_counted_and_said(corpora: Corpora, tmp_path: Path) -> None:
    """Binary, undecodable, large and empty files; hidden folders and links are not looked at."""
    folder = tmp_path / "source"
    (folder / ".git").mkdir(parents=True)
    (folder / "node_modules").mkdir()
    for path in (".git/config", "node_modules/a.js", "kept.txt"):
        (folder / path).write_text("some text")
    (folder / "link.txt").symlink_to(folder / "kept.txt")
    (folder / "binary").write_bytes(b"a\0b")
    (folder / "latin").write_bytes("naïve".encode("latin-1"))
    (folder / "large").write_text("x" * 3000)
    (folder / "long.jsonl").write_text(
        json.dumps({"text": "y" * 3000}) + "\n" + json.dumps({"text": "short"}) + "\n"
    )
    (folder / "empty").write_text(" \n")
    (folder / "broken.jsonl.gz").write_bytes(b"no gzip")
    said = corpora.add(folder, "--max-file-mb", "0.002")
    assert (
        "skipped: 1 binary, 1 empty, 1 line too long, 1 not UTF-8, 1 too large, 1 unreadable"
        in said
    )
    assert corpora.texts() == corpora.tokens("some text", "short")
    (manifest,) = corpora.store.listing().manifests
    assert sum(manifest.skipped.values()) == 6
    assert manifest.sources == (str(folder),)


def test_scopes_are_kept_apart(corpora: Corpora, tmp_path: Path) -> None:
    """A corpus is its tenant's or group's; the local tenant's by default."""
    for number, options in enumerate(([], ["--tenant", "a"], ["--group", "a"])):
        (tmp_path / "f").write_text(f"text number {number}")
        corpora.add(tmp_path / "f", *options)
    for number, scope in enumerate(("tenant:local", "tenant:a", "group:a")):
        assert corpora.texts(scope) == corpora.tokens(f"text number {number}")
    corpora.run("remove", "n", "--tenant", "a")
    assert corpora.texts("tenant:a") == []
    assert corpora.texts("group:a") != []


def test_adding_again_replaces_and_says_so(corpora: Corpora, tmp_path: Path) -> None:
    """The list shows the new one alone."""
    (tmp_path / "f").write_text("one two three")
    assert "in place" not in corpora.add(tmp_path / "f")
    (tmp_path / "f").write_text("four")
    assert "in place of the 3 tokens of 20" in corpora.add(tmp_path / "f")
    assert corpora.texts() == corpora.tokens("four")


def test_a_large_corpus_becomes_several_segments(corpora: Corpora) -> None:
    """Their documents together are the corpus."""
    corpora.add(ROOT / "docs", name="whole")
    whole = corpora.texts()
    corpora.run("remove", "whole")
    said = corpora.add(ROOT / "docs", "--segment-tokens", "500")
    segments = corpora.segments()
    assert f"{len(segments)} segment(s)" in said
    assert len(segments) > 3
    assert all(segment.num_tokens <= 500 for segment in segments)
    assert sum(map(len, corpora.texts())) == sum(map(len, whole))


def test_the_list_can_be_read_by_people_and_programs(corpora: Corpora, tmp_path: Path) -> None:
    """A table, or JSON with everything; a corpus that cannot be read is named on stderr."""
    assert corpora.run("list").stdout.split() == [
        *("SCOPE", "NAME", "TOKENS", "DOCUMENTS", "SEGMENTS", "MB", "TOKENIZER", "CREATED")
    ]
    (tmp_path / "f").write_text("one two three")
    corpora.add(tmp_path / "f", "--group", "g", name="words")
    corpora.add(tmp_path / "f", name="damaged")
    (manifest,) = corpora.folder.glob("*/damaged/manifest.json")
    manifest.write_text("{")
    done = corpora.run("list")
    assert done.stdout.splitlines()[1].split()[:5] == ["group:g", "words", "3", "1", "1"]
    assert f"left out: {manifest}" in done.stderr
    (listed,) = json.loads(corpora.run("list", "--json").stdout)
    assert (listed["scope"], listed["name"], listed["num_documents"]) == ("group:g", "words", 1)
    assert [segment["num_tokens"] for segment in listed["segments"]] == [3]


def test_without_a_tokenizer_it_is_the_packaged_models(corpora: Corpora, tmp_path: Path) -> None:
    """`paceline serve` on the packaged model finds the corpus under its own fingerprint."""
    (tmp_path / "f").write_text("one two three")
    done = corpora.run("add", tmp_path / "f", "--name", "n")
    assert done.exit_code == 0, done.output
    assert corpora.texts() == corpora.tokens("one two three")


def test_wrong_arguments_are_one_line(corpora: Corpora, tmp_path: Path) -> None:
    """The error names the value and the fix, and nothing is left in the store."""
    (tmp_path / "f").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    add = ["add", tmp_path / "f", "--tokenizer", corpora.tokenizer, "--name"]
    assert "cannot be a corpus's name" in corpora.fails(*add, "../n")
    assert "--tenant and --group" in corpora.fails(*add, "n", "--tenant", "a", "--group", "b")
    assert "'a/b' cannot be a tenant's" in corpora.fails(*add, "n", "--tenant", "a/b")
    assert "'' cannot be a tenant's" in corpora.fails(*add, "n", "--group", "")
    assert "--max-file-mb is 0.0" in corpora.fails(*add, "n", "--max-file-mb", "0")
    assert "give 1 to" in corpora.fails(*add, "n", "--segment-tokens", "0")
    add = ["add", "--name", "n", "--tokenizer", corpora.tokenizer]
    assert "none does not exist" in corpora.fails(*add, tmp_path / "none")
    assert "no text was found" in corpora.fails(*add, tmp_path / "empty")
    add = ["add", tmp_path / "f", "--name", "n", "--tokenizer"]
    assert "has no tokenizer.json" in corpora.fails(*add, tmp_path / "empty")
    assert "no tokenizer can be loaded" in corpora.fails(*add, tmp_path / "broken")
    assert "no corpus n of tenant:local" in corpora.fails("remove", "n")
    assert list(corpora.folder.glob("*/*")) == []


def test_without_tokenizers_the_error_says_what_to_install(
    corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base install has the command, the extra what it needs."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"paceline\[corpus\]"):
        TextTokenizer(str(corpora.tokenizer))


def test_progress_reaches_the_size_of_every_file(tmp_path: Path) -> None:
    """The bytes read by a file's last document never pass its size."""
    lines = [json.dumps({"text": f"text {number}"}) for number in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "c.txt").write_text("text")
    source = TextSource(paths=[tmp_path])
    for file, size in source.files():
        positions = [position for _, position in source.documents(file)]
        assert positions == sorted(positions)
        assert 0 < positions[-1] <= size
    assert [file.name for file, _ in source.files()] == ["a.jsonl", "b.jsonl.gz", "c.txt"]
