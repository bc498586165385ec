"""SB3's algorithm for a `Config`, and its parameters: hashed, or loaded without a pickle."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rl_research.config import ON_POLICY, Config, algorithm_class, choices, constructor_arguments
from rl_research.errors import CheckpointDamaged, ConfigError

if TYPE_CHECKING:
    import torch
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

_DISCRETE, _CONTINUOUS = ({"dqn", "qrdqn"}, {"sac", "td3", "ddpg", "tqc", "crossq"})  # the others act in any space


def build(config: Config, env: VecEnv) -> BaseAlgorithm:
    """Return a new algorithm on *env*. Raises `ConfigError` if its constructor refuses the configuration."""
    import torch

    torch.set_num_threads(config.experiment.torch_threads)
    cls = algorithm_class(config.algorithm.name)
    arguments = constructor_arguments(config.algorithm.params, env.action_space, env.num_envs)
    _check_spaces(cls, config, env)
    try:
        return cls(config.algorithm.policy, env, seed=config.experiment.seed, verbose=0, **arguments)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"algorithm={config.algorithm.name} on {config.env.id}: {cls.__name__} refuses: {reason}"
        ) from error


def build_for_evaluation(config: Config, env: VecEnv) -> BaseAlgorithm:
    """Return what `build` returns, without the memory that only training needs."""
    params = dict(config.algorithm.params)
    if config.algorithm.name in ON_POLICY:
        params.pop("batch_size", None)
        params["n_steps"] = 2
    else:
        params["buffer_size"] = env.num_envs
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

    return {name: value for name, value in vars(model).items() if isinstance(value, torch.Tensor)}


def _check_spaces(cls: type[BaseAlgorithm], config: Config, env: VecEnv) -> None:
    """Refuse what SB3 asserts, or finds out in the middle of building a network, with the remedy."""
    from gymnasium import spaces

    def acts(algorithm: str) -> bool:
        discrete, continuous = (isinstance(env.action_space, kind) for kind in (spaces.Discrete, spaces.Box))
        return discrete if algorithm in _DISCRETE else continuous if algorithm in _CONTINUOUS else True

    if not acts(config.algorithm.name):
        fitting = filter(acts, choices("algorithm"))
        raise ConfigError(
            f"algorithm={config.algorithm.name}: {cls.__name__} cannot act in {config.env.id}, whose "
            f"actions are {env.action_space}. Choose from: {', '.join(fitting)}."
        )
    by_name = isinstance(env.observation_space, spaces.Dict)
    policy = config.algorithm.policy
    if by_name != (policy == "MultiInputPolicy"):
        raise ConfigError(
            f"algorithm.policy={policy}: it cannot see {config.env.id}, whose observations are "
            f"{env.observation_space}. For instance "
            f"algorithm.policy={'MultiInputPolicy' if by_name else 'MlpPolicy'}."
        )
