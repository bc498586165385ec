"""Where a result comes from: versions, git commit, environment, flow run; secrets stay out.

Nothing here raises: what cannot be known is left out.
"""

import enum
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rl_research.system import MASK, masked, names_a_secret

_PACKAGES = (
    "rl-research", "stable-baselines3", "sb3-contrib", "sbx-rl", "gymnasium", "torch", "jax",
    "numpy", "wandb", "prefect", "hydra-core", "fsspec",
)  # fmt: skip


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python, the platform, and the installed packages that a result depends on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_state() -> dict[str, str | bool]:
    """Return ``commit`` and ``dirty`` of the repository of the working folder; empty outside of one."""
    with suppress(OSError):
        return _git(str(Path.cwd()))
    return {}


@cache
def _git(folder: str) -> dict[str, str | bool]:
    commit = _ask_git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    changed = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit} if changed is None else {"commit": commit, "dirty": bool(changed)}


def _ask_git(folder: str, *arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "--no-optional-locks", "-C", folder, *arguments],
            capture_output=True, text=True, errors="replace", timeout=10, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return answer.stdout.strip()
    return None


def environment_facts(env: Any) -> dict[str, object]:
    """Return ``id``, spaces and ``n_envs`` of a gymnasium environment or a VecEnv."""
    found: dict[str, object] = {}
    for name in ("observation_space", "action_space"):
        with suppress(Exception):
            if (space := getattr(env, name, None)) is not None:
                found[name] = _text(str(space))
    with suppress(Exception):
        if env is not None:
            found["n_envs"] = int(getattr(env, "num_envs", 1))
    with suppress(Exception):
        specs = env.get_attr("spec") if hasattr(env, "get_attr") else [env.spec]
        found["id"] = _text(str(specs[0].id))
    return found


def current_flow_run() -> dict[str, str]:
    """Return the current Prefect flow run, from memory only; empty where nobody has imported Prefect.

    A user's own flow has a flow run, too, so Prefect's modules are looked up here, and nowhere else.
    """
    context = sys.modules.get("prefect.context")
    found: dict[str, Any] = {"flow_run_id": os.environ.get("PREFECT__FLOW_RUN_ID")}
    with suppress(Exception):  # whatever Prefect changes, training goes on
        if context is None:
            return {}
        if task := context.TaskRunContext.get():
            found |= {"task_run_id": task.task_run.id, "flow_run_id": task.task_run.flow_run_id}
        if flow := context.FlowRunContext.get():
            run = flow.flow_run
            found |= {"flow_run_id": run.id, "flow_run_name": run.name}
            found |= {"deployment_id": run.deployment_id}
        settings = sys.modules["prefect.settings"]
        if settings.PREFECT_UI_ENABLED.value() and (page := settings.PREFECT_UI_URL.value()):
            found["ui_url"] = f"{page}/flow-runs/flow-run/{found['flow_run_id']}"
    known = {name: str(value) for name, value in found.items() if value}
    return known if "flow_run_id" in known else {}


_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}")
_LARGEST = 1000  # elements of an array that are kept
_DEEPEST, _MOST = 50, 10_000  # levels, and groups of values, of one configuration
_REST = "…"


def public(values: Mapping[Any, object]) -> dict[str, object]:
    """Return *values* as JSON can hold them, with everything that looks like a secret as ``***``.

    ``…`` stands for a group in itself, for what is deeper than 50 levels, and for what comes after 10,000 groups.
    An integer beyond 64 bits, NaN and infinity become text: readers of JSON change or refuse them.
    """
    found = _Public().value(values)
    return found if isinstance(found, dict) else {}


def text(value: object) -> str:
    """Return *value* as text in a line, without secrets and without what UTF-8 cannot hold."""
    return " ".join(str(_Public().value(value)).split())


class _Public:
    """One conversion of a value into what JSON can hold."""

    def __init__(self) -> None:
        self._above: list[int] = []  # groups that the value is in
        self._groups = 0

    def value(self, value: object) -> object:
        try:
            if isinstance(value, Mapping | list | tuple | set | frozenset | np.ndarray):
                return self._group(value)
            return self._single(value)
        except Exception:  # noqa: BLE001  # a property or a conversion of the object's own
            return _name_of(type(value))

    def _group(self, group: Any) -> object:
        if id(group) in self._above or len(self._above) == _DEEPEST or self._groups == _MOST:
            return _REST
        self._groups += 1
        self._above.append(id(group))
        try:
            if isinstance(group, Mapping):
                return {_text(str(self.value(key))): self._member(key, value) for key, value in group.items()}
            if isinstance(group, np.ndarray):
                return self.value(group.tolist()) if group.size <= _LARGEST else _name_of(type(group))
            found = [self.value(item) for item in group]
            return sorted(found, key=str) if isinstance(group, set | frozenset) else found
        finally:
            self._above.pop()

    def _member(self, key: object, value: object) -> object:
        is_secret = isinstance(key, str) and names_a_secret(key) and not isinstance(value, Mapping | bool | None)
        return MASK if is_secret else self.value(value)

    def _single(self, value: Any) -> object:
        if isinstance(value, np.generic):
            value = float(value) if isinstance(value, np.floating) else value.item()
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value) if value.bit_length() < 64 else _digits(int(value))
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        return value if value is None or isinstance(value, bool) else self._named(value)

    def _named(self, value: Any) -> object:
        """Return what stands for an object: its value, its qualified name or its text, never its address."""
        if isinstance(value, enum.Enum):
            return self.value(value.value)
        if isinstance(value, Path):
            return _text(str(value))
        if isinstance(getattr(value, "__qualname__", None), str):
            return _name_of(value)
        if len(said := str(value)) <= 1000 and not _ADDRESS.search(said):
            return _text(said)
        return _name_of(type(value))


def _name_of(value: Any) -> str:
    return ".".join(filter(None, (getattr(value, "__module__", None), value.__qualname__)))


def _text(value: str) -> str:
    return masked(value).encode(errors="backslashreplace").decode()


def _digits(value: int) -> str:
    bits = value.bit_length()
    return str(value) if bits < 2000 else f"an integer of {bits:,} bits"  # Python writes no longer ones out
