"""An algorithm's name and plain values become exactly what SB3 takes, or one line of refusal."""

from __future__ import annotations

import inspect
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common import noise
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rl_research.config import algorithms, register
from rl_research.config.algorithms import check, check_batch, check_normalize, constructor_arguments
from rl_research.config.frozen import freeze
from rl_research.errors import ConfigError

DISCRETE, CONTINUOUS = "CartPole-v1", "Pendulum-v1"
ONLY_CONTINUOUS = {"crossq", "ddpg", "sac", "td3", "tqc"}


def _env_id(name: str) -> str:
    return CONTINUOUS if name in ONLY_CONTINUOUS else "space_envs:Masked-v0" if name == "maskable_ppo" else DISCRETE


def _built(name: str, params: dict[str, Any], n_envs: int = 1) -> Any:
    cls = algorithms.algorithm_class(name)
    params = {"buffer_size": 500, **params} if issubclass(cls, OffPolicyAlgorithm) else params
    policy = next(iter(cls.policy_aliases))
    check(name, policy, freeze(params))
    check_batch(name, freeze(params), n_envs)
    env = make_vec_env(_env_id(name), n_envs=n_envs)
    made = constructor_arguments(freeze(params), env.action_space, n_envs)
    return cls(policy, env, **{"device": "cpu", **made})


# ---------------------------------------------------------------- what is built


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_builds_with_its_defaults(name: str) -> None:
    """Each name is a class whose defaults pass the checks and make a model."""
    assert _built(name, {}).policy is not None


@pytest.mark.parametrize("name", algorithms.names())
def test_the_defaults_of_a_signature_pass_its_own_checks(name: str) -> None:
    """Giving a default explicitly is never refused, so the ranges here contradict no signature."""
    cls = algorithms.algorithm_class(name)
    parameters, policy = inspect.signature(cls.__init__).parameters, next(iter(cls.policy_aliases))
    elsewhere = {"self", *algorithms._ELSEWHERE}
    params = {key: p.default for key, p in parameters.items() if key not in elsewhere}
    mistakes = []
    for key, default in params.items():
        try:
            check(name, policy, {key: default})
            check_batch(name, {key: default}, 1)
        except ConfigError as error:
            mistakes.append(str(error))
    assert mistakes == []


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_trains_with_a_schedule_and_classes(name: str) -> None:
    """A schedule, a network and classes given as words reach the model and survive training."""
    kwargs = {"net_arch": [8], "activation_fn": "ELU", "optimizer_class": "Adam"}
    params: dict[str, Any] = {"learning_rate": "lin_0.001", "policy_kwargs": kwargs}
    if name == "ars":
        kwargs.pop("optimizer_class")
    elif algorithms.is_on_policy(algorithms.algorithm_class(name)):
        params["n_steps"] = 64
        if name != "a2c":
            params["batch_size"] = 64
    else:
        params["learning_starts"] = 10
    model = _built(name, params)
    model.learn(100)
    assert model.policy_kwargs["activation_fn"] is torch.nn.ELU
    assert model.learning_rate(1.0) == 0.001


@pytest.mark.parametrize("progress", [1.0, 0.5, 0.0, -0.1, -5.0])
@pytest.mark.parametrize("key", ["learning_rate", "clip_range"])
def test_a_linear_schedule_is_never_negative(key: str, progress: float) -> None:
    """Training runs past its budget to a whole rollout, where a schedule stays at zero."""
    made = constructor_arguments({key: "lin_0.2"}, gym.make(DISCRETE).action_space, 1)
    assert made[key](progress) == pytest.approx(max(0.0, 0.2 * progress))


@pytest.mark.parametrize("kind", ["normal", "ornstein_uhlenbeck"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_noise_has_the_shape_of_the_actions(kind: str, n_envs: int) -> None:
    """One environment gets one noise, several get one each, of the size that was asked for."""
    space = gym.make(CONTINUOUS).action_space
    params = freeze({"action_noise": {"type": kind, "std": 0.5}})
    made = constructor_arguments(params, space, n_envs)["action_noise"]
    assert isinstance(made, noise.VectorizedActionNoise) == (n_envs > 1)
    single = made.base_noise if n_envs > 1 else made
    assert type(single).__name__ == algorithms._NOISES[kind]
    assert np.array_equal(single._sigma, [0.5])
    assert made().shape == ((n_envs, 1) if n_envs > 1 else (1,))


def test_noise_works_in_training() -> None:
    """SAC with noise on two environments trains."""
    params = {"action_noise": {"type": "normal"}, "learning_starts": 10, "train_freq": [2, "step"]}
    assert _built("sac", params, n_envs=2).learn(60).num_timesteps >= 60


def test_arguments_are_plain_copies() -> None:
    """SB3 changes and pickles what it is given, so it gets ordinary dicts and lists of its own."""
    params = freeze({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}}, "train_freq": [4, "step"]})
    made = constructor_arguments(params, gym.make(DISCRETE).action_space, 1)
    kwargs = made["policy_kwargs"]
    assert type(kwargs) is type(kwargs["net_arch"]) is dict
    assert type(kwargs["net_arch"]["pi"]) is list
    assert made["train_freq"] == (4, "step")


