"""From a list of overrides to plain dicts, by way of Hydra and OmegaConf.

Hydra puts the chosen files together. The other overrides are applied here, for Hydra alone would refuse a
new key of ``algorithm.params``, advise a ``+`` that hides typos, and answer mistakes in terms of its own
insides. What may be set is decided by `rl_research.config.schema`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rl_research.config.algorithms import base_of
from rl_research.config.folders import CONFIG_DIR, CONFIG_DIRS, choices, config_dirs, groups
from rl_research.config.messages import did_you_mean, mistake, shown, spelt
from rl_research.config.overrides import SEARCHPATH, as_lines, parse, parsed
from rl_research.config.registry import register
from rl_research.errors import ConfigError, in_a_line
from rl_research.system import expanded

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

#: Stands in a `Config` for the run's folder, which is known only when the run has its id.
RUN_DIR = "{run_dir}"
_OUTPUT_DIR = re.compile(r"\$\{hydra:runtime\.output_dir\}")
_OMEGACONF_TAIL = re.compile(r"\s*(full_key|object_type|reference_type)[:=].*", re.DOTALL)
_RAISED_WHILE = re.compile(r"\w+ raised while resolving interpolation: ")

_hydra_lock = threading.RLock()  # Hydra's compose API keeps its state in a process-wide singleton.


def compose(overrides: Iterable[str] = (), verbatim: Collection[str] = ()) -> dict[str, Any]:
    """Return the configuration that *overrides* describe, as plain dicts, lists and scalars.

    A setting in *verbatim* keeps the text it was given, where Hydra would make ``1_000`` a number.
    ``experiment.published`` is the score of exactly what the experiment file says: it becomes null when
    the algorithm, the environment or the budget are others than in that file. Raises `ConfigError`.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    lines = as_lines(overrides)
    own = config_dirs(lines)
    known = {group: choices(group, own) for group in groups(own)}
    plugged = [name for name in register.algorithm.registered if name not in known["algorithm"]]
    selected, changes = parse(lines, {**known, "algorithm": [*known["algorithm"], *plugged]})
    if (name := selected.get("algorithm", "").partition("=")[2]) in plugged:
        base = base_of(name)  # whose file has the settings that it begins with
        selected["algorithm"] = f"algorithm={base if base in known['algorithm'] else 'ppo'}"
        changes.insert(0, parsed(f"algorithm.name={name}"))
    changes = [change for change in changes if change.key_or_group != CONFIG_DIRS or change.is_delete()]
    for group in set(groups(own)).difference(groups()) & set(selected):
        selected[group] = f"+{selected[group]}"  # config.yaml has no such group, so Hydra is told to add it
    try:
        with _hydra_on(own):
            config, chosen = _selected(selected.values())
            for override in changes:
                _change(config, override, verbatim)
            values = plain(config)
            if chosen["experiment"] and len(selected) + len(changes) > 1:
                alone = [selected[key] for key in (SEARCHPATH, "experiment") if key in selected]
                pure = plain(_selected(alone)[0])
                _compare_with_experiment(values, pure, chosen, changes)
    except OmegaConfBaseException as error:
        raise ConfigError(_omegaconf_line(error, config)) from None
    except HydraException as error:
        reason = " ".join(_OMEGACONF_TAIL.sub("", str(error).split("Config search path")[0]).split())
        raise ConfigError(f"{' '.join(selected.values())}: {reason}") from None
    return {**values, CONFIG_DIRS: own} if own else values


