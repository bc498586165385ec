"""SB3's algorithm for a `Config`, and its parameters: hashed, or loaded without a pickle."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rl_research.config import (
    Config,
    algorithm_class,
    base_of,
    choices,
    constructor_arguments,
    is_on_policy,
    policies,
    register,
    takes_masks,
)
from rl_research.errors import CheckpointDamaged, ConfigError

if TYPE_CHECKING:
    import torch
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

#: Action spaces of those algorithms that do not act in any.
_ACTIONS = {
    **dict.fromkeys(("dqn", "qrdqn"), ("Discrete",)),
    **dict.fromkeys(("crossq", "ddpg", "sac", "td3", "tqc"), ("Box",)),
    "ars": ("Box", "Discrete"),
    "maskable_ppo": ("Discrete", "MultiBinary", "MultiDiscrete"),
    "recurrent_ppo": ("Box", "Discrete", "MultiDiscrete"),  # its buffer keeps bits as int8, which have no loss
}


def build(config: Config, env: VecEnv) -> BaseAlgorithm:
    """Return a new algorithm on *env*. Raises `ConfigError` if its constructor refuses the configuration."""
    import torch

    torch.set_num_threads(config.experiment.torch_threads)
    cls = algorithm_class(config.algorithm.name)
    if config.algorithm.name == "ars":
        from rl_research.training.ars import ARS as cls  # noqa: N811  # under the name of what it replaces
    arguments = constructor_arguments(config.algorithm.params, env.action_space, env.num_envs)
    _check_spaces(cls, config, env)
    policy = config.algorithm.policy
    if policy in register.policy.registered:
        policy = policies(config.algorithm.name)[policy]
    try:
        return cls(policy, env, seed=config.experiment.seed, verbose=0, **arguments)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"algorithm={config.algorithm.name} on {config.env.id}: {cls.__name__} refuses: {reason}"
        ) from error


def build_for_evaluation(config: Config, env: VecEnv) -> BaseAlgorithm:
    """Return what `build` returns, without the memory that only training needs."""
    from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

    params = dict(config.algorithm.params)
    cls = algorithm_class(config.algorithm.name)
    if is_on_policy(cls):
        params.pop("batch_size", None)
        params["n_steps"] = 2
    elif issubclass(cls, OffPolicyAlgorithm):
        params.update(buffer_size=env.num_envs, replay_buffer_class=None, replay_buffer_kwargs=None)
        params.pop("optimize_memory_usage", None)  # which asks for an argument of the buffer's
    section = config.algorithm.model_copy(update={"params": params})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # SB3 comments on rollout sizes nobody uses here
        return build(config.model_copy(update={"algorithm": section}), env)


def learned_tensors(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Return every learned tensor by name, optimizers left out."""
    tensors = {f"policy.{key}": value for key, value in model.policy.state_dict().items()}
    return tensors | _beside_policy(model)


def parameters_sha256(model: BaseAlgorithm) -> str:
    """Return one hash over names, shapes, dtypes and bytes of every learned tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(learned_tensors(model).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load_parameters(model: BaseAlgorithm, model_zip: bytes) -> None:
    """Put the tensors of an SB3 *model_zip* into *model*, tensors and numbers only.

    SB3's own `load` also unpickles the zip's ``data``, which runs whatever code a stranger put there.
    Raises `CheckpointDamaged` if the tensors are not this model's.
    """
    policy = _tensors(model_zip, "policy.pth")
    try:
        model.policy.load_state_dict(policy)
        expected = _beside_policy(model)
        loaded = _tensors(model_zip, "pytorch_variables.pth") if expected else {}
        for name, tensor in expected.items():
            tensor.data.copy_(loaded[name])
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointDamaged(f"model.zip does not fit its configuration: {reason}") from None


def _tensors(model_zip: bytes, member: str) -> Mapping[str, torch.Tensor]:
    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(model_zip)) as archive:
            if archive.getinfo(member).file_size > len(model_zip):
                raise CheckpointDamaged(f"model.zip: {member} is larger than the file it is in")
            data = archive.read(member)
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except CheckpointDamaged:
        raise
    except Exception as error:  # noqa: BLE001  # whatever a stranger's bytes provoke in zipfile or torch is damage
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointDamaged(f"model.zip: {member} cannot be read as tensors: {reason}") from None
    if not isinstance(loaded, Mapping):
        raise CheckpointDamaged(f"model.zip: {member} holds no tensors by name")
    return loaded


def _beside_policy(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """Return what *model* learns outside its policy, such as SAC's entropy coefficient."""
    import torch

    tensors = {name: value for name, value in vars(model).items() if isinstance(value, torch.Tensor)}
    if type(model) in register.algorithm.registered.values():  # whose other tensors are its own to keep
        tensors = {name: tensors[name] for name in ("log_ent_coef", "ent_coef_tensor") if name in tensors}
    return {name: value for name, value in tensors.items() if name != "weights"}  # ARS's, once more as one vector


def _check_spaces(cls: type[BaseAlgorithm], config: Config, env: VecEnv) -> None:
    """Refuse what SB3 asserts, or finds out in the middle of building a network, with the remedy."""
    from gymnasium import spaces

    actions, has_masks = type(env.action_space).__name__, env.has_attr("action_masks")

    def acts(algorithm: str) -> bool:
        return actions in _ACTIONS.get(algorithm, (actions,)) and (has_masks or algorithm != "maskable_ppo")

    name, policy = config.algorithm.name, config.algorithm.policy
    if takes_masks(cls) and not has_masks:
        raise ConfigError(
            f"algorithm={name}: {config.env.id} has no method action_masks(), which says what can be done. "
            "Write one, or choose algorithm=ppo."
        )
    if not acts(base_of(name)):
        others = filter(acts, choices("algorithm"))
        raise ConfigError(
            f"algorithm={name}: {cls.__name__} cannot act in {config.env.id}, whose "
            f"actions are {env.action_space}. Choose from: {', '.join(others)}."
        )
    if config.algorithm.params.get("replay_buffer_class") == "her":
        _check_goals(config, env)
    by_name = isinstance(env.observation_space, spaces.Dict)
    if policy in register.policy.registered:  # which knows what it can see
        return
    if by_name != policy.startswith("MultiInput"):
        fitting = [other for other in cls.policy_aliases if by_name == other.startswith("MultiInput")]
        remedy = f"For instance algorithm.policy={fitting[0]}" if fitting else "No policy of this algorithm can"
        raise ConfigError(
            f"algorithm.policy={policy}: it cannot see {config.env.id}, whose observations are "
            f"{env.observation_space}. {remedy}."
        )


def _check_goals(config: Config, env: VecEnv) -> None:
    """Refuse an environment without goals, and to learn while no episode has ended from which to take some."""
    where = "algorithm.params.replay_buffer_class=her"
    goal_keys = {"observation", "achieved_goal", "desired_goal"}
    if set(getattr(env.observation_space, "spaces", ())) != goal_keys or not env.has_attr("compute_reward"):
        raise ConfigError(
            f"{where}: {config.env.id} is no goal environment. One observes a Dict of observation, achieved_goal and "
            "desired_goal, and has a method compute_reward(achieved_goal, desired_goal, info)."
        )
    spec = env.get_attr("spec")[0]
    longest = ((spec and spec.max_episode_steps) or 0) * env.num_envs
    if config.algorithm.params.get("learning_starts", 100) < longest:
        raise ConfigError(
            f"{where}: it learns from whole episodes, and the first ends after {longest} steps. "
            f"Set algorithm.params.learning_starts={longest} or more."
        )
