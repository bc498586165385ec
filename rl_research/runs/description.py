"""``config.yaml``, a run's experiment as its folder and its manifests describe it, without its secrets.

Which experiment a run is, that file says: another one is not taken up under the same id.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rl_research.config import CONFIG_DIRS, Config, Experiment, quoted, validated
from rl_research.errors import ConfigError, in_a_line
from rl_research.runs.record import DESCRIPTION
from rl_research.system import MASK, without_password, write_atomically
from rl_research.tracking import public

#: Settings that may change between segments without changing a bit of the result.
_FREE = frozenset(
    {"experiment.name", "experiment.total_timesteps", "experiment.published", "experiment.log_every"}
    | {"env.check", "env.replay", "env.restarts", "env.start_method"}
)
_COMPARED = ("experiment", "algorithm", "env")


def described(config: Config) -> dict[str, Any]:
    """*config* as a manifest and a run folder hold it: complete, but for the storage's secrets."""
    plain = config.model_dump(mode="json")
    return {**plain, "storage": public(plain["storage"])}


def write_description(experiment: Experiment) -> None:
    """Write ``config.yaml`` and ``overrides.txt`` into the run's folder."""
    folder = experiment.config.run_dir
    text = yaml.safe_dump(described(experiment.config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / DESCRIPTION, text.encode())
    write_atomically(folder / "overrides.txt", "".join(f"{line}\n" for line in shown_overrides(experiment)).encode())


def shown_overrides(experiment: Experiment) -> list[str]:
    """Return the overrides that describe *experiment* wherever they are given, without those that may hold a secret.

    The user's folders of configurations are among them, also where the environment has named them.
    """
    folders = list(experiment.config.config_dirs)
    found = [f"{CONFIG_DIRS}={quoted(folders)}"] if folders else []
    others = [line for line in experiment.overrides if not line.lstrip("+").startswith(f"{CONFIG_DIRS}=")]
    return found + [without_password(line) for line in others if "storage.options" not in line]


def read_description(folder: Path) -> Config:
    """Return the configuration of the run in *folder*.

    Masked options are left out, so credentials come from where the store's client finds them. Raises
    `ConfigError` where it is no configuration, or where the secret of ``storage.url`` is masked.
    """
    path = folder / DESCRIPTION
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {in_a_line(error)}") from None
    if not isinstance(found, dict) or not isinstance(given := found.get("storage") or {}, dict):
        raise ConfigError(f"{path}: no configuration")
    storage = dict(given)
    if MASK in str(storage.get("url")):
        raise ConfigError(
            f"storage.url={storage['url']}: its secret is not kept in {path}. "
            "Start the run again with it, or give the secret by the environment."
        )
    storage["options"] = _unmasked(options) if isinstance(options := storage.get("options") or {}, dict) else options
    return validated(Config, {**found, "storage": storage})


def _unmasked(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: _unmasked(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {key: value for key, value in plain.items() if value != MASK}


def check_same_experiment(config: Config, before: Any) -> None:
    """Raise `ConfigError` with the difference if *before* describes another experiment.

    A longer budget is allowed: schedules then span the longer budget from here on.
    """
    if not isinstance(before, Mapping):
        raise ConfigError(
            f"run_id={config.run_id}: this run's checkpoints do not say what was trained. Start another run."
        )
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
    elif ([] if old is None else old) != ([] if new is None else new):  # an older version had no such list
        yield path, old, new


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
