"""A list of overrides, parsed: some choose the file of a group, the others change a setting.

The grammar is Hydra's, made kinder to what a shell leaves of quotes. A line that is no override, or
chooses what nobody offers, is refused in its own terms.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from rl_research.config.messages import NO_HER, check_choice, mistake, spelt
from rl_research.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SEARCHPATH = "hydra.searchpath"
Groups = Mapping[str, Collection[str]]

_DEPTH = 30  # of brackets in an override
_MEMBER = re.compile(r"""'[^']*'|"[^"]*"|[^\[\]{}:,'"]+""")


def as_lines(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return *overrides* as a tuple; `ConfigError` if it is no list."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides must be a list of strings, such as [{overrides!r}]")
    if isinstance(overrides, bytes | Mapping) or not isinstance(overrides, Iterable):
        raise ConfigError(
            f"overrides must be a list of strings such as ['env=pendulum'], not of type {type(overrides).__name__}"
        )
    return tuple(overrides)


def parse(overrides: Iterable[str], groups: Groups) -> tuple[dict[str, str], list[Override]]:
    """Return the line that chooses the file of each group, the last one counts; and the other overrides.

    *groups* are the names that each group offers. Raises `ConfigError`.
    """
    every = [parsed(line, groups) for line in as_lines(overrides)]
    has_searchpath = any(override.key_or_group == SEARCHPATH for override in every)
    chosen: dict[str, str] = {}
    changes = []
    for override in every:
        key, line = override.key_or_group, override.input_line or ""
        if key == SEARCHPATH:
            chosen[key] = line
        elif re.match(r"hydra([./@]|$)", key):
            raise ConfigError(f"'{line}': hydra settings are not part of an experiment.")
        elif override.package is not None:
            raise ConfigError(f"'{line}': a package is not part of an experiment; write {key}=NAME.")
        elif key not in groups:
            changes.append(override)
        else:
            _check_choice(override, groups[key], has_searchpath)
            chosen[key] = line
            if key == "experiment" and override.value() is None:
                del chosen[key]
    return chosen, changes


def parsed(line: object, groups: Collection[str] = ()) -> Override:
    """Return *line* as Hydra reads it; `ConfigError` if it is no override of one value."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not isinstance(line, str):
        raise ConfigError(f"{line!r} is not an override: it must be a string such as 'key=value'.")
    if max(accumulate((char in "[{") - (char in "]}") for char in line), default=0) > _DEPTH:
        raise ConfigError(f"{_quoted(line)[:60]}…': brackets are nested more than {_DEPTH} deep.")
    for attempt in _spellings(line):
        try:
            override = OverridesParser.create().parse_override(attempt)
        except HydraException:
            continue
        except ValueError:  # Python reads no longer ones
            raise ConfigError(f"{_quoted(line)[:60]}…': a number has more digits than can be read.") from None
        if override.is_sweep_override():
            raise ConfigError(_asking_for_one_value(line, groups))
        return override
    raise ConfigError(
        f"{_quoted(line)} is not an override: write key=value, a list as 'key=[a,b]', a mapping as "
        "'key={a: 1}', a text with commas, brackets or quotes as \"key='a, b'\"."
    )


def quoted(value: Any) -> str:
    """Return *value* in the grammar of overrides, every text in quotes."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{quoted(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    return "'" + value.replace("'", "\\'") + "'" if isinstance(value, str) else spelt(value)


def _spellings(line: str) -> Iterator[str]:
    """Yield *line*, and *line* with the quotes that spaces and Unicode need and that a shell eats."""
    key, equals, value = line.partition("=")
    if not key.strip():
        return
    yield line
    if equals and value and not set(value) & set("[]{}'\""):
        yield f"{key}='{value}'"
    elif equals and not value.isascii():
        yield f"{key}={_MEMBER.sub(_member_in_quotes, value)}"


def _member_in_quotes(found: re.Match[str]) -> str:
    member = found[0].strip()
    return found[0] if member.isascii() or member[0] in "'\"" else f"'{member}'"


def _quoted(line: str) -> str:
    """Return *line* in quotes, without a value that may be a secret."""
    key = line.partition("=")[0]
    return f"'{key if _may_be_secret(key) else spelt(line)}'"


def _may_be_secret(key: str) -> bool:
    return key.lstrip("+~ ").startswith("storage.options")


def _asking_for_one_value(line: str, groups: Collection[str]) -> str:
    key, _, value = line.partition("=")
    asking = f"{_quoted(line)}: one experiment takes one value for {(key := key.lstrip('+'))}"
    if key in groups:
        return f"{asking}. Choose one, such as {key}={value.split(',')[0].strip()}."
    value = "a,b" if _may_be_secret(key) else value
    return f"{asking}; a list is written {key}=[{value}], a text with commas \"{key}='{value}'\"."


def _check_choice(override: Override, known: Collection[str], has_searchpath: bool) -> None:
    """Raise `ConfigError` unless the override chooses one of *known*, or maybe a file of the user's own."""
    group, choice = override.key_or_group, override.value()
    if override.is_add() or override.is_force_add():
        raise ConfigError(
            f"{override.input_line}: {group} is always there, so there is nothing to add. "
            f"Write {group}={spelt(choice)}."
        )
    if group == "algorithm" and spelt(choice).lower() == "her":
        raise mistake(group, choice, NO_HER)
    is_none = choice is None and group == "experiment"
    if not (is_none or override.is_delete() or (has_searchpath and isinstance(choice, str))):
        check_choice(group, choice, known, group)
