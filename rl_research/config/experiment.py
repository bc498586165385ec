"""An experiment, described once.

Everywhere in this project an experiment travels as a list of Hydra overrides, such as
``["algorithm=sac", "env=pendulum", "experiment.seed=3"]``: from the command line, in a scheduled
deployment, in one member of a study. `compose_experiment` is the door from that list to the `Experiment`
that the rest of the code hands on, and `load_config` to its frozen `Config` alone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

from rl_research.config import algorithms, composition, parts, plugins
from rl_research.config.messages import fields_of, members
from rl_research.config.overrides import as_lines, quoted
from rl_research.config.registry import register
from rl_research.config.schema import Config, StorageSettings, settings, validated
from rl_research.errors import ConfigError


@dataclass(frozen=True)
class Experiment:
    """An experiment as it is handed on: the overrides that describe it, and what they come to.

    `compose_experiment` makes it, once. It is not stored itself: its overrides and its configuration are,
    in the run folder, in manifests and in a flow run's parameters.
    """

    config: Config
    overrides: tuple[str, ...] = ()

    def with_run_id(self, run_id: str) -> "Experiment":
        """Return the same experiment as the run *run_id*."""
        return replace(self, config=self.config.with_run_id(run_id))

    def identified(self, flow_run_id: str) -> "Experiment":
        """Return the same experiment with a ``run_id``: its own, else one from *flow_run_id*.

        So a flow run that is tried or scheduled again goes on with the run of its first try.
        """
        if self.config.run_id is not None:
            return self
        tail = flow_run_id.replace("-", "")[-10:]  # a UUIDv7 begins with the time
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", self.config.name).strip("-_")[:40] or "run"
        return self.with_run_id(f"{stem}-s{self.config.experiment.seed}-{tail}")


def compose_experiment(overrides: Iterable[str] = ()) -> Experiment:
    """Compose the experiment that *overrides* describe; `ConfigError` with one line per mistake."""
    lines = as_lines(overrides)
    return Experiment(load_config(lines), lines)


def overrides_of(config: Config) -> tuple[str, ...]:
    """Return the overrides that describe *config*: each setting that is another than its default."""
    now, usual = (one.model_dump(mode="json") for one in (config, compose_config()))
    values = {
        path: [reduce(lambda at, key: at[key], path.split("."), one) for one in (now, usual)] for path in settings()
    }
    return tuple(f"{path}={quoted(its)}" for path, (its, default) in values.items() if its != default)


def load_config(overrides: Iterable[str] = ()) -> Config:
    """Compose ``configs/config.yaml`` with *overrides* and check every key and value.

    An experiment brings the settings of its algorithm, so another algorithm on top is refused.
    Its ``experiment.published`` is kept only while ``algorithm``, ``env`` and
    ``experiment.total_timesteps`` are the experiment's own; another seed, name or evaluation
    leaves the score comparable.

    Raises `ConfigError` with one line per mistake.
    """
    config = compose_config(overrides)
    check_algorithm(config)
    return config


def compose_config(overrides: Iterable[str] = ()) -> Config:
    """Do the same without asking the algorithm, so that Stable-Baselines3 is not imported."""
    fields = fields_of(Config).items()
    texts = {path for path, field in fields if str in members(field.annotation)}
    lines = as_lines(overrides)
    plugins.load_plugins(plugins.in_overrides(lines))  # the algorithm that is chosen may be one of theirs
    config = validated(Config, composition.compose(lines, verbatim=texts))
    plugins.load_plugins(config.plugins)
    named = tuple(dict.fromkeys((*plugins.of_variable(), *config.plugins)))
    return config.model_copy(update={"plugins": named})


def check_algorithm(config: Config) -> None:
    """Raise `ConfigError` for what only the signatures of the algorithm, of VecNormalize and of named parts refuse."""
    name, params, n_envs = config.algorithm.name, config.algorithm.params, config.env.n_envs
    algorithms.check(name, config.algorithm.policy, params)
    algorithms.check_batch(name, params, n_envs)
    if isinstance(config.env.normalize, dict):
        algorithms.check_normalize(config.env.normalize)
    for where, kind, named, given in (
        ("env.wrappers", register.wrapper, config.env.wrappers, 1),
        ("env.vec_wrappers", register.vec_wrapper, config.env.vec_wrappers, 1),
        ("callbacks", register.callback, config.callbacks, 0),
        ("sinks", register.sink, config.sinks, 0),
    ):
        for part in named:
            parts.check(where, kind, part, given)


def load_storage(overrides: Iterable[str]) -> StorageSettings:
    """Return the storage that *overrides* describe, where nothing else is taken; `ConfigError`."""
    lines = as_lines(overrides)
    for line in lines:
        if not line.lstrip("+").startswith(("storage.options.", "storage.url=")):
            raise ConfigError(
                f"'{line}': a checkpoint brings its own configuration; only storage.url=URL and "
                "storage.options.KEY=VALUE are taken here."
            )
    return compose_config(lines).storage
