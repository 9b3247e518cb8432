"""Pages of settings, made from the models that read them: what a page says is what is checked.

The models are pydantic's, msgspec's or dataclasses; of each, types, defaults and bounds come from
its JSON Schema and meanings from the "Attributes" of its docstring.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import docstring_parser
import msgspec
from pydantic import BaseModel

Schema = Mapping[str, Any]

BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "{} or more characters",
    "minItems": "{} or more",
    "pattern": "`{}`",
}
"""What a bound of a JSON Schema is called."""


def settings_page(title: str, intro: str, model: type, *, variables: str = "") -> str:
    """A page with a table for each block of a model.

    Args:
        title: heading of the page.
        intro: text below it.
        model: the outermost block.
        variables: prefix of the environment variables that its settings are read from; "" for a
            file.
    """
    schema = _schema_of(model)
    classes = {each.__name__: each for each in _blocks(model)}
    meanings = {name: _meanings(kind) for name, kind in classes.items()}
    parts = [f"# {title}\n", f"{intro}\n"]
    for name, block in _reached(schema, model.__name__):
        path = "Settings" if name == model.__name__ else f"`{_shown_name(name)}`"
        parts += [f"## {path}\n", f"{_summary(classes[name])}\n"]
        parts += [*_table(block, meanings[name], variables), ""]
    return "\n".join(parts)


def _schema_of(model: type) -> Schema:
    if issubclass(model, BaseModel):
        return model.model_json_schema()
    return msgspec.json.schema(model)


def _blocks(model: type, seen: set[type] | None = None) -> Iterator[type]:
    """The model and the blocks within it, each once."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for hint in get_type_hints(model, include_extras=True).values():
        for kind in _types_in(hint):
            if kind.__module__.startswith("paceline.") and get_type_hints(kind):
                yield from _blocks(kind, seen)


def _types_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type):
        yield hint
    for inner in get_args(hint):
        yield from _types_in(inner)


def _meanings(kind: type) -> dict[str, str]:
    """What each setting of a block means, those that it inherits included."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each.__module__.startswith("paceline."):
            parsed = docstring_parser.parse(inspect.getdoc(each) or "")
            found |= {
                param.arg_name: " ".join((param.description or "").split())
                for param in parsed.params
            }
    return found


def _summary(kind: type) -> str:
    parsed = docstring_parser.parse(inspect.getdoc(kind) or "")
    text = [parsed.short_description, parsed.long_description]
    return _marked(" ".join(" ".join(part.split()) for part in text if part))


def _reached(schema: Schema, root: str) -> Iterator[tuple[str, Schema]]:
    """The blocks in the order in which they are named, the outermost first."""
    defs = schema.get("$defs", {})
    waiting, seen = [root], {root}
    while waiting:
        name = waiting.pop(0)
        block = defs.get(name, schema)
        inner = [each for each in (block, *block.get("anyOf", ())) if "properties" in each]
        yield name, inner[0]
        for referred in _references(inner[0]["properties"]):
            if referred not in seen:
                seen.add(referred)
                waiting.append(referred)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _table(block: Schema, meanings: Mapping[str, str], variables: str) -> Iterator[str]:
    yield f"| {'variable' if variables else 'setting'} | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    required = set(block.get("required", ()))
    # a block's own settings come behind those that it inherits: required ones first
    for name, setting in sorted(
        block["properties"].items(), key=lambda item: item[0] not in required
    ):
        shown = f"{variables}{name.upper()}" if variables else name
        default = "required" if name in required else _default(setting)
        meaning = _marked(meanings.get(name, "")).replace("|", "\\|")
        yield f"| `{shown}` | {_type(setting)} | {default} | {meaning} |"


def _default(setting: Schema) -> str:
    if "default" not in setting:  # made by a factory: an empty one
        return "none"
    value = setting["default"]
    if isinstance(value, dict):
        return "see below"
    if value in (None, "", []):
        return "none"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _type(setting: Schema) -> str:
    """A schema in words, with its bounds."""
    if "$ref" in setting:
        name = _shown_name(setting["$ref"].rpartition("/")[2])
        return f"[`{name}`](#{name.lower()})"
    if "anyOf" in setting:
        kinds = [each for each in setting["anyOf"] if each.get("type") != "null"]
        return " or ".join(_type(each) for each in kinds)
    if "enum" in setting:
        return ", ".join(f"`{json.dumps(each).strip(chr(34))}`" for each in setting["enum"])
    kind = str(setting.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(setting.get('items', {}))}"
    if kind == "object":
        named = [
            *setting.get("patternProperties", {}).values(),
            setting.get("additionalProperties"),
        ]
        return f"names with {_type(named[0])}" if isinstance(named[0], Mapping) else "block"
    bounds = [text.format(setting[name]) for name, text in BOUNDS.items() if name in setting]
    return ", ".join([kind, *bounds]).replace("|", "\\|")


def _shown_name(name: str) -> str:
    """The name of a block without the word that tells classes apart."""
    for suffix in ("Settings", "Config", "Policy"):
        name = name.removesuffix(suffix)
    return name


def _marked(text: str) -> str:
    """A docstring's literals as Markdown's."""
    return text.replace("``", "`")
