"""An experiment's environments: seeded by rule, normalised as the algorithm needs, refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from rl_research.checkpoints import Scores
from rl_research.config import Config
from rl_research.errors import ConfigError
from rl_research.training import envs, snapshot
from rl_research.training.evaluation import evaluate
from rl_research.training.models import build

TinyConfig = Callable[..., Config]
ECHO = "env.id=SeedEcho-v0"


class _Idle:
    """A policy that always does the first thing; what `evaluate` needs of a model."""

    def predict(self, observation: np.ndarray, **_: object) -> tuple[np.ndarray, None]:
        """Nothing, for every copy."""
        return np.zeros(len(observation), dtype=int), None


def _play(env: VecEnv, episodes: int, first_seed: int) -> Scores:
    try:
        return evaluate(_Idle(), env, episodes=episodes, first_seed=first_seed)  # type: ignore[arg-type]
    finally:
        env.close()


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize("episodes", [1, 4, 10, 13])
@pytest.mark.parametrize("copies", [1, 2, 3, 4, 8])
def test_episode_k_has_seed_k_however_many_copies_play(tiny_config: TinyConfig, copies: int, episodes: int) -> None:
    """N episodes are reset with first_seed, …, first_seed + N - 1, and with no other seed."""
    env = envs.evaluation_env(tiny_config(ECHO), 1_000, copies)
    scores = _play(env, episodes, 1_000)
    assert sorted(scores.returns) == list(range(1_000, 1_000 + episodes))
    assert sorted(scores.lengths) == sorted(1 + seed % 3 for seed in range(1_000, 1_000 + episodes))


def test_the_same_evaluation_env_plays_the_same_episodes_again(tiny_config: TinyConfig) -> None:
    """A second evaluation in the same environment begins with the first seed again."""
    env = envs.evaluation_env(tiny_config(ECHO), 50, 2)
    first = evaluate(_Idle(), env, episodes=4, first_seed=50)  # type: ignore[arg-type]
    assert _play(env, 4, 50) == first
    assert sorted(first.returns) == [50, 51, 52, 53]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_training_copies_have_successive_seeds(tiny_config: TinyConfig, n_envs: int) -> None:
    """Copy i of the training environment starts with seed + i, also after SB3 has seeded everything."""
    config = tiny_config(ECHO, f"env.n_envs={n_envs}", "experiment.seed=3")
    env = envs.training_env(config)
    model = build(config, env)
    model._setup_learn(1)
    assert env.get_attr("seed") == [3 + i for i in range(n_envs)]
    env.close()


def test_two_training_envs_of_one_config_do_the_same(tiny_config: TinyConfig) -> None:
    """The same configuration gives the same observations; another seed gives others."""

    def walk(seed: int) -> np.ndarray:
        env = envs.training_env(tiny_config(f"experiment.seed={seed}", "env.n_envs=2"))
        seen = [env.reset(), *(env.step(np.array([0, 1]))[0] for _ in range(30))]
        env.close()
        return np.array(seen)

    assert np.array_equal(walk(1), walk(1))
    assert not np.array_equal(walk(1), walk(2))


# ---------------------------------------------------------------- normalisation


@pytest.mark.parametrize(
    ("overrides", "gamma"),
    [
        ((), 0.99),
        (("algorithm.params.gamma=0.9",), 0.9),
        (("algorithm.params.gamma=0.9", "env.normalize={norm_reward: false}"), 0.9),
        (("algorithm.params.gamma=0.9", "env.normalize={gamma: 0.5}"), 0.5),
    ],
)
def test_rewards_are_scaled_with_the_algorithm_s_discount(
    tiny_config: TinyConfig, overrides: tuple[str, ...], gamma: float
) -> None:
    """VecNormalize discounts as the algorithm does, unless it is told otherwise."""
    given = overrides if any("normalize" in text for text in overrides) else (*overrides, "env.normalize=true")
    env = envs.training_env(tiny_config(*given))
    assert isinstance(env, VecNormalize)
    assert env.gamma == gamma
    assert env.training
    env.close()


def test_without_normalisation_there_is_no_normaliser(tiny_config: TinyConfig) -> None:
    """``env.normalize=false`` leaves the vectorised environment bare."""
    env = envs.training_env(tiny_config())
    assert not isinstance(env, VecNormalize)
    env.close()


@pytest.mark.parametrize("make", ["evaluation", "film"])
def test_an_evaluation_learns_nothing_and_shows_true_rewards(tiny_config: TinyConfig, make: str) -> None:
    """Outside training the statistics stay as they are, and rewards are the environment's own."""
    config = tiny_config(ECHO, "env.normalize={norm_reward: true, clip_obs: 5.0}")
    env = envs.evaluation_env(config, 900, 1) if make == "evaluation" else envs.film_env(config, 900)
    assert isinstance(env, VecNormalize)
    assert env.clip_obs == 5.0
    env.reset()
    rewards = [env.step(np.array([0]))[1][0] for _ in range(1 + 900 % 3)]
    assert sum(rewards) == 900.0
    assert env.obs_rms.count == VecNormalize(DummyVecEnv([lambda: gym.make("SeedEcho-v0")])).obs_rms.count
    env.close()


