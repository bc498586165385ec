"""A mistake in a configuration in a line: the setting, its value, the reason, the remedy."""

import difflib
import re
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rl_research.errors import ConfigError, in_a_line

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
    "model_type": "should be a mapping",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
}
NO_HER = "it is a replay buffer. Choose sac, td3, ddpg or dqn, with algorithm.params.replay_buffer_class=her."
Fields = dict[str, FieldInfo]


def fields_of(section: type[BaseModel], prefix: str = "") -> Fields:
    """Return every setting and section of *section* by its path, in the order of the schema."""
    found = {}
    for name, field in section.model_fields.items():
        found[f"{prefix}{name}"] = field
        if (nested := model_in(field)) is not None:
            found |= fields_of(nested, f"{prefix}{name}.")
    return found


def model_in(field: FieldInfo) -> type[BaseModel] | None:
    """Return the section that *field* holds, alone or in a list; None if it is a setting."""
    kinds = members(field.annotation)
    kinds += [inner for kind in kinds if typing.get_origin(kind) is list for inner in typing.get_args(kind)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def members(annotation: Any) -> list[Any]:
    """Return the types that a union offers, or the one type that *annotation* is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(annotation) for kind in members(member)]
    return [annotation]


def explain(error: ValidationError, section: type[BaseModel], prefix: str = "") -> str:
    """Return the mistakes of *error*, one line per setting of *section*, which stands at *prefix*."""
    fields = fields_of(section)
    by_setting: dict[str, list[ErrorDetails]] = {}
    for details in error.errors():
        by_setting.setdefault(_setting(details, fields), []).append(details)
    before = f"{prefix}." if prefix else ""
    return "\n".join(_line(where, found, fields, before) for where, found in by_setting.items())


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return `` Did you mean 'x'?``, *prefix* before the x, or nothing if *word* resembles none of *known*."""
    found = _nearest(word, known)
    return f" Did you mean '{prefix}{found}'?" if found else ""


def mistake(where: str, value: object, reason: str) -> ConfigError:
    """Return the error that says why the setting *where* cannot be *value*."""
    return ConfigError(f"{shown(where, value)}: {reason}")


def check_choice(where: str, value: object, known: Collection[str], what: str) -> None:
    """Raise `ConfigError` if *value* is none of *known*."""
    if value not in known:
        hint = f"{did_you_mean(spelt(value), known)} Choose from: {', '.join(known)}."
        raise mistake(where, value, f"there is no such {what}.{hint}")


def shown(where: str, value: object) -> str:
    """Return ``where=value`` as one would type it, or *where* alone if the value may be a secret."""
    secret = where.startswith("storage.options") or (where == "storage" and not isinstance(value, str | None))
    text = spelt(value)
    return where if secret else f"{where}={text if len(text) <= 60 else text[:57] + '...'}"


def spelt(value: object) -> str:
    """Return *value* as an override spells it: null, true, [a,b], {a: 1}."""
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


def _setting(details: ErrorDetails, fields: Fields) -> str:
    """Return the path of the setting, without the names pydantic gives to the members of a union."""
    path, before = "", None
    for part in details["loc"]:
        is_section = not path or (path in fields and model_in(fields[path]) is not None)
        if is_section or isinstance(part, int) or isinstance(before, int):
            path = f"{path}.{part}" if path else str(part)
        before = part
    return path


def _line(where: str, found: list[ErrorDetails], fields: Fields, prefix: str) -> str:
    kind, full, value = found[0]["type"], in_a_line(prefix + where), found[0]["input"]
    if kind == "extra_forbidden":
        return f"'{full}' is not a setting.{_similar_setting(where, fields, prefix)}"
    setting = re.sub(r"(\.\d+)+$", "", where)  # without a member's index in a list
    if kind in ("missing", "missing_value"):
        return f"{full} is not set. Give {full}={_example(fields.get(setting))}."
    reasons = [_reason(details) for details in found]
    reason = " or ".join([reasons[0], *(r.removeprefix("should be ") for r in reasons[1:])])
    if not where:
        return f"{shown(prefix[:-1], value)}: {reason}." if prefix else reason
    example = f" For instance {prefix}{setting}={_example(fields[setting])}." if setting in fields else ""
    return f"{shown(full, value)}: {reason}.{example}"


def _reason(details: ErrorDetails) -> str:
    reason = _REASONS.get(details["type"], details["msg"].removeprefix("Value error, "))
    return _SUBJECT.sub("should ", reason)


def _similar_setting(where: str, fields: Fields, prefix: str) -> str:
    by_leaf = {path.rpartition(".")[2]: path for path in reversed(fields)}
    leaf = _nearest(where.rpartition(".")[2], by_leaf)
    if near := _nearest(where, fields) or (leaf and by_leaf[leaf]):
        return f" Did you mean '{prefix}{near}'?"
    parent = re.sub(r"\.\d+", "", where).rpartition(".")[0]
    return f" It takes: {', '.join(path for path in fields if path.rpartition('.')[0] == parent)}."


def _example(field: FieldInfo | None) -> str:
    if field is None:
        return "VALUE"
    if field.examples:
        example = spelt(field.examples[0])
    elif field.is_required() or model_in(field):
        example = "VALUE"
    else:
        example = spelt(field.get_default(call_default_factory=True, validated_data={}))
    return f"{example} ({field.description})" if field.description else example
