"""Capture the exact training state of an SB3 algorithm at a rollout start, and put it back.

At the hook `_on_rollout_start` the parameters have just been updated, the rollout buffer is empty and no
transition is in flight; captured there and restored there, training continues to the same bits. SB3's own
`save` leaves out random generators, environments, the normaliser's running return, the replay buffer and
gSDE's matrices, and `load` seeds every generator anew (DLR-RM/stable-baselines3#1643).
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from rl_research.tracking import MODEL, STATISTICS, policy_files, restore_statistics
from rl_research.training.randomness import random_state, restore_random_state
from rl_research.training.replay_buffer import episodes, head_row, restore_replay, truncate_last_row
from rl_research.training.restorable import Method, recall_of

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

STATE = "state.pkl"  # what SB3 leaves out

#: What SB3 saves as well and resets when it loads or begins to learn. The last observations are not among
#: them: SB3 keeps them in its zip, and puts them back where `load` does not force a reset.
_KEPT = ("action_space", "action_noise", "_last_lstm_states")
_NOT_THEIRS = ("venv", "class_attributes")  # of a VecEnvWrapper


def capture(model: BaseAlgorithm, callbacks: Mapping[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files that training needs to continue, by name, at a rollout start.

    *callbacks* is the state of whatever else must continue. Returned with the files is what the manifest says of a
    resume from them: ``resume_mode``, and ``resume_reason`` where that is not exact. The rows of a replay
    buffer are not among the files: checkpoints share them, see `replay_buffer`.
    """
    assert model.env is not None
    environments, resume = _capture_environments(model.env)
    state = {
        "model": {name: getattr(model, name, None) for name in _KEPT},
        "random": random_state(),
        "sde": _attributes(_sde_distribution(model), "exploration_mat", "exploration_matrices"),
        "rollout": _attributes(getattr(model, "rollout_buffer", None), "gamma", "gae_lambda"),
        "environments": None,  # where there are replays, and there version 0.1 would take them for pickles
        **environments,
        "normalizer": _attributes(model.get_vec_normalize_env(), "returns", "old_reward", "old_obs"),
        "callbacks": dict(callbacks),
        "replay_head": head_row(model),
        "replay_episodes": episodes(model),
    }
    return {**policy_files(model), STATE: pickle.dumps(state)}, resume


class Snapshot:
    """A captured state on its way back into a newly built algorithm; *anew* leaves its environments out."""

    def __init__(self, read: Callable[[str], bytes], segments: Sequence[str] = (), *, anew: bool = False):
        self._read = read
        self._anew = anew
        self._segments = segments
        self._state: dict[str, Any] = pickle.loads(read(STATE))
        self._environments: list[Any] | None = self._state["environments"] or self._state.get("replays")
        self.callbacks: dict[str, Any] = self._state["callbacks"]
        self.differs: str | None = None  # how a replayed environment is not where it was

    @property
    def exact(self) -> bool:
        """Whether the environments are put back, pickled or replayed, so that no bit will differ."""
        return self._environments is not None and not self._anew and self.differs is None

    def into(self, fresh: BaseAlgorithm, env: VecEnv, env_seed: int) -> BaseAlgorithm:
        """Return an algorithm like *fresh* that goes on in *env* where the captured one was.

        *fresh* and *env* are as built for a new run. Environments that could not be captured begin new
        episodes, seeded from *env_seed* on, and the replay buffer's last transition is marked as truncated
        (as SheepRL does). So do those whose replay `differs`. What SB3 resets when `learn` begins is put back by
        `at_first_rollout`.
        """
        if self.exact:
            env.reset()  # uses up the seeds of a new run, else the next reset by the algorithm (ARS) would take them
            self._restore_environments(env)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what it says was said when the run began
            model = type(fresh).load(
                io.BytesIO(self._read(MODEL)), env=env, device=fresh.device, force_reset=not self.exact
            )
        for name in _KEPT:  # version 0.1 kept the last observations there, too, which the zip holds
            if (value := self._state["model"].get(name)) is not None:
                setattr(model, name, value)
        kept = (self._state["replay_head"], self._state.get("replay_episodes"))
        # SB3 makes the buffer from the model's, which a callback may have changed since the run began.
        for name, value in self._state.get("rollout", {}).items():
            setattr(model.rollout_buffer, name, value)  # type: ignore[attr-defined]  # where it was captured there is one
        restore_replay(model, self._read, self._segments, *kept)
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None:
            restore_statistics(normalizer, self._read(STATISTICS))
            vars(normalizer).update(self._state["normalizer"])
        if self.exact:
            if (wrappers := self._state.get("vec_wrappers")) is not None:  # version 0.1 kept none
                for wrapper, attributes in zip(_vec_wrappers(env), pickle.loads(wrappers), strict=True):
                    vars(wrapper).update(attributes)
        else:
            env.seed(env_seed)
            truncate_last_row(model)
        return model

    def at_first_rollout(self) -> BaseCallback:
        """Return a callback that puts back what `learn` resets; it has to be called before every other."""
        return _AtFirstRollout(self._state)

    def _restore_environments(self, env: VecEnv) -> None:
        assert self._environments is not None
        recall = recall_of(env)
        if recall is not None and "recall" in self._state:
            method, recall.reason = self._state["recall"]
            recall.method = Method(*method)
            env.env_method("record", recall.method)
        for index, data in enumerate(self._environments):
            (self.differs,) = env.env_method("restore_state", data, indices=index)
            if self.differs is not None:
                return
        if recall is not None and recall.method is not None:
            recall.proven.add(max(self._environments)[0])


