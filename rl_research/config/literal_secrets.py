"""Secrets among overrides: out of sight before the list goes anywhere, refused where it has been.

An experiment's overrides are parameters of its flow run, which Prefect stores and shows. A secret
therefore travels as ``${oc.env:NAME}``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from rl_research.config.messages import spelt
from rl_research.config.overrides import parsed
from rl_research.errors import ConfigError
from rl_research.system import is_secret_option, password_in

_OPTIONS = "storage.options"
_URL = "storage.url"


def out_of_sight(overrides: Iterable[str]) -> list[str]:
    """*overrides* with each literal secret in a variable of this process instead, which they name."""
    return [_without_secrets(line) for line in overrides]


def checkpoint_out_of_sight(reference: str, overrides: Iterable[str]) -> tuple[str, list[str]]:
    """The same where the checkpoint *reference* may be a URL with a password in it."""
    hidden = out_of_sight(overrides)
    if (password := password_in(reference)) is None:
        return reference, hidden
    hidden.append(f"{_OPTIONS}.password={_kept(f'{_OPTIONS}.password', password)}")
    return _without(reference, password, ""), hidden


def refuse(overrides: Iterable[str], *urls: str) -> None:
    """Raise `ConfigError` if *overrides* or *urls* hold a literal secret, naming the setting."""
    for url in urls:
        if password_in(url) is not None:
            raise ConfigError(
                "The URL holds a password, which Prefect would store and show. Leave it out and give "
                f"{_OPTIONS}.password='${{oc.env:NAME}}'."
            )
    for line in overrides:
        for path, _ in _secrets(line):
            raise ConfigError(
                f"{path}: a secret in a flow's parameters would be stored and shown by Prefect. Leave "
                "it to the client's own variables or profile, or write '${oc.env:NAME}' in its place."
            )


def _without_secrets(line: str) -> str:
    found = dict(_secrets(line))
    if not found:
        return line
    override = parsed(line)
    key = override.key_or_group
    if key == _URL:
        password = found[_URL]
        return f"{key}={_spelt(_without(str(override.value()), password, _kept(_URL, password)))}"
    value = _replaced(key, override.value(), {path: _kept(path, found[path]) for path in found})
    sign = line[: len(line) - len(line.lstrip("+"))]
    return f"{sign}{key}={_spelt(value)}"


def _secrets(line: str) -> Iterator[tuple[str, Any]]:
    """Each literal secret in *line*, by the path of its setting; nothing where it is no override."""
    if not isinstance(line, str) or not line.lstrip("+ ").startswith("storage"):
        return
    try:
        override = parsed(line)
    except ConfigError:
        return  # whoever reads the list says what is wrong with it
    if override.is_delete():
        return
    yield from _below(override.key_or_group, override.value())


def _below(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _below(f"{path}.{name}", member)
    elif path == _URL:
        if isinstance(value, str) and (password := password_in(value)) is not None:
            yield path, password
    elif _is_secret(path, value):
        yield path, value


def _is_secret(path: str, value: Any) -> bool:
    return path.startswith(f"{_OPTIONS}.") and is_secret_option(path.rpartition(".")[2], value)


def _replaced(path: str, value: Any, by_path: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(f"{path}.{name}", m, by_path) for name, m in value.items()}
    if isinstance(value, list):
        return [_replaced(f"{path}.{index}", m, by_path) for index, m in enumerate(value)]
    return by_path.get(path, value)


def _kept(path: str, value: Any) -> str:
    """Keep *value* in a variable of this process; how an override refers to it."""
    name = "RL_RESEARCH_" + re.sub(r"\W+", "_", path).upper()
    os.environ[name] = str(value)
    return f"${{oc.env:{name}}}"


def _without(url: str, password: str, reference: str) -> str:
    return url.replace(f":{password}@", f":{reference}@" if reference else "@", 1)


def _spelt(value: Any) -> str:
    """*value* in the grammar of overrides, every text in quotes."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_spelt(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_spelt(member) for member in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return spelt(value)
