"""A film shows one whole episode and changes nothing in training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from rl_research.config import Config, Experiment
from rl_research.errors import CannotRender, Interrupted
from rl_research.runs.run import open_run
from rl_research.training import envs, models, stages
from rl_research.training.evaluation import film_episode, frames_per_second

TinyConfig = Callable[..., Config]


@pytest.fixture
def echo(tiny_config: TinyConfig) -> Iterator[tuple[Config, BaseAlgorithm]]:
    """A model that trained a little in `SeedEcho`, with its configuration."""
    config = tiny_config("env.id=SeedEcho-v0", "env.normalize=true")
    model = models.build(config, envs.training_env(config)).learn(32)
    yield config, model
    assert model.env is not None
    model.env.close()


@pytest.mark.parametrize("seed", [900, 901, 902])
def test_a_film_is_one_episode_from_its_first_frame(echo: tuple[Config, BaseAlgorithm], seed: int) -> None:
    """The frames begin with the reset and end with the episode; none belongs to the next one."""
    config, model = echo
    env = envs.film_env(config, seed)
    frames = film_episode(model, env, max_steps=100)
    assert (frames.dtype, frames.shape[1:]) == (np.uint8, (8, 8, 3))
    assert [frame[0, 0, 0] for frame in frames] == [10 * step for step in range(1 + seed % 3)]
    env.close()


@pytest.mark.parametrize("max_steps", [0, 1, 5])
def test_a_long_episode_is_cut(tiny_config: TinyConfig, max_steps: int) -> None:
    """No more than `max_steps` steps are filmed after the first frame."""
    config = tiny_config("algorithm=sac", "env=pendulum")
    model = models.build(config, envs.training_env(config))
    env = envs.film_env(config, 900)
    assert len(film_episode(model, env, max_steps=max_steps)) == max_steps + 1
    env.close()


@pytest.mark.parametrize(
    "case",
    [
        ("algorithm=ppo", "env=cartpole"),
        ("algorithm=dqn", "env=cartpole", "algorithm.params.exploration_final_eps=1.0"),
        ("algorithm=sac", "env=pendulum"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("deterministic", [True, False])
def test_filming_leaves_every_generator_alone(
    tiny_config: TinyConfig, case: tuple[str, ...], deterministic: bool
) -> None:
    """Every generator, the action space's too, is as before, also for a stochastic film."""
    config = tiny_config(*case, "env.normalize=true")
    model = models.build(config, envs.training_env(config)).learn(64)
    env = envs.film_env(config, 900)

    def states() -> list[object]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[union-attr]
            torch.get_rng_state().tolist(),
            model.action_space.np_random.bit_generator.state,
            model.get_vec_normalize_env().obs_rms.mean.tolist(),  # type: ignore[union-attr]
        ]

    before = states()
    film_episode(model, env, max_steps=20, deterministic=deterministic)
    assert states() == before
    env.close()


def test_a_film_can_be_stopped(echo: tuple[Config, BaseAlgorithm]) -> None:
    """`on_step` is asked after every step and may end the film."""
    config, model = echo
    env = envs.film_env(config, 902)

    def stop() -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        film_episode(model, env, max_steps=20, on_step=stop)
    env.close()


def test_an_environment_that_shows_nothing_says_so(echo: tuple[Config, BaseAlgorithm]) -> None:
    """Without ``render_mode="rgb_array"`` the error names the remedy."""
    _, model = echo
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    with pytest.raises(CannotRender, match="rgb_array"):
        film_episode(model, env, max_steps=20)


def test_the_speed_is_the_environment_s(tiny_config: TinyConfig) -> None:
    """Frames per second come from the environment's metadata."""
    for override, fps in (("env.id=SeedEcho-v0", 5), ("env=cartpole", 50)):
        env = envs.film_env(tiny_config(override), 900)
        assert frames_per_second(env) == fps
        env.close()


class Unpaintable(gym.Wrapper):  # type: ignore[type-arg]
    """CartPole that cannot be drawn, as MuJoCo's cannot where there is no OpenGL."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(gym.make("CartPole-v1", render_mode=render_mode).unwrapped)

    def render(self) -> None:
        """Fail as a library does."""
        raise OSError("no OpenGL here")


gym.register("Unpaintable-v0", entry_point=Unpaintable, max_episode_steps=40)


def test_a_run_that_cannot_be_filmed_is_a_run_all_the_same(
    tiny_config: TinyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Where drawing fails, the log says so with a remedy, and the run goes on."""
    config = tiny_config("env.id=Unpaintable-v0", "video.enabled=true", "video.every=32")
    with open_run(Experiment(config)) as run:
        checkpoint = stages.train_run(run)
        assert not stages.film_checkpoint(run, checkpoint)
    assert checkpoint.global_step == 64
    said = [record.message for record in caplog.records if "no OpenGL here" in record.message]
    assert len(said) == 2  # at step 32, and the final film
    assert all("MUJOCO_GL" in line and "video.enabled=false" in line for line in said)