def plain(config: Mapping[str, Any] | BaseModel, output_dir: str = RUN_DIR) -> dict[str, Any]:
    """Return *config*, of whatever kind, as plain dicts, lists and scalars with interpolations resolved.

    ``${hydra:runtime.output_dir}`` means Hydra's own folder under ``@hydra.main``, and *output_dir*
    elsewhere, where Hydra itself raises.
    """
    if isinstance(config, BaseModel):
        return config.model_dump(mode="json")
    if not type(config).__module__.startswith("omegaconf."):  # asked without importing it
        return dict(config)
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not (HydraConfig.initialized() and HydraConfig.get().runtime.output_dir):
        unresolved = OmegaConf.to_container(config, resolve=False)
        config = OmegaConf.create(_with_output_dir(unresolved, output_dir))
    resolved: dict[Any, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # as it is a mapping
    return {str(key): value for key, value in resolved.items()}


@contextmanager
def _hydra_on(own: Iterable[str]) -> Iterator[None]:
    """Lend this thread Hydra's process-wide state, and give back what was there; it finds the folders *own* first."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    with _hydra_lock:
        borrowed = GlobalHydra.instance().hydra  # set while the user's own `@hydra.main` runs
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
                path = GlobalHydra.instance().config_loader().get_search_path()
                for folder in reversed([*own]):
                    path.prepend(CONFIG_DIRS, f"file://{expanded(folder).absolute()}")
                yield
        finally:
            GlobalHydra.instance().hydra = borrowed


def _with_output_dir(value: Any, output_dir: str) -> Any:
    """Return *value* with Hydra's run folder spelt out, which Hydra resolves only in its own main."""
    if isinstance(value, str):
        return _OUTPUT_DIR.sub(lambda _: output_dir, value)
    if isinstance(value, dict):
        return {key: _with_output_dir(member, output_dir) for key, member in value.items()}
    return [_with_output_dir(member, output_dir) for member in value] if isinstance(value, list) else value


# ---------------------------------------------------------------- putting it together


def _selected(lines: Iterable[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """Return what Hydra makes of the chosen files, and the name of the file chosen from each group."""
    import hydra
    from omegaconf import open_dict
    from yaml import YAMLError

    given = list(lines)
    if not any(line.lstrip("+").startswith(SEARCHPATH) for line in given):
        given.append(f"{SEARCHPATH}=[]")  # has Hydra read its search path again, with the user's folders before ours
    try:
        config = hydra.compose("config", given, return_hydra_config=True)
    except (YAMLError, ValueError, OSError) as error:  # a file that is no YAML, or no mapping
        raise ConfigError(f"{' '.join(given[:-1])}: {in_a_line(error)}.") from None
    chosen = {group: config.hydra.runtime.choices.get(group) for group in groups()}
    with open_dict(config):
        del config["hydra"]
    if {"algorithm", "env", "experiment"} & set(config.get("experiment") or ()):
        raise ConfigError(
            f"experiment={chosen['experiment']}: its file should begin with the line # @package _global_."
        )
    return config, chosen


def _change(config: DictConfig, override: Override, verbatim: Collection[str]) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, value = override.key_or_group, override.value()
    if override.is_delete():
        return _delete(config, key)
    if key in verbatim and isinstance(value, int | float):
        value = (override.input_line or "").partition("=")[2].strip().strip("'")
    # Not merged: a list where a mapping was, or the reverse; the schema says which of them it wants.
    for merge in (True, False):
        try:
            return OmegaConf.update(config, key, value, merge=merge, force_add=True)
        except (OmegaConfBaseException, ValueError):  # ValueError: a list's index that is no number
            continue
    parent = key.rpartition(".")[0]
    raise mistake(key, value, f"{parent} is a list, so give it whole, as in {parent}=[a,b].")


def _delete(config: DictConfig, key: str) -> None:
    from omegaconf import DictConfig, OmegaConf, open_dict

    parent, _, leaf = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    if not isinstance(section, DictConfig) or leaf not in section:
        known = [str(name) for name in section] if isinstance(section, DictConfig) else []
        raise ConfigError(
            f"'~{key}': '{key}' is not a setting of this experiment, so it cannot be removed."
            f"{did_you_mean(leaf, known)}"
        )
    with open_dict(section):
        del section[leaf]


def _compare_with_experiment(
    values: dict[str, Any], pure: dict[str, Any], chosen: Mapping[str, str | None], changes: list[Override]
) -> None:
    """Refuse another algorithm than the experiment's; drop its score if anything else differs.

    Settings keep their names and change their meaning between algorithms: ``n_steps`` is the length
    of PPO's rollouts and the depth of SAC's returns.
    """
    algorithm, its = values.get("algorithm", {}).get("name"), pure["algorithm"]["name"]
    if algorithm not in (None, its) and base_of(algorithm) != its:
        raise ConfigError(
            f"algorithm={spelt(algorithm)}: experiment={chosen['experiment']} holds settings of "
            f"{its}, which would mean something else. Start without the experiment: "
            f"algorithm={spelt(algorithm)} env={chosen['env']}."
        )
    kept = any(o.key_or_group.startswith("experiment.published") for o in changes)
    if not kept and _trained(values) != _trained(pure):
        values["experiment"]["published"] = None


def _trained(values: Mapping[str, Any]) -> tuple[Any, ...]:
    budget = values["experiment"].get("total_timesteps")
    return values.get("algorithm"), values.get("env"), values.get("callbacks"), budget


def _omegaconf_line(error: OmegaConfBaseException, config: DictConfig) -> str:
    from omegaconf import OmegaConf

    where = str(error.full_key or "")
    reason = _RAISED_WHILE.sub("", _OMEGACONF_TAIL.sub("", str(error)))
    value: Any = OmegaConf.to_container(config, resolve=False)
    for part in re.findall(r"[^.\[\]]+", where):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
    return f"{shown(where, value)}: {' '.join(reason.split())}." if where else " ".join(reason.split())
