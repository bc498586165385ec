"""SB3's private names are used nowhere; these are the habits of SB3 2.9.2 that make that possible."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.base_class import BaseAlgorithm

from rl_research.config import Config, choices
from rl_research.training import envs, models

TinyConfig = Callable[..., Config]
_PACKAGE = Path(models.__file__).parents[1]
_CONTINUOUS = ("sac", "td3", "ddpg", "tqc", "crossq")


@pytest.fixture(params=choices("algorithm"))
def model(request: pytest.FixtureRequest, tiny_config: TinyConfig) -> Iterator[BaseAlgorithm]:
    """An algorithm that has learnt a little."""
    env = "pendulum" if request.param in _CONTINUOUS else "cartpole"
    own = {"maskable_ppo": "env.id=space_envs:Masked-v0", "ars": "algorithm.policy=MlpPolicy"}
    words = [own[request.param]] if request.param in own else []
    config = tiny_config("env.normalize=true", *words, algorithm=request.param, env=env)
    built = models.build(config, envs.training_env(config))
    built.learn(32)
    yield built
    assert built.env is not None
    built.env.close()


def test_the_zip_holds_the_last_observations(model: BaseAlgorithm) -> None:
    """A resume relies on `load` giving them back unless a reset is forced: else keep them in state.pkl."""
    file = io.BytesIO()
    model.save(file)
    names = ("_last_obs", "_last_original_obs", "_last_episode_starts")
    for force_reset in (False, True):
        file.seek(0)
        loaded = type(model).load(file, env=model.env, force_reset=force_reset)
        kept = [name for name in names if np.array_equal(getattr(loaded, name), getattr(model, name))]
        assert kept == list(names if not force_reset else names[1:]), "SB3's zip or its `load` has changed"
    assert loaded._last_obs is None, "SB3 resets the environments where there is no last observation"


def test_what_is_learnt_beside_the_policy_is_an_attribute(model: BaseAlgorithm) -> None:
    """Hash and evaluation find such tensors among the attributes; SB3 lists them only in private."""
    _, names = model._get_torch_save_params()
    beside = {name for name in models.learned_tensors(model) if not name.startswith("policy.")}
    assert beside == set(names), "an algorithm learns what parameters_sha256 leaves out, or the reverse"


def test_no_private_name_of_an_algorithm_is_used() -> None:
    """No module reads or writes ``model._name``, nor that of an environment or a policy."""
    foreign = {"model", "fresh", "env", "venv", "policy", "normalizer", "buffer"}
    found = [
        f"{path.relative_to(_PACKAGE)}:{node.lineno}: {node.attr}"
        for path in _PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if (isinstance(node.value, ast.Name) and node.value.id in foreign)
        or (isinstance(node.value, ast.Attribute) and node.value.attr in foreign)
    ]
    assert not found, "\n".join(found)
