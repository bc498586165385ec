"""Where a result comes from: versions, git commit, environment, flow run; secrets stay out.

Nothing here raises: what cannot be known is left out.
"""

import enum
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
            capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return answer.stdout.strip()
    return None


def environment_facts(env: Any) -> dict[str, object]:
    """Return ``id``, spaces and ``n_envs`` of a gymnasium environment or a VecEnv."""
    found: dict[str, object] = {}
    for name in ("observation_space", "action_space"):
        if (space := getattr(env, name, None)) is not None:
            found[name] = str(space)
    if env is not None:
        found["n_envs"] = int(getattr(env, "num_envs", 1))
    with suppress(Exception):
        specs = env.get_attr("spec") if hasattr(env, "get_attr") else [env.spec]
        found["id"] = str(specs[0].id)
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


def public(values: Mapping[Any, object]) -> dict[str, object]:
    """Return *values* as JSON can hold them, with everything that looks like a secret as ``***``."""
    return {
        str(key): MASK if names_a_secret(str(key)) and not isinstance(value, Mapping | bool | None) else _public(value)
        for key, value in values.items()
    }


def _public(value: object) -> object:
    if isinstance(value, Mapping):
        return public(value)
    if isinstance(value, str):
        return masked(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size <= 1000):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_public(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_public(item) for item in value), key=str)
    return _named(value)


def _named(value: object) -> object:
    """Return what stands for an object: its value, its qualified name or its text, never its address."""
    if isinstance(value, enum.Enum):
        return _public(value.value)
    if isinstance(value, Path):
        return str(value)
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{value.__module__}.{name}"
    with suppress(Exception):
        if len(text := str(value)) <= 1000 and not _ADDRESS.search(text):
            return _public(text)
    return f"{type(value).__module__}.{type(value).__qualname__}"
