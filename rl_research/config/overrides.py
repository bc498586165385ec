"""A list of overrides, read: which of them choose a file, and which change a setting.

Hydra's grammar, made kinder to what a shell leaves of quotes; what is not an override, or chooses
what nobody offers, is said in the terms of the line that was given.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from rl_research.config.messages import did_you_mean, shown, spelt
from rl_research.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SEARCHPATH = "hydra.searchpath"
Offer = Mapping[str, Collection[str]]

_MEMBER = re.compile(r"""'[^']*'|"[^"]*"|[^\[\]{}:,'"]+""")


def read(offered: Offer, overrides: Iterable[str]) -> tuple[dict[str, str], list[Override]]:
    """The lines that choose a file, of which the last one of a group counts; and all others.

    *offered* are the groups, each with the names it offers.
    """
    every = [parsed(line, offered) for line in as_lines(overrides)]
    searched = any(override.key_or_group == SEARCHPATH for override in every)
    selected: dict[str, str] = {}
    changes = []
    for override in every:
        key, line = override.key_or_group, override.input_line or ""
        if key == SEARCHPATH:
            selected[key] = line
        elif re.match(r"hydra([./@]|$)", key):
            raise ConfigError(f"'{line}': hydra settings are not part of an experiment.")
        elif override.package is not None:
            raise ConfigError(f"'{line}': a package is not part of an experiment; write {key}=NAME.")
        elif key not in offered:
            changes.append(override)
        else:
            _check_choice(override, offered[key], searched)
            selected[key] = line
            if key == "experiment" and override.value() is None:
                del selected[key]
    return selected, changes


def as_lines(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return *overrides* as a tuple; `ConfigError` if it is no list."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides must be a list of strings, such as [{overrides!r}]")
    if isinstance(overrides, bytes | Mapping) or not isinstance(overrides, Iterable):
        raise ConfigError(
            f"overrides must be a list of strings such as ['env=pendulum'], "
            f"not of type {type(overrides).__name__}"
        )
    return tuple(overrides)


def parsed(line: object, offered: Offer = {}) -> Override:  # noqa: B006  # never changed
    """One line of *overrides*; `ConfigError` if it is none. A group is known by what is *offered*."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not isinstance(line, str):
        raise ConfigError(f"{line!r} is not an override: it must be a string such as 'key=value'.")
    for attempt in _spellings(line):
        try:
            override = OverridesParser.create().parse_override(attempt)
        except HydraException:
            continue
        if override.is_sweep_override():
            raise ConfigError(_one_value(offered, line))
        return override
    raise ConfigError(
        f"{_quoted(line)} is not an override: write key=value, a list as 'key=[a,b]', a mapping as "
        "'key={a: 1}', a text with commas, brackets or quotes as \"key='a, b'\"."
    )


def _spellings(line: str) -> Iterator[str]:
    """*line*, and *line* with the quotes that spaces and Unicode need and that a shell eats."""
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
    """*line* in quotes, without a value that may be a secret."""
    key = line.partition("=")[0]
    return f"'{key if _is_secret(key) else spelt(line)}'"


def _is_secret(key: str) -> bool:
    return key.lstrip("+~ ").startswith("storage.options")


def _one_value(offered: Offer, line: str) -> str:
    key, _, value = line.partition("=")
    key = key.lstrip("+")
    if key in offered:
        return f"'{line}': one experiment takes one value for {key}. Choose one, such as " + (
            f"{key}={value.split(',')[0].strip()}."
        )
    value = "a,b" if _is_secret(key) else value
    return (
        f"{_quoted(line)}: one experiment takes one value for {key}; a list is written "
        f"{key}=[{value}], a text with commas \"{key}='{value}'\"."
    )


def _check_choice(override: Override, known: Collection[str], searched: bool) -> None:
    group, choice = override.key_or_group, override.value()
    if override.is_delete():
        return
    if override.is_add() or override.is_force_add():
        raise ConfigError(
            f"{override.input_line}: {group} is always there, so there is nothing to add. "
            f"Write {group}={spelt(choice)}."
        )
    if choice in known or (choice is None and group == "experiment"):
        return
    if searched and isinstance(choice, str):
        return
    raise ConfigError(
        f"{shown(group, choice)}: there is no such {group}.{did_you_mean(spelt(choice), known)} "
        f"Choose from: {', '.join(known)}."
    )
