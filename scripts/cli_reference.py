"""The page of all `paceline` commands, made from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click


def cli_page(title: str, intro: str, root: click.Command) -> str:
    """A page with a section for `root` and each command below it, in the order of their names."""
    parts = [f"# {title}\n", f"{intro}\n"]
    for context in _commands(click.Context(root, info_name="paceline")):
        parts += _section(context)
    return "\n".join(parts)


def _commands(context: click.Context) -> Iterator[click.Context]:
    yield context
    command = context.command
    if isinstance(command, click.Group):
        for name in sorted(command.list_commands(context)):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _commands(click.Context(found, info_name=name, parent=context))


def _section(context: click.Context) -> Iterator[str]:
    command = context.command
    yield f"## `{context.command_path}`\n"
    yield f"{_paragraphs(command.help or '')}\n"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```\n"
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        yield "| option | default | meaning |"
        yield "| --- | --- | --- |"
        yield from (_row(option, context) for option in options)
        yield ""


def _paragraphs(text: str) -> str:
    blocks = inspect.cleandoc(text.replace("\b\n", "")).split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def _row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag and not option.count:
        names += f" {option.make_metavar(context).replace('|', ' or ')}"
    meaning = " ".join((option.help or "").split()).replace("|", "\\|")
    if option.envvar:
        meaning += f" Also `{option.envvar}`."
    if option.multiple and "repeat" not in meaning:
        meaning += " May be repeated."
    return f"| {names} | {_default(option)} | {meaning} |"


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    value = option.default
    if callable(value) or value in (None, "", (), []) or str(value) == "Sentinel.UNSET":
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"`{value}`"
