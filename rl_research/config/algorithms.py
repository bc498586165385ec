"""An algorithm's name and plain values, checked, and turned into what SB3's constructor takes.

A constructor's own signature says what it takes; what it leaves open stands here. Names are looked up in
tables, so a configuration can never name code to run.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from rl_research.config import parts, signatures
from rl_research.config.frozen import thaw
from rl_research.config.messages import NO_HER, check_choice, did_you_mean, members, mistake
from rl_research.config.registry import register
from rl_research.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium import spaces
    from stable_baselines3.common.base_class import BaseAlgorithm

#: Each algorithm's package and class.
_ALGORITHMS = {
    **{name: ("stable_baselines3", name.upper()) for name in ("a2c", "ddpg", "dqn", "ppo", "sac", "td3")},
    **{name: ("sb3_contrib", name.upper()) for name in ("ars", "qrdqn", "tqc", "trpo")},
    "crossq": ("sb3_contrib", "CrossQ"),
    "maskable_ppo": ("sb3_contrib", "MaskablePPO"),
    "recurrent_ppo": ("sb3_contrib", "RecurrentPPO"),
}

_ELSEWHERE = {
    "env": "choose it with env=NAME or env.id=ID",
    "policy": "set algorithm.policy",
    "seed": "set experiment.seed",
    "tensorboard_log": "metrics go to progress.csv and W&B",
    "verbose": "progress is shown by the command itself",
    "_init_setup_model": "it is internal to Stable-Baselines3",
}
_POLICY_ELSEWHERE = {"use_sde": "set algorithm.params.use_sde"}
_POLICY_GIVEN = ("observation_space", "action_space", "lr_schedule")
_AUTO = re.compile(r"auto(_(?=.*[1-9])\d*\.?\d+)?")
_DEVICE = re.compile(r"(auto|cpu|mps|cuda)(?::(\d+))?")
_Std = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Freq = _Count | tuple[_Count, Literal["step", "episode"]]
_NOISES = {"normal": "NormalActionNoise", "ornstein_uhlenbeck": "OrnsteinUhlenbeckActionNoise"}
_HER_ARGUMENTS = {"goal_selection_strategy": ("episode", "final", "future"), "n_sampled_goal": None}
_CLASSES = {
    "activation_fn": register.activation,
    "features_extractor_class": register.features_extractor,
    "optimizer_class": register.optimizer,
}
#: What `models.build` and SB3's `load` give every algorithm.
_GIVEN = ("policy", "env", "seed", "verbose", "device", "_init_setup_model")


def names() -> list[str]:
    """Return every algorithm that can be named."""
    return sorted(_ALGORITHMS)


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """Return the class called *name*; `ConfigError` if there is none or its package is not installed."""
    if name.lower() == "her":
        raise mistake("algorithm.name", name, NO_HER)
    if (own := register.algorithm.registered.get(name)) is not None:
        return own  # type: ignore[return-value]  # its base was asked for when it was registered
    check_choice("algorithm.name", name, [*names(), *register.algorithm.registered], "algorithm")
    package, class_name = _ALGORITHMS[name]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if package == "stable_baselines3" or (error.name or "").split(".")[0] != package:
            raise
        raise ConfigError(
            f"algorithm={name}: it is in sb3-contrib, which is not installed. "
            "Install it with: pip install 'rl-research[contrib]'."
        ) from None
    found: type[BaseAlgorithm] = getattr(module, class_name)
    return found


def is_on_policy(cls: type[BaseAlgorithm]) -> bool:
    """Return whether *cls* learns from rollouts, and not from a replay buffer or, as ARS, from returns."""
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

    return issubclass(cls, OnPolicyAlgorithm)


def takes_masks(cls: type[BaseAlgorithm]) -> bool:
    """Return whether *cls* heeds the environment's ``action_masks()``."""
    return "action_masks" in signatures.parameters(cls.predict)


def base_of(name: str) -> str:
    """Return which of our algorithms a plugin's, called *name*, derives from; *name* itself if none, or ours."""
    if name not in register.algorithm.registered:
        return name
    ours = {place: ours for ours, place in _ALGORITHMS.items()}
    places = ((k.__module__.partition(".")[0], k.__name__) for k in algorithm_class(name).__mro__)
    return next((ours[place] for place in places if place in ours), name)