class _AtFirstRollout(BaseCallback):
    def __init__(self, state: Mapping[str, Any]):
        super().__init__()
        # A copy: the noise in it is also the model's, which `learn` resets.
        self._state: Mapping[str, Any] | None = pickle.loads(pickle.dumps(state))

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        state, self._state = self._state, None
        if state is None:
            return
        noise = state["model"]["action_noise"]
        if noise is not None:
            vars(self.model.action_noise).update(vars(noise))  # SB3 has the object in hand already
        restore_random_state(state["random"])
        # gSDE draws its matrices just before this hook, from the generators as `load` seeded them.
        distribution = _sde_distribution(self.model)
        for name, tensor in state["sde"].items():
            setattr(distribution, name, tensor)


def _capture_environments(env: VecEnv) -> tuple[dict[str, Any], dict[str, str]]:
    if not env.has_attr("capture_state"):
        return {}, _boundary("the environments are not wrapped in `envs.Restorable`")
    recall = recall_of(env)
    data, refusals = zip(*env.env_method("capture_state"), strict=True)
    wrappers, refusal = _capture_vec_wrappers(env)
    if any(refusals):
        method, why = (recall.method, recall.reason) if recall else (None, "")
        reason = next(filter(None, refusals))
        return {}, _boundary(f"{why}; {reason}" if method else why or f"the environment cannot be pickled: {reason}")
    if refusal is not None:
        return {}, _boundary(refusal)
    if recall is None or isinstance(data[0], bytes):
        return {"environments": data, "vec_wrappers": wrappers}, {"resume_mode": "exact"}
    if (differs := recall.differs(data)) is not None:
        return {}, _boundary(f"{recall.reason}; {differs}")
    kept = {"replays": data, "recall": (tuple(recall.method or ()), recall.reason), "vec_wrappers": wrappers}
    return kept, {"resume_mode": "replay", "resume_reason": recall.reason}


def _boundary(reason: str) -> dict[str, str]:
    return {"resume_mode": "boundary", "resume_reason": reason}


def _vec_wrappers(env: VecEnv) -> Iterator[VecEnvWrapper]:
    """Yield what wraps the copies together, the outermost first, without VecNormalize, which is kept apart."""
    while isinstance(env, VecEnvWrapper):
        if not isinstance(env, VecNormalize):
            yield env
        env = env.venv


def _capture_vec_wrappers(env: VecEnv) -> tuple[bytes | None, str | None]:
    states = [{k: v for k, v in vars(one).items() if k not in _NOT_THEIRS} for one in _vec_wrappers(env)]
    try:
        return pickle.dumps(states), None
    except Exception as error:  # noqa: BLE001  # a user's class may refuse in any way
        return None, f"a vec wrapper cannot be pickled: {error}"


def _sde_distribution(model: BaseAlgorithm) -> Any:
    return getattr(getattr(model, "actor", None) or model.policy, "action_dist", None)


def _attributes(owner: object, *names: str) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in names if hasattr(owner, name)}
