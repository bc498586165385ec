"""A user's own modules: found from the current folder on, imported when they are needed, hashed for the record."""

from __future__ import annotations

import hashlib
import importlib
import linecache
import os
import re
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from rl_research.config.overrides import parsed
from rl_research.config.registry import register
from rl_research.errors import ConfigError, RLResearchError

VARIABLE = "RL_RESEARCH_PLUGINS"
_ENTRY_POINTS = "rl_research.plugins"
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import the launcher's own plugins and *modules*; `ConfigError`, one line, for one that is none."""
    for name in dict.fromkeys((*plugins_of_launcher(), *modules)):
        if name not in sys.modules:
            _load(name)


def plugins_of_launcher() -> tuple[str, ...]:
    """Return the modules named by RL_RESEARCH_PLUGINS and by entry points of installed packages."""
    return (*of_variable(), *_installed())


def of_variable() -> tuple[str, ...]:
    """Return the modules that RL_RESEARCH_PLUGINS names, with commas between them."""
    return tuple(name for word in os.environ.get(VARIABLE, "").split(",") if (name := word.strip()))


def in_overrides(lines: Iterable[str]) -> list[str]:
    """Return the modules that the last override of ``plugins`` among *lines* names."""
    given = [line for line in lines if isinstance(line, str) and re.match(r"\+{0,2}plugins=", line)]
    value = parsed(given[-1]).value() if given else None
    listed = value if isinstance(value, list) else [value]
    return [name for name in listed if isinstance(name, str)]


def import_module(where: str, name: str) -> None:
    """Import the module *name*, also from the current folder, as ``python -m`` does; an error of its own is raised.

    Raises `ConfigError`, which begins with the setting *where*, if there is no such module.
    """
    with suppress(OSError):  # the current folder has been removed
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{where}: there is no module {error.name} in the current folder or among the installed ones. "
            "Start in the folder that it lies in, or name that in PYTHONPATH."
        ) from None


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the file of each imported module in the packages of *modules*, by its name."""
    packages = {name.partition(".")[0] for name in (*plugins_of_launcher(), *modules)}
    own = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}
    files = {name: Path(file) for name, module in own.items() if (file := getattr(module, "__file__", None))}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in sorted(files.items()) if file.exists()
    }


@cache
def _installed() -> tuple[str, ...]:
    return tuple(sorted({point.module for point in metadata.entry_points(group=_ENTRY_POINTS)}))


def _load(name: str) -> None:
    where = f"plugins=[{name}]"
    if not _MODULE.fullmatch(name):
        path = ".".join(Path(name).with_suffix("").parts).strip("./")
        remedy = path if _MODULE.fullmatch(path) else "my_lab.extras"
        raise ConfigError(f"{where}: a plugin is a module and no path; write plugins=[{remedy}].")
    before = _brought()
    try:
        import_module(where, name)
    except ConfigError as error:
        raise error if str(error).startswith(where) else _failed(where, name, error) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever the module does when it is imported
        raise _failed(where, name, error) from None
    if before == _brought():
        raise ConfigError(
            f"{where}: importing it has registered nothing. "
            "Decorate what it brings, as in @rl_research.register.wrapper('my_wrapper')."
        )


def _brought() -> int:
    import gymnasium

    return sum(map(len, register.registered().values())) + len(gymnasium.registry)


def _failed(where: str, name: str, error: BaseException) -> ConfigError:
    """Return the line that says what importing *name* has raised, and the last line of its own that led there."""
    said = " ".join(str(error).split())
    if not isinstance(error, RLResearchError):
        said = f"importing {name} raised {type(error).__name__}{said and f': {said}'}."
    package = name.partition(".")[0]
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] == package
    ]
    file, line = own[-1] if own else ("", 0)
    place = f" Look at {file}, line {line}: {linecache.getline(file, line).strip()}" if own else ""
    return ConfigError(f"{where}: {said}{place}")
