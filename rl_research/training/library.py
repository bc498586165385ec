"""The pipeline from a script: train, score and act, without a command line and without Prefect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from rl_research.checkpoints import Checkpoint, Scores, find_in_storage
from rl_research.config import Config, Experiment, check_algorithm, compose_experiment, overrides_of, takes_masks
from rl_research.errors import ConfigError
from rl_research.runs import RunRecord
from rl_research.training import evaluation
from rl_research.training.preparation import preflight
from rl_research.training.resume import finished_result
from rl_research.training.stages import run_all_stages

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.callbacks import BaseCallback

Observation = Any  # as the environment gives it: an array, or a dict of arrays


def train(experiment: Iterable[str] | Config = (), callbacks: Sequence[BaseCallback] = ()) -> RunRecord:
    """Train, score and report an experiment in this process, and return the record of its run.

    *experiment* is a list of overrides, or the `Config` that `load_config` returns. *callbacks* are called besides
    those that it names; one with ``state()`` and ``restore(state)`` continues in a resumed run. With a ``run_id`` the
    run goes on where it stopped, and a finished one is not trained again. Raises `ConfigError` for a mistake before
    anything is written, and `Interrupted` when a signal has asked the run to stop, after a commit.
    """
    _check_callbacks(callbacks)
    if isinstance(experiment, Config):
        check_algorithm(experiment)
        described = Experiment(experiment, overrides_of(experiment))
    else:
        described = compose_experiment(experiment)
    described = described.identified(str(uuid4()))
    if (done := finished_result(described.config)) is not None:
        return done
    with preflight(described.config) as prepared:
        return run_all_stages(described, prepared, callbacks).record


def _check_callbacks(callbacks: Sequence[BaseCallback]) -> None:
    from stable_baselines3.common.callbacks import BaseCallback

    for callback in callbacks:
        if not isinstance(callback, BaseCallback):
            raise ConfigError(f"callbacks: {callback!r} should be a BaseCallback of Stable-Baselines3, or ours.")


def evaluate(
    reference: str,
    *,
    episodes: int | None = None,
    overrides: Iterable[str] = (),
    runs_dir: str = "runs",
    trust_plugins: bool = False,
) -> Scores:
    """Return the scores of the checkpoint *reference* on held-out seeds, episode by episode.

    *reference* is a ``run_id`` below *runs_dir*, a folder or a URL, with ``@best`` or ``@step-N`` where it is not the
    latest one that is meant. *overrides* are ``storage.url=URL`` and ``storage.options.KEY=VALUE``. Nothing of the
    checkpoint is unpickled; modules that it names are imported only with *trust_plugins*.
    """
    found = find_in_storage(reference, overrides, runs_dir)
    return evaluation.evaluate_checkpoint(found, episodes=episodes, trust_env=trust_plugins)


class Policy:
    """A trained policy to act with, which sees observations as its environment gives them.

    `config` is the experiment that it was trained in, `checkpoint` where it comes from, `model` SB3's algorithm.
    """

    def __init__(self, checkpoint: Checkpoint, trust_plugins: bool = False):
        self.checkpoint = checkpoint
        self.config = evaluation.config_of(checkpoint, trust_env=trust_plugins)
        with evaluation.loaded_policy(checkpoint, self.config) as self.model:
            pass  # it acts without its environment, which is closed here

    def predict(
        self,
        observation: Observation,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        **more: Any,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return the action for *observation*, or one for each in a batch, and the state of a recurrent policy.

        Arguments and result are those of SB3's `predict`, such as ``action_masks`` in *more*. The observation is
        normalised with the statistics that the run has trained with, if it has.
        """
        return self.model.predict(self.normalized(observation), state, episode_start, deterministic, **more)

    def normalized(self, observation: Observation) -> Observation:
        """Return *observation* as the network was trained to see it."""
        normalizer = self.model.get_vec_normalize_env()
        return observation if normalizer is None else normalizer.normalize_obs(observation)

    def seen(self, steps: int) -> Observation:
        """Return what the policy sees in *steps* steps of its own environment, stacked along the first axis."""
        from rl_research.training import envs

        plain = self.config.model_copy(update={"env": self.config.env.model_copy(update={"normalize": False})})
        with closing(envs.evaluation_env(plain, self.config.evaluation.seed, 1)) as env:
            rows: list[Any] = [env.reset()]
            for _ in range(steps - 1):
                masked = takes_masks(type(self.model))
                more: Any = {"action_masks": np.stack(env.env_method("action_masks"))} if masked else {}
                rows.append(env.step(self.predict(rows[-1], **more)[0])[0])
        if isinstance(rows[0], dict):
            return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        return np.concatenate(rows)


def load_policy(
    reference: str, *, overrides: Iterable[str] = (), runs_dir: str = "runs", trust_plugins: bool = False
) -> Policy:
    """Return the policy of the checkpoint *reference*; the arguments are those of `evaluate`."""
    return Policy(find_in_storage(reference, overrides, runs_dir), trust_plugins)