@pytest.mark.parametrize("activation", list(register.activation.ours()))
def test_every_activation_exists(activation: str) -> None:
    """Each word that is offered is a class of torch."""
    made = constructor_arguments({"policy_kwargs": {"activation_fn": activation}}, gym.make(DISCRETE).action_space, 1)
    assert made["policy_kwargs"]["activation_fn"] is getattr(torch.nn, activation)


@pytest.mark.parametrize("optimizer", list(register.optimizer.ours()))
def test_every_optimizer_exists(optimizer: str) -> None:
    """Each word that is offered is a class of torch."""
    made = constructor_arguments({"policy_kwargs": {"optimizer_class": optimizer}}, gym.make(DISCRETE).action_space, 1)
    assert made["policy_kwargs"]["optimizer_class"] is getattr(torch.optim, optimizer)


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ppo", {"learning_rate": "lin_3e-4", "clip_range": 0.2, "clip_range_vf": None}),
        ("ppo", {"target_kl": None, "vf_coef": 1, "device": "cpu", "sde_sample_freq": -1}),
        ("ppo", {"policy_kwargs": {"net_arch": [], "log_std_init": -2, "ortho_init": False}}),
        ("ppo", {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [8, 8]}}}),
        ("ppo", {"policy_kwargs": None, "rollout_buffer_class": None}),
        ("sac", {"ent_coef": "auto_0.1", "target_entropy": "auto", "gradient_steps": -1}),
        ("sac", {"ent_coef": 0.1, "target_entropy": -1.0, "train_freq": [1, "episode"]}),
        ("sac", {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [8]}}}),
        ("dqn", {"buffer_size": 1_000, "learning_starts": 50_000, "train_freq": [4, "step"]}),
        ("td3", {"action_noise": None, "train_freq": 1}),
        ("a2c", {"n_steps": 1}),
    ],
)
def test_what_sb3_takes_is_taken(name: str, params: dict[str, Any]) -> None:
    """Every spelling that the constructor understands passes, and builds."""
    assert _built(name, params).policy is not None