def policies(name: str) -> dict[str, Any]:
    """Return the classes of policies that the algorithm *name* can be given, by their names."""
    return {**algorithm_class(name).policy_aliases, **register.policy.registered}


# ---------------------------------------------------------------- checks


def check(name: str, policy: str, params: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the first thing the constructor of *name* would not take."""
    cls = algorithm_class(name)
    check_choice("algorithm.policy", policy, policies(name), f"policy of {cls.__name__}")
    accepted = signatures.accepted(cls)
    if missing := sorted(set(_GIVEN) - set(accepted)):
        reason = (
            f"{cls.__name__} takes no argument {', '.join(missing)}. Let it take **kwargs and pass them to its base."
        )
        raise mistake("algorithm.name", name, reason)
    for key, value in params.items():
        where = f"algorithm.params.{key}"
        if key in _ELSEWHERE:
            raise mistake(where, value, f"not set here; {_ELSEWHERE[key]}.")
        known = set(accepted) - set(_ELSEWHERE)
        signatures.check_name(where, key, value, known, cls.__name__)
        _check_param(where, key, value, accepted[key])
    _check_her(params)
    heads = ("pi", "vf") if is_on_policy(cls) else ("pi", "qf")
    _check_policy_kwargs(policies(name)[policy], params.get("policy_kwargs") or {}, heads)


def check_batch(name: str, params: Mapping[str, Any], n_envs: int) -> None:
    """Raise `ConfigError` if what is collected and what is learned from do not fit together."""
    cls = algorithm_class(name)
    defaults = signatures.parameters(cls)
    keys = ("batch_size", "buffer_size", "n_steps", "normalize_advantage", "train_freq")
    given = {key: params.get(key, defaults[key].default) for key in keys if key in defaults}
    if is_on_policy(cls):
        _check_rollout(given, n_envs)
    elif "buffer_size" in given:
        _check_replay(given, n_envs)
    elif n_envs > 1:
        reason = f"{cls.__name__} plays one episode at a time, and would count its steps {n_envs} times. "
        raise mistake("env.n_envs", n_envs, f"{reason}Set env.n_envs=1.")


def _check_rollout(given: Mapping[str, Any], n_envs: int) -> None:
    """Raise unless minibatches divide the rollout: SB3 only warns, and then weighs the last one's more."""
    n_steps, normalizes = given["n_steps"], given["normalize_advantage"]
    rollout = n_steps * n_envs
    count = f"n_steps × n_envs = {n_steps} × {n_envs} = {rollout} transition{'s' if rollout > 1 else ''}"
    if normalizes and rollout == 1:
        reason = f"a rollout of {count} has no spread to normalize by. Choose a larger n_steps."
        raise mistake("algorithm.params.n_steps", n_steps, reason)
    batch_size = given.get("batch_size") or rollout
    if rollout % batch_size:
        divisor = f"Choose a divisor, such as {_divisors_near(rollout, batch_size)}."
        reason = f"it does not divide a rollout of {count}. {divisor}"
        raise mistake("algorithm.params.batch_size", batch_size, reason)
    if normalizes and batch_size == 1:
        divisor = f"Choose a divisor of {rollout} that is greater, such as {rollout}."
        reason = f"one transition has no spread to normalize by. {divisor}"
        raise mistake("algorithm.params.batch_size", 1, reason)


def _check_replay(given: Mapping[str, Any], n_envs: int) -> None:
    batch_size, buffer_size, freq = given["batch_size"], given["buffer_size"], given["train_freq"]
    if batch_size > buffer_size:
        reason = f"the replay buffer holds only buffer_size = {buffer_size} transitions. "
        raise mistake("algorithm.params.batch_size", batch_size, reason + "Choose a larger buffer_size.")
    if n_envs > 1 and isinstance(freq, list | tuple) and freq[1] == "episode":
        reason = f"{n_envs} environments do not end their episodes together. "
        remedy = "Count steps, as in [1,step], or set env.n_envs=1."
        raise mistake("algorithm.params.train_freq", freq, reason + remedy)


def _divisors_near(rollout: int, batch_size: int) -> str:
    small = [d for d in range(1, math.isqrt(rollout) + 1) if rollout % d == 0]
    divisors = {d for d in [*small, *(rollout // d for d in small)] if d > 1} or {rollout}
    return " or ".join(map(str, sorted(sorted(divisors, key=lambda d: abs(d - batch_size))[:2])))


def check_normalize(arguments: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the first of *arguments* that VecNormalize would not take."""
    from stable_baselines3.common.vec_env import VecNormalize

    accepted = signatures.accepted(VecNormalize, without=["venv"])
    for key, value in arguments.items():
        where = f"env.normalize.{key}"
        signatures.check_name(where, key, value, accepted, "VecNormalize")
        signatures.check_value(where, key, value, accepted[key])


def _check_param(where: str, key: str, value: Any, annotation: Any) -> None:
    special = {
        "action_noise": _check_noise, "device": _check_device, "replay_buffer_class": _check_buffer,
        "train_freq": _check_freq,
    }  # fmt: skip
    if key in special:
        return special[key](where, value)
    if _takes_schedule(annotation) and (start := _linear_start(value)) is not None:
        if not math.isfinite(start):
            raise mistake(where, value, "should be lin_ and a number, such as lin_0.001.")
        return signatures.check_range(where, key, start, value)
    if key == "ent_coef" and isinstance(value, str) and str in members(annotation):
        if not _AUTO.fullmatch(value):
            raise mistake(where, value, "should be a number, 'auto' or 'auto_0.1'.")
    elif key == "target_entropy" and isinstance(value, str) and value != "auto":
        raise mistake(where, value, "should be a number or 'auto'.")
    if _takes_schedule(annotation) and _is_own_schedule(value):
        return parts.check(where, register.schedule, value)
    hint = ", or lin_0.001 for a linear schedule" if _takes_schedule(annotation) else ""
    return signatures.check_value(where, key, value, annotation, hint)


def _takes_schedule(annotation: Any) -> bool:
    return any("Callable" in repr(member) for member in members(annotation))


def _is_own_schedule(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and bool(register.schedule.registered))


def _linear_start(value: Any) -> float | None:
    if not (isinstance(value, str) and value.startswith("lin_")):
        return None
    try:
        return float(value.removeprefix("lin_"))
    except ValueError:
        return None


def _check_noise(where: str, value: Any) -> None:
    if value is None:
        return
    example = "write algorithm.params.action_noise={type: normal, std: 0.1}"
    if not isinstance(value, dict) or set(value) - {"type", "std"} or "type" not in value:
        raise mistake(where, value, f"should be a mapping of type and std; {example}.")
    check_choice(f"{where}.type", value["type"], list(_NOISES), "noise")
    if not signatures.fits(std := value.get("std", 0.1), _Std):
        raise mistake(f"{where}.std", std, f"should be a number that is not negative; {example}.")


def _check_device(where: str, value: Any) -> None:
    found = _DEVICE.fullmatch(value) if isinstance(value, str) else None
    if not found or (found[2] and found[1] != "cuda"):
        hint = did_you_mean(str(value), ["auto", "cpu", "cuda", "mps"])
        offer = "Choose from: auto, cpu, cuda, cuda:N, mps."
        raise mistake(where, value, f"there is no such device.{hint} {offer}")
    if value in ("auto", "cpu"):
        return
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = torch.backends.mps.is_available() if value == "mps" else int(found[2] or 0) < n
    if not here:
        remedy = "Choose auto, which takes what there is."
        raise mistake(where, value, f"torch finds no such device here. {remedy}")


def _check_freq(where: str, value: Any) -> None:
    if not signatures.fits(value, _Freq):
        unit = "or such a number with its unit, [1,step] or [1,episode]."
        raise mistake(where, value, f"should be a whole number of steps from 1 on, {unit}")


def _check_buffer(where: str, value: Any) -> None:
    if value is not None:
        check_choice(where, value, ["her"], "replay buffer")


def _check_her(params: Mapping[str, Any]) -> None:
    is_her, kwargs = params.get("replay_buffer_class") == "her", params.get("replay_buffer_kwargs") or {}
    for key, value in kwargs.items():
        where = f"algorithm.params.replay_buffer_kwargs.{key}"
        if is_her:
            signatures.check_name(where, key, value, {*_HER_ARGUMENTS, "handle_timeout_termination"}, "HerReplayBuffer")
        elif key in _HER_ARGUMENTS:
            raise mistake(where, value, "it is HER's. Add algorithm.params.replay_buffer_class=her.")
        if choices := _HER_ARGUMENTS.get(key):
            check_choice(where, value, choices, "strategy")
        elif key == "n_sampled_goal":
            signatures.check_value(where, key, value, int)


def _check_policy_kwargs(policy: type, kwargs: Mapping[str, Any], heads: tuple[str, str]) -> None:
    accepted = signatures.accepted(policy, without=_POLICY_GIVEN)
    for key, value in kwargs.items():
        where = f"algorithm.params.policy_kwargs.{key}"
        if key in _POLICY_ELSEWHERE and key in accepted:
            raise mistake(where, value, f"not set here; {_POLICY_ELSEWHERE[key]}.")
        known = set(accepted) - set(_POLICY_ELSEWHERE)
        signatures.check_name(where, key, value, known, policy.__name__)
        if key in _CLASSES:
            _CLASSES[key].find(where, value)
            continue
        signatures.check_value(where, key, value, accepted[key])
        if key == "net_arch":
            _check_net_arch(where, value, heads)
    if extractor := kwargs.get("features_extractor_class"):
        given = kwargs.get("features_extractor_kwargs") or {}
        where = "algorithm.params.policy_kwargs.features_extractor"
        taken = list(signatures.parameters(_CLASSES["features_extractor_class"].find(where, extractor)).values())
        signatures.check_arguments(f"{where}_kwargs", taken[1:], given, extractor)


def _check_net_arch(where: str, value: Any, heads: tuple[str, str]) -> None:
    if isinstance(value, dict) and set(value) != set(heads):
        example = f"{{{heads[0]}: [64,64], {heads[1]}: [64,64]}}"
        raise mistake(where, value, f"should name the layers of {' and '.join(heads)}, as in {example}.")
    networks = list(value.values()) if isinstance(value, dict) else [value or []]
    if any(units < 1 for layers in networks for units in layers):
        raise mistake(where, value, "each layer needs at least 1 unit.")


# ---------------------------------------------------------------- what the constructor gets


def constructor_arguments(params: Mapping[str, Any], action_space: spaces.Space[Any], n_envs: int) -> dict[str, Any]:
    """Return *params* as the constructor takes them: schedules, noises, classes and tuples made."""
    made = {key: _made(key, value) for key, value in params.items()}
    if noise := params.get("action_noise"):
        made["action_noise"] = _noise(noise, action_space, n_envs)
    if made.get("replay_buffer_class") == "her":
        from stable_baselines3 import HerReplayBuffer

        made["replay_buffer_class"] = HerReplayBuffer
    if isinstance(made.get("train_freq"), list):
        made["train_freq"] = tuple(made["train_freq"])
    if kwargs := made.get("policy_kwargs"):
        made["policy_kwargs"] = _policy_kwargs(kwargs)
    return made


def _made(key: str, value: Any) -> Any:
    start = _linear_start(value)
    if start is None:
        own = isinstance(value, str | Mapping) and set([value] if isinstance(value, str) else value)
        if key != "policy_kwargs" and own and own <= set(register.schedule.registered):
            return parts.made(f"algorithm.params.{key}", register.schedule, value)
        return thaw(value)
    from stable_baselines3.common.utils import LinearSchedule

    # SB3 rounds the budget up to whole rollouts, so the remaining progress ends below 0, where a
    # bare `start * progress` turns negative; SB3's LinearSchedule stays at its end value.
    return LinearSchedule(start, 0.0, 1.0)


def _noise(value: Mapping[str, Any], action_space: spaces.Space[Any], n_envs: int) -> Any:
    import numpy as np
    from stable_baselines3.common import noise

    shape = action_space.shape or (1,)
    made = getattr(noise, _NOISES[value["type"]])(mean=np.zeros(shape), sigma=value.get("std", 0.1) * np.ones(shape))
    return noise.VectorizedActionNoise(made, n_envs) if n_envs > 1 else made


def _policy_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    where = "algorithm.params.policy_kwargs"
    return {k: _CLASSES[k].find(f"{where}.{k}", v) if k in _CLASSES else v for k, v in kwargs.items()}
