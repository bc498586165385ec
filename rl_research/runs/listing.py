"""The runs of a folder as flat records, for a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rl_research.runs.record import DESCRIPTION, RECORD, read_record
from rl_research.system import expanded

_NESTED = {"git", "published", "pruned", "resume", "segments", "versions"}  # of a record: not for a table


def list_runs(folder: str | Path = "runs") -> list[dict[str, Any]]:
    """Return a flat record of each run in *folder*, by its name, oldest first, for ``pandas.DataFrame``.

    Settings stand under the paths that overrides have, such as ``algorithm.params.gamma``. What the run came to
    stands under the names of ``run.json``, such as ``status``, ``global_step`` and ``scores.mean``.
    """
    found = []
    for path in sorted(expanded(str(folder)).glob(f"*/{RECORD}")):
        if (record := read_record(path.parent)) is not None:
            facts = record.model_dump(mode="json", exclude=_NESTED | {"algorithm", "env"})
            found.append({**dict(_leaves(_settings(path.parent))), **dict(_leaves(facts)), "run_dir": str(path.parent)})
    return sorted(found, key=lambda row: str(row["started_at"]))


def _settings(folder: Path) -> Any:
    try:
        return yaml.safe_load((folder / DESCRIPTION).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, member in value.items() if isinstance(value, Mapping) else ():
        if isinstance(member, Mapping):
            yield from _leaves(member, f"{path}{key}.")
        else:
            yield f"{path}{key}", member
