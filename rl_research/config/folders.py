"""Folders in which the groups of an experiment lie: ours, and before it those of the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rl_research.config.messages import did_you_mean, mistake
from rl_research.config.overrides import as_lines, parsed
from rl_research.system import expanded

_PACKAGED_CONFIGS = Path(__file__).parents[1] / "configs"
CONFIG_DIR = _PACKAGED_CONFIGS if _PACKAGED_CONFIGS.is_dir() else Path(__file__).parents[2] / "configs"

CONFIG_DIRS = "config_dirs"
CONFIG_PATH = "RL_RESEARCH_CONFIG_PATH"


def config_dirs(overrides: Iterable[str] = ()) -> list[str]:
    """Return the folders that the last ``config_dirs=[…]`` of *overrides* names, then those of the environment.

    ``RL_RESEARCH_CONFIG_PATH`` separates them as ``PATH`` does. Raises `ConfigError` for what is no folder of
    configurations, and for two folders that offer the same choice.
    """
    given: Any = []
    for line in as_lines(overrides):
        if isinstance(line, str) and line.lstrip("+ ").startswith(CONFIG_DIRS):
            override = parsed(line)
            given = override.value() if override.key_or_group == CONFIG_DIRS else given
    given = [given] if isinstance(given, str) else given
    if not (isinstance(given, list) and all(isinstance(name, str) for name in given)):
        raise mistake(CONFIG_DIRS, given, f"should be a list of folders, such as {CONFIG_DIRS}=[configs].")
    from_environment = [name for name in os.environ.get(CONFIG_PATH, "").split(os.pathsep) if name]
    found: dict[Path, str] = {}
    for source, name in [*((CONFIG_DIRS, name) for name in given), *((CONFIG_PATH, name) for name in from_environment)]:
        _check_folder(source, name)
        found.setdefault(expanded(name).resolve(), name)
    own = list(found.values())
    _check_apart(own)
    return own


def groups(own: Sequence[str] = ()) -> list[str]:
    """Return the groups that a configuration is put together from; *own* are folders of the user's."""
    return sorted({path.parent.name for folder in _folders(own) for path in folder.glob("*/*.yaml")})


def choices(group: str, own: Sequence[str] = ()) -> list[str]:
    """Return the names that *group* offers, such as ``cartpole`` and ``pendulum`` for ``env``."""
    return sorted(origins(group, own))


def origins(group: str, own: Sequence[str] = ()) -> dict[str, str | None]:
    """Return each choice of *group* with the folder of *own* that it is in; None: it is one of ours."""
    found: dict[str, str | None] = {}
    for name, folder in zip([*own, None], _folders(own), strict=True):
        for path in sorted(folder.glob(f"{group}/*.yaml")):
            if path.stem != "base":
                found.setdefault(path.stem, name)
    return found


def _folders(own: Sequence[str]) -> list[Path]:
    return [*map(expanded, own), CONFIG_DIR]


def _check_folder(source: str, name: str) -> None:
    folder = expanded(name)
    if not folder.is_dir():
        reason = "it is a file; name the folder of its group's folder" if folder.exists() else "there is no such folder"
        near = [str(path) for path in Path().glob("*/") if path.is_dir()]
        raise mistake(source, name, f"{reason}.{did_you_mean(name, near)}")
    if not any(folder.glob("*/*.yaml")):
        inner = next((path for path in sorted(folder.glob("*/")) if any(path.glob("*/*.yaml"))), None)
        hint = f" Did you mean '{Path(name) / inner.name}'?" if inner else ""
        raise mistake(source, name, f"it holds no file of a group, such as experiment/my_first.yaml.{hint}")


def _check_apart(own: Sequence[str]) -> None:
    """Raise `ConfigError` where two folders of the user's offer the same choice; which is meant, nobody can tell."""
    seen: dict[str, str] = {}
    for name in own:
        for path in sorted(expanded(name).glob("*/*.yaml")):
            choice = f"{path.parent.name}/{path.name}"
            if (other := seen.setdefault(choice, name)) != name:
                raise mistake(CONFIG_DIRS, [other, name], f"{choice} is in both of them. Rename one.")
