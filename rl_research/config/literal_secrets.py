"""Secrets among overrides: hidden before the list goes anywhere, refused where it has been.

An experiment's overrides are parameters of its flow run, which Prefect stores and shows. A secret
therefore travels as ``${oc.env:NAME}``.
"""

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from rl_research.config.overrides import parsed, quoted
from rl_research.errors import ConfigError
from rl_research.system import is_secret_option, password_in

_OPTIONS = "storage.options"
_URL = "storage.url"


def hide_secrets(overrides: Iterable[str]) -> list[str]:
    """Return *overrides* with a variable of this process, which is set, in the place of each secret."""
    return [_replaced_in(line, _keep) for line in overrides]


def hide_secrets_of(reference: str, overrides: Iterable[str]) -> tuple[str, list[str]]:
    """Do the same where the checkpoint *reference* may be a URL with a password in it."""
    hidden = hide_secrets(overrides)
    if (password := password_in(reference)) is None:
        return reference, hidden
    hidden.append(f"{_OPTIONS}.password={_keep(f'{_OPTIONS}.password', password)}")
    return reference.replace(f":{password}@", "@", 1), hidden


def refuse_secrets(overrides: Iterable[str], *urls: str) -> None:
    """Raise `ConfigError` if *overrides* or *urls* hold a literal secret, naming the setting."""
    if any(password_in(url) is not None for url in urls):
        raise ConfigError(
            "The URL holds a password, which Prefect would store and show. Leave it out and give "
            f"{_OPTIONS}.password='${{oc.env:NAME}}'."
        )
    for line in overrides:
        _replaced_in(line, _refuse)


def _refuse(path: str, _: object) -> NoReturn:
    raise ConfigError(
        f"{path}: a secret in a flow's parameters would be stored and shown by Prefect. Leave "
        "it to the client's own variables or profile, or write '${oc.env:NAME}' in its place."
    )


def _keep(path: str, value: object) -> str:
    """Keep *value* in a variable of this process; return how an override refers to it."""
    name = "RL_RESEARCH_" + re.sub(r"\W+", "_", path).upper()
    os.environ[name] = str(value)
    return f"${{oc.env:{name}}}"


def _replaced_in(line: str, replace: Callable[[str, object], str]) -> str:
    """Return *line* with what *replace* makes, of its path and itself, of each literal secret."""
    if not isinstance(line, str) or not line.lstrip("+ ").startswith("storage"):
        return line
    try:
        override = parsed(line)
    except ConfigError:
        return line  # whoever reads the list says what is wrong with it
    if override.is_delete():
        return line
    before = override.value()
    after = _replaced(override.key_or_group, before, replace)
    sign = line[: len(line) - len(line.lstrip("+"))]
    return line if after == before else f"{sign}{override.key_or_group}={quoted(after)}"


def _replaced(path: str, value: Any, replace: Callable[[str, object], str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(f"{path}.{name}", member, replace) for name, member in value.items()}
    if isinstance(value, list):
        return [_replaced(f"{path}.{index}", member, replace) for index, member in enumerate(value)]
    if path == _URL and isinstance(value, str) and (password := password_in(value)) is not None:
        return value.replace(f":{password}@", f":{replace(path, password)}@", 1)
    is_secret = path.startswith(f"{_OPTIONS}.") and is_secret_option(path.rpartition(".")[2], value)
    return replace(path, value) if is_secret else value