# ---------------------------------------------------------------- what is refused

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ppo", {"learning_rate": "lin_-1"}, r"learning_rate=lin_-1: should be greater than 0"),
    ("ppo", {"learning_rate": "lin_nan"}, r"learning_rate=lin_nan: .*lin_0\.001"),
    ("ppo", {"learning_rate": "lin_inf"}, r"learning_rate=lin_inf: .*lin_0\.001"),
    ("ppo", {"learning_rate": "lin_x"}, r"should be a number, or lin_0\.001"),
    ("ppo", {"learning_rate": float("inf")}, r"learning_rate=inf: should be a finite number"),
    ("ppo", {"learning_rate": float("nan")}, r"learning_rate=nan: should be a finite number"),
    ("ppo", {"gamma": "lin_0.9"}, r"gamma=lin_0\.9: should be a number\.$"),
    ("ppo", {"gamma": None}, r"gamma=null: should be a number"),
    ("ppo", {"use_sde": 1}, r"use_sde=1: should be true or false"),
    ("ppo", {"ent_coef": "auto"}, r"ent_coef=auto: should be a number\.$"),
    ("ppo", {"device": "gpux"}, r"device=gpux: .*auto, cpu, cuda, cuda:N, mps"),
    ("ppo", {"device": "cpu:1"}, r"device=cpu:1: .*Did you mean 'cpu'"),
    ("ppo", {"device": 0}, r"device=0: there is no such device"),
    ("ppo", {"device": "cuda:999"}, r"device=cuda:999: torch finds no such device.*Choose auto"),
    ("ppo", {"sde_sample_freq": -2}, r"sde_sample_freq=-2: should not be less than -1"),
    ("ppo", {"rollout_buffer_kwargs": {"a": float("nan")}}, r"hold finite numbers only"),
    ("sac", {"train_freq": 0}, r"train_freq=0: .*\[1,episode\]"),
    ("sac", {"train_freq": [1, "epoch"]}, r"train_freq=\[1,epoch\]: .*\[1,episode\]"),
    ("sac", {"train_freq": [1]}, r"train_freq=\[1\]: .*\[1,episode\]"),
    ("sac", {"train_freq": True}, r"train_freq=true: .*\[1,episode\]"),
    ("sac", {"gradient_steps": -2}, r"gradient_steps=-2: should not be less than -1"),
    ("sac", {"ent_coef": "auto_0"}, r"ent_coef=auto_0: .*auto_0\.1"),
    ("sac", {"target_entropy": "low"}, r"target_entropy=low: should be a number or 'auto'"),
    ("sac", {"action_noise": {"type": "normal", "std": -1}}, r"std=-1: .*not negative"),
    ("sac", {"action_noise": {"std": 1}}, r"action_noise=\{std: 1\}: .*type and std"),
]
REFUSED_KWARGS: list[tuple[str, dict[str, Any], str]] = [
    ("ppo", {"net_arch": 5}, r"net_arch=5: should be a list of whole numbers or a mapping"),
    ("ppo", {"net_arch": ["a"]}, r"net_arch=\[a\]: should be a list of whole numbers"),
    ("ppo", {"net_arch": [0]}, r"net_arch=\[0\]: each layer needs at least 1 unit"),
    ("ppo", {"net_arch": {"p": [8]}}, r"net_arch=\{p: \[8\]\}: .*\{pi: \[64,64\], vf: "),
    ("sac", {"net_arch": {"pi": [8], "vf": [8]}}, r"\{pi: \[64,64\], qf: "),
    ("dqn", {"net_arch": {"pi": [8], "qf": [8]}}, r"should be a list of whole numbers or null"),
    ("ppo", {"log_std_init": "abc"}, r"log_std_init=abc: should be a number"),
    ("ppo", {"squash_output": 1}, r"squash_output=1: should be true or false"),
    ("ppo", {"features_extractor_class": "x"}, "there is no such features extractor"),
    ("ppo", {"activation_fn": "Relu"}, r"activation_fn=Relu: .*Did you mean 'ReLU'"),
    ("ppo", {"optimizer_class": "adam"}, r"optimizer_class=adam: .*Did you mean 'Adam'"),
    ("ppo", {"use_sde": True}, r"use_sde=true: .*set algorithm\.params\.use_sde"),
    ("ppo", {"lr_schedule": 1}, r"lr_schedule=1: ActorCriticPolicy has no argument"),
    ("qrdqn", {"n_quantiles": 0}, r"n_quantiles=0: should be greater than 0"),
]


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [*REFUSED, *((name, {"policy_kwargs": kwargs}, says) for name, kwargs, says in REFUSED_KWARGS)],
)
def test_what_sb3_would_not_take_is_refused(name: str, params: dict[str, Any], says: str) -> None:
    """A wrong value is one line with the setting, the value and what it should be."""
    with pytest.raises(ConfigError, match=says) as caught:
        check(name, "MlpPolicy", freeze(params))
    assert str(caught.value).startswith("algorithm.params.")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "params", "n_envs", "says"),
    [
        ("ppo", {"n_steps": 1}, 1, r"n_steps=1: .* 1 × 1 = 1 transition has .*larger n_steps"),
        ("trpo", {"n_steps": 1}, 1, r"n_steps=1: .* = 1 transition has "),
        ("a2c", {"n_steps": 1, "normalize_advantage": True}, 1, r"n_steps=1: "),
        ("ppo", {"batch_size": 1}, 1, r"batch_size=1: .*greater"),
        ("ppo", {"batch_size": 100}, 2, r"batch_size=100: .* 4096 transitions.* 64 or 128"),
        ("ppo", {"n_steps": 1_000_000_007}, 1, r"such as 1000000007\.$"),
        ("sac", {"batch_size": 512, "buffer_size": 500}, 1, r"batch_size=512: .*buffer_size = 500"),
        ("sac", {"train_freq": [1, "episode"]}, 2, r"train_freq=\[1,episode\]: .*env\.n_envs=1"),
    ],
)
def test_what_does_not_fit_together_is_refused(name: str, params: dict[str, Any], n_envs: int, says: str) -> None:
    """Sizes that are fine alone and wrong together are refused before anything is trained."""
    with pytest.raises(ConfigError, match=says) as caught:
        check_batch(name, freeze(params), n_envs)
    assert len(str(caught.value).splitlines()) == 1


def test_every_argument_of_vecnormalize_is_known() -> None:
    """Its own defaults pass, and a misspelt one is recognised."""
    check_normalize({"norm_reward": False, "clip_obs": 5, "gamma": 0.9, "norm_obs_keys": ["a"]})
    with pytest.raises(ConfigError, match=r"clip_ops=5: .*Did you mean 'clip_obs'"):
        check_normalize({"clip_ops": 5})
    with pytest.raises(ConfigError, match=r"has no argument 'venv'"):
        check_normalize({"venv": 1})


def test_names_are_words_not_paths() -> None:
    """A name that is not in the table is refused with the nearest one that is."""
    assert algorithms.names() == sorted(algorithms.names())
    with pytest.raises(ConfigError, match=re.escape("Did you mean 'ppo'?")):
        algorithms.algorithm_class("PPO")
    with pytest.raises(ConfigError, match=r"Choose from: a2c"):
        algorithms.algorithm_class("os.system")
