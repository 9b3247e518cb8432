"""Fenced blocks of the documentation's pages, and what checks each kind of them."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import yaml

from paceline.middleware.cli import cli
from paceline.middleware.config import ProxyConfig
from paceline.online.learner_settings import LearnerSettings, checked
from paceline.policies.tenants import PolicyFile, parse_policy

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "shell")
VLLM_OPTIONS = frozenset(
    (ROOT / "tests" / "docs" / "vllm-0.26.0-options.txt").read_text("utf-8").split()
)
"""Options of vLLM 0.26.0's server, as its own parser lists them."""


@dataclass(frozen=True)
class Snippet:
    """A block of a page."""

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.partition(chr(10))[0]:.60}"


def pages() -> list[Path]:
    """README, what lies in docs/, and what is said of the deployment files."""
    return [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]


def snippets(*languages: str) -> list[Snippet]:
    """All blocks in one of these languages."""
    return [
        Snippet(str(page.relative_to(ROOT)), language, text)
        for page in pages()
        for language, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


def command_lines(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, split into words; without what they are led to."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words[: min(words.index(end) if end in words else len(words) for end in "|>")]


def check_paceline(words: list[str]) -> None:
    """Parse `paceline ...`, and what it hands on to vLLM.

    Raises:
        click.UsageError: a command, an option or a value does not exist.
    """
    command: click.Command = cli
    rest = list(words[1:])
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            raise click.UsageError(f"{' '.join(words)}: there is no command {rest[0]!r}")
        command = found
        rest.pop(0)
    for parameter in command.params:  # the files of an example need not be there
        if isinstance(parameter.type, click.Path):
            parameter.type.exists = False
    with command.make_context(command.name, rest) as context:
        for word in context.params.get("vllm_args", ()):
            if word.startswith("--") and word.partition("=")[0] not in VLLM_OPTIONS:
                raise click.UsageError(f"{word} is no option of vLLM 0.26.0 ({' '.join(words)})")


def kind_of(data: Any) -> str:
    """What a block of YAML configures: `policy`, `proxy`, `learner`, or "" for none of ours."""
    if not isinstance(data, Mapping):
        return ""
    for kind, model in (("policy", PolicyFile), ("proxy", ProxyConfig)):
        if set(data) <= set(model.model_fields):
            return kind
    return "learner" if set(data) <= set(LearnerSettings.__struct_fields__) else ""


def check_yaml(text: str) -> str:
    """Have what reads such a file look at it; a part of one is completed first.

    Returns its kind.

    Raises:
        ConfigError, ValidationError, YAMLError: it is wrong.
    """
    data = yaml.safe_load(text)
    kind = kind_of(data)
    if kind == "policy":
        parse_policy(yaml.safe_dump({"tenants": [{"name": "some"}], **data}), name="a page")
    elif kind == "proxy":
        some = {"upstreams": [{"name": "some", "url": "http://127.0.0.1:8000"}]}
        ProxyConfig.model_validate({**some, **data})
    elif kind == "learner":
        names = ("redis_url", "registry", "data", "model", "target")
        checked({**dict.fromkeys(names, "some"), "load": {"load_average": True}, **data})
    return kind


def check_python(text: str) -> None:
    """Compile it, and look up each name that it imports from what is installed here.

    Raises:
        SyntaxError, ImportError, AttributeError: that does not work.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_here(alias.name):
                    importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and _is_here(node.module):
            module = importlib.import_module(node.module)
            for alias in node.names:
                getattr(module, alias.name)


def _is_here(module: str) -> bool:
    top = module.partition(".")[0]
    return top == "paceline" or find_spec(top) is not None
