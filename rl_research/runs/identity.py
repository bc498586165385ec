"""Identity of an experiment: which settings may differ between two descriptions of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from rl_research.config import Config
from rl_research.errors import ConfigError
from rl_research.tracking import public

#: Settings that may change between segments without changing a bit of the result.
_FREE = frozenset({"experiment.name", "experiment.total_timesteps", "experiment.published", "experiment.log_every"})
_COMPARED = ("experiment", "algorithm", "env")


def described(config: Config) -> dict[str, Any]:
    """*config* as a manifest and a run folder hold it: complete, but for the storage's secrets."""
    plain = config.model_dump(mode="json")
    return {**plain, "storage": public(plain["storage"])}


def check_same_experiment(config: Config, before: Mapping[str, Any]) -> None:
    """Raise `ConfigError` with the difference if *before* describes another experiment.

    A longer budget is allowed: schedules then span the longer budget from here on.
    """
    now = config.model_dump(mode="json")
    changed = [
        f"{path} was {_shown(old)}, now {_shown(new)}"
        for section in _COMPARED
        for path, old, new in _differences(before.get(section), now[section], section)
        if path not in _FREE
    ]
    if changed:
        raise ConfigError(
            f"run_id={config.run_id}: this run was started with other settings: {'; '.join(changed)}. "
            "Go on with the former ones, or start another run with run_id=NAME."
        )


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path, old, new


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
