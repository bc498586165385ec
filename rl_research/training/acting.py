"""A policy with its normalisation as one torch module: observations in, the actions of `predict` out."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm


class Acting(torch.nn.Module):
    """Acts as ``model.predict`` does, deterministically, on a batch of observations as the environment gives them."""

    def __init__(self, model: BaseAlgorithm):
        super().__init__()
        self.policy = model.policy
        self.policy.set_training_mode(False)
        self.policy.requires_grad_(False)
        self.space, self.action_space = model.observation_space, model.action_space
        self.normalizer = model.get_vec_normalize_env()
        self.by_key = isinstance(self.space, spaces.Dict)
        self.inputs = list(self.space.spaces) if isinstance(self.space, spaces.Dict) else ["observation"]
        self.takes_how = "deterministic" in inspect.signature(self.policy.forward).parameters

    def named(self, observation: Any) -> dict[str, NDArray[Any]]:
        """Return the arrays of *observation* by the name of their input."""
        return dict(observation) if self.by_key else {"observation": observation}

    def observation(self, inputs: dict[str, Any]) -> Any:
        """Return what `named` was given."""
        return dict(inputs) if self.by_key else inputs["observation"]

    def forward(self, *observations: torch.Tensor) -> torch.Tensor:
        """Return the actions for *observations*, each of shape (batch, …), in the order of `inputs`."""
        seen = {key: self._normalized(key, one) for key, one in zip(self.inputs, observations, strict=True)}
        how = {"deterministic": True} if self.takes_how else {}
        out = self.policy(self.observation(seen), **how)
        return self._in_bounds(out[0] if isinstance(out, tuple) else out)

    def _normalized(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """Do what `VecNormalize.normalize_obs` does, in its float64."""
        one = self.normalizer
        if one is None or not one.norm_obs or (self.by_key and key not in (one.norm_obs_keys or ())):
            return value
        rms: Any = one.obs_rms[key] if isinstance(one.obs_rms, dict) else one.obs_rms
        mean, spread = torch.as_tensor(rms.mean), torch.as_tensor(np.sqrt(rms.var + one.epsilon))
        return ((value.double() - mean) / spread).clamp(-one.clip_obs, one.clip_obs).float()

    def _in_bounds(self, action: torch.Tensor) -> torch.Tensor:
        """Do what `predict` does: scale a squashed action to the bounds, and cut any other there."""
        if not isinstance(self.action_space, spaces.Box):
            return action
        low, high = torch.as_tensor(self.action_space.low), torch.as_tensor(self.action_space.high)
        action = action.reshape(-1, *low.shape)
        if self.policy.squash_output:
            return low + 0.5 * (action + 1.0) * (high - low)
        return torch.maximum(torch.minimum(action, high), low)