def test_a_wrong_normaliser_is_one_line(tiny_config: TinyConfig) -> None:
    """An argument that VecNormalize does not take is refused when the configuration is read."""
    with pytest.raises(ConfigError, match="clip_ob") as caught:
        tiny_config("env.normalize={clip_ob: 5.0}")
    assert "clip_obs" in str(caught.value)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("env.id=CartPole-v3",), "Did you mean 'CartPole-v1'?"),
        (("env.id=CartPol-v1",), "Did you mean 'CartPole-v1'?"),
        (("env.id=Cartpole-v1",), "Did you mean 'CartPole-v1'?"),
        (("env.id=nothing_like_it",), "no such environment"),
        (("env.id='not a name!'",), "env.id=not a name!"),
        (("env.id=no_such_module:CartPole-v1",), "no_such_module"),
        (("env.id=Pendulum-v0",), "Pendulum-v1"),
        (("+env.kwargs.gravity=9",), "gravity"),
        (("env.id=FrozenLake-v1", "+env.kwargs.map_name=9x9"), "9x9"),
        (("env.id=FrozenLake-v1", "+env.kwargs.desc=[SF,F]"), "desc"),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line(
    tiny_config: TinyConfig, overrides: tuple[str, ...], said: str
) -> None:
    """A misspelt id, an unknown argument or a value the environment refuses: `ConfigError`, one line."""
    with pytest.raises(ConfigError) as caught:
        envs.check_env(tiny_config(*overrides)).reset()
    text = str(caught.value)
    assert "env." in text
    assert said in text
    assert "\n" not in text


def test_arguments_reach_the_environment(tiny_config: TinyConfig) -> None:
    """``env.kwargs`` are the constructor's, for training, evaluation and film alike."""
    config = tiny_config(ECHO, "+env.kwargs.shift=7")
    for env in (envs.training_env(config), envs.evaluation_env(config, 900, 2), envs.film_env(config, 900)):
        assert set(env.get_attr("shift")) == {7}
        env.close()


@pytest.mark.parametrize("limit", [1, 5])
def test_episodes_are_truncated_where_told(tiny_config: TinyConfig, limit: int) -> None:
    """``env.max_episode_steps`` ends episodes everywhere, and as a truncation."""
    config = tiny_config(f"env.max_episode_steps={limit}", env="pendulum", algorithm="sac")
    for env in (envs.training_env(config), envs.evaluation_env(config, 900, 1), envs.film_env(config, 900)):
        env.reset()
        steps = [env.step(np.zeros((1, 1), dtype=np.float32)) for _ in range(limit)]
        assert [bool(done[0]) for _, _, done, _ in steps] == [False] * (limit - 1) + [True]
        assert steps[-1][3][0]["TimeLimit.truncated"]
        env.close()


def test_thresholds_are_known(tiny_config: TinyConfig) -> None:
    """Gymnasium's own reward threshold is reported."""
    assert envs.reward_threshold(tiny_config()) == 475.0
    assert envs.reward_threshold(tiny_config(ECHO)) is None


# ---------------------------------------------------------------- captured


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "normalize"), [("dummy", "false"), ("dummy", "true"), ("subproc", "true")])
def test_a_captured_environment_goes_on_to_the_same_bits(tiny_config: TinyConfig, kind: str, normalize: str) -> None:
    """Captured in the middle of an episode, restored elsewhere: the same observations and resets follow."""
    config = tiny_config(f"env.vec_env={kind}", "env.n_envs=2", f"env.normalize={normalize}")
    actions = [np.array([i % 2, i % 3 == 0], dtype=int) for i in range(60)]

    def walk(env: VecEnv) -> list[np.ndarray]:
        return [env.unwrapped.step(action)[0] for action in actions]

    first = envs.training_env(config)
    assert isinstance(first.unwrapped, SubprocVecEnv if kind == "subproc" else DummyVecEnv)
    first.reset()
    for action in actions[:7]:
        first.step(action)
    captured, resume = snapshot._capture_environments(first)
    assert resume == {"resume_mode": "exact"}
    expected = walk(first)
    first.close()

    second = envs.training_env(config)
    second.reset()
    for index, state in enumerate(captured["environments"]):
        second.env_method("restore_state", state, indices=index)
    assert np.array_equal(walk(second), expected)
    second.close()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5", "Hopper-v5"])
def test_a_captured_simulation_goes_on_to_the_same_bits(env_id: str) -> None:
    """Of MuJoCo all is captured, though its environments pickle their arguments only by themselves."""
    first = envs.Restorable(gym.make(env_id))
    first.reset(seed=3)
    first.action_space.seed(4)
    actions = [first.action_space.sample() for _ in range(300)]

    def walk(env: gym.Env[np.ndarray, np.ndarray]) -> list[object]:
        seen: list[object] = []
        for action in actions:
            *step, terminated, truncated, _ = env.step(action)
            seen += [*step, terminated, env.reset()[0] if terminated or truncated else None]
        return seen

    walk(first)
    state, reason = first.capture_state()
    assert reason is None
    assert state is not None
    second = envs.Restorable(gym.make(env_id))
    second.restore_state(state)
    assert data_equivalence(walk(second), walk(first), exact=True)


def test_box2d_says_that_it_cannot_be_captured() -> None:
    """Its pickles would load in the state before the first reset, which is no capture."""
    env = envs.Restorable(gym.make("LunarLander-v3"))
    env.reset(seed=0)
    state, reason = env.capture_state()
    assert state is None
    assert reason is not None
    assert "SwigPyObject" in reason


def test_an_environment_that_cannot_be_captured_says_why(tiny_config: TinyConfig) -> None:
    """What cannot be pickled gives a reason instead of a state."""
    env = envs.training_env(tiny_config(ECHO))
    env.env_method("get_wrapper_attr", "unwrapped")[0].lock = open(__file__)  # noqa: SIM115, PTH123  # held on purpose
    states, resume = snapshot._capture_environments(env)
    assert states == {}
    assert resume["resume_mode"] == "boundary"
    assert resume["resume_reason"].startswith("the environment cannot be pickled: TypeError")
    env.close()
