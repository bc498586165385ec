"""What is wrong with a configuration, in a line: the setting, its value, the reason, the remedy."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_SUBJECT = re.compile(r"^(Input|String|Value|List|Tuple|Dictionary) should ")
_REASONS = {
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_from_float": "should be a valid integer",
    "int_parsing": "should be a valid integer",
    "list_type": "should be a list",
    "mapping_type": "should be a mapping",
    "model_type": "should be a mapping",
    "model_attributes_type": "should be a mapping",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
}


def explain(error: ValidationError, section: type[BaseModel], prefix: str = "") -> str:
    """The mistakes of *error*, one line per setting of *section*, which stands at *prefix*."""
    by_setting: dict[str, list[ErrorDetails]] = {}
    for details in error.errors():
        by_setting.setdefault(_setting(details, section), []).append(details)
    return "\n".join(
        _line(where, found, section, f"{prefix}." if prefix else "") for where, found in by_setting.items()
    )


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting of *section* with its description, in the order of the schema."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def texts(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The settings of *section* that hold free text, where 1_000 is not a number."""
    for name, field in section.model_fields.items():
        nested = _model(field.annotation)
        if nested is not None:
            yield from texts(nested, f"{prefix}{name}.")
        elif str in _members(field.annotation):
            yield f"{prefix}{name}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or nothing if *word* resembles none of *known*."""
    found = _nearest(word, known)
    return f" Did you mean '{found}'?" if found else ""


def shown(where: str, value: object) -> str:
    """``where=value`` as one would type it, or *where* alone if the value may be a secret."""
    secret = where.startswith("storage.options") or (where == "storage" and not isinstance(value, str | None))
    return where if secret else f"{where}={_short(spelt(value))}"


def spelt(value: object) -> str:
    """*value* as an override spells it: null, true, [a,b], {a: 1}."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spelt(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spelt(member) for member in value) + "]"
    return str(value).replace("\n", "\\n")


def _nearest(word: str, known: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(list(known))}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _members(annotation: Any) -> Sequence[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(annotation) for kind in _members(member)]
    return [annotation]


def _model(annotation: Any) -> type[BaseModel] | None:
    for kind in _members(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _setting(details: ErrorDetails, section: type[BaseModel]) -> str:
    """The path of the setting, without the names pydantic gives to the members of a union."""
    known: type[BaseModel] | None = section
    path = []
    for part in details["loc"]:
        if known is not None:
            field = known.model_fields.get(str(part))
            known = _model(field.annotation) if field else None
            path.append(str(part))
        elif isinstance(part, int):
            path.append(str(part))
    return ".".join(path)


def _line(where: str, found: list[ErrorDetails], section: type[BaseModel], prefix: str) -> str:
    kind, full = found[0]["type"], prefix + where
    if kind == "extra_forbidden":
        return f"'{full}' is not a setting.{_similar_setting(where, section, prefix)}"
    field = _field(where, section)
    if kind in ("missing", "missing_value"):
        return f"{full} is not set. Give {full}={_example(field)}."
    reasons = [_reason(details) for details in found]
    reason = " or ".join([reasons[0], *(r.removeprefix("should be ") for r in reasons[1:])])
    if not where:
        return f"{shown(prefix[:-1], found[0]['input'])}: {reason}." if prefix else reason
    remedy = f" For instance {_without_index(full)}={_example(field)}." if field else ""
    return f"{shown(full, found[0]['input'])}: {reason}.{remedy}"


def _reason(details: ErrorDetails) -> str:
    reason = _REASONS.get(details["type"], details["msg"].removeprefix("Value error, "))
    return _SUBJECT.sub("should ", reason)


def _similar_setting(where: str, section: type[BaseModel], prefix: str) -> str:
    known = [path for path, _ in leaves(section)]
    sections = [name for name in section.model_fields if _model(section.model_fields[name].annotation)]
    by_leaf = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
    leaf = _nearest(where.rsplit(".", 1)[-1], by_leaf)
    near = _nearest(where, [*known, *sections]) or (by_leaf[leaf] if leaf else None)
    if near:
        return f" Did you mean '{prefix}{near}'?"
    return " `rl-research train --help` lists all settings."


def _field(where: str, section: type[BaseModel]) -> FieldInfo | None:
    known: type[BaseModel] | None = section
    field = None
    for part in _without_index(where).split("."):
        field = known.model_fields.get(part) if known else None
        known = _model(field.annotation) if field else None
    return field


def _without_index(where: str) -> str:
    return re.sub(r"(\.\d+)+$", "", where)


def _example(field: FieldInfo | None) -> str:
    if field is None:
        return "VALUE"
    if field.examples:
        example = spelt(field.examples[0])
    elif field.is_required() or _model(field.annotation):
        example = "VALUE"
    else:
        example = spelt(field.get_default(call_default_factory=True, validated_data={}))
    return f"{example} ({field.description})" if field.description else example
