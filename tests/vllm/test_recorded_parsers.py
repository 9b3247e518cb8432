"""The recordings of tests/vllm/streams are the installed vLLM's, and of all its parsers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from recorded_streams import FOLDER, read_forms

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

TABLES = {
    "tool": ("tool_parsers", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning": ("reasoning", "_REASONING_PARSERS_TO_REGISTER"),
}
AGAIN = ("hermes", "gemma4", "qwen3")
"""Recorded again: a parser of its own, one for both, one of thoughts."""


def parsers_of_vllm(package: str, table: str) -> set[str]:
    """Names that ``--tool-call-parser`` or ``--reasoning-parser`` takes, without importing vLLM."""
    spec = find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / package / "__init__.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table:
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{source} has no {table}")


@pytest.mark.parametrize("kind", TABLES)
def test_every_parser_is_recorded_or_said_why_not(kind: str) -> None:
    """A vLLM with a parser that forms.yaml does not know, or without one it knows, is noticed."""
    forms: dict[str, Any] = read_forms()
    recorded, left_out = set(forms[kind]), forms["unrecorded"][kind]
    assert recorded | set(left_out) == parsers_of_vllm(*TABLES[kind])
    assert not recorded & set(left_out)
    assert all(len(reason) > 20 for reason in left_out.values())


def test_recorded_again_they_are_the_same() -> None:
    """A vLLM that starts now sends the bytes that are kept, through every endpoint."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "record.py"), "--check", "--only", *AGAIN],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count(": the same") >= len(AGAIN)
