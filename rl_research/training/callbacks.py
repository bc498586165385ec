"""Callbacks of training: they act between rollouts, count environment steps and draw no random number.

At a rollout start the parameters have just been updated and no transition is in flight.
"""

from __future__ import annotations

import io
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, sync_envs_normalization
from tqdm import tqdm

from rl_research import checkpoints
from rl_research.checkpoints import Scores
from rl_research.errors import CannotRender, Diverged, Interrupted
from rl_research.system import write_atomically
from rl_research.tracking import MODEL, NORMALIZER, BaseCallback, StepClock, policy_files, write_row
from rl_research.training import replay_buffer, snapshot
from rl_research.training.evaluation import evaluate, film_episode, filming, frames_per_second

if TYPE_CHECKING:
    import gymnasium as gym
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm

_log = logging.getLogger(__name__)
_LINE_EVERY = 10.0  # seconds between lines about progress where there is no terminal

#: What an `EvalCallback` remembers under SB3's names.
_HISTORY = (
    "best_mean_reward", "evaluations_timesteps", "evaluations_results", "evaluations_length",
    "evaluations_successes",
)  # fmt: skip


class _Abandoned(Interrupted):
    """Raised by a callback's own `_poll`; an `Interrupted` from elsewhere is not for it to catch."""


class _Periodic(BaseCallback):
    """Act at the first rollout start after each *every* environment steps; 0: never."""

    def __init__(self, every: int, verbose: int = 0):
        super().__init__(verbose)
        self._clock = StepClock(every)

    def _on_training_start(self) -> None:
        self._clock.start(self.model)

    def _on_rollout_start(self) -> None:
        if self._clock.due(self.model):
            self._act()

    def _act(self) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what a resumed run continues from."""
        return {"last": self._clock.last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._clock.resume(state["last"])


class LogRows(_Periodic):
    """Dump SB3's metrics when an update is complete, so that a row holds the values of one step only.

    SB3 dumps before the update: it shows every ``train/*`` a rollout late, and the last one never.
    """

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > (self._clock.last or 0):
            self._act()

    def _act(self) -> None:
        model = self.model
        self._clock.done(model)
        if hasattr(model, "rollout_buffer"):
            rollout = model.n_steps * model.n_envs  # type: ignore[attr-defined]  # on-policy algorithms have it
            model.dump_logs(model.num_timesteps // rollout)  # type: ignore[call-arg]  # on-policy ones count iterations
        else:
            model.dump_logs()


class DivergenceCallback(_Periodic):
    """Raise `Diverged` at the first rollout start after each *every* steps that finds NaN or infinity."""

    def _act(self) -> None:
        self._clock.done(self.model)
        raise_if_diverged(self.model)


def raise_if_diverged(model: BaseAlgorithm) -> None:
    """Raise `Diverged` if a parameter of *model*, or a loss of its last update, is not finite."""
    import torch

    values = model.logger.name_to_value.items()
    losses = {name: loss for name, loss in values if name.endswith("loss") and isinstance(loss, float)}
    wrong = [f"the parameter {n}" for n, p in model.policy.named_parameters() if not torch.isfinite(p).all()]
    wrong += [name for name, loss in losses.items() if not math.isfinite(loss)]
    if wrong:
        raise Diverged(
            f"diverged at step {model.num_timesteps}: {wrong[0]} is not finite. The checkpoints before it "
            "stand. Trying again would give the same; lower algorithm.params.learning_rate, or set "
            "env.normalize=true, in a run of its own."
        )


class CheckpointCallback(_Periodic):
    """Commit a checkpoint every `save_freq` environment steps, at the next rollout start.

    Each checkpoint is a folder ``{save_path}/checkpoints/step-…/`` with SB3's files and a manifest that
    vouches for them.

    :param save_freq: environment steps between checkpoints; 0: only the last, at the end of training
    :param save_path: the run's folder
    :param name_prefix: recorded in the manifest
    :param save_replay_buffer: taken for SB3's sake: a checkpoint always holds the replay buffer
    :param save_vecnormalize: also keep SB3's ``vecnormalize.pkl`` for `VecNormalize.load`
    :param verbose: as in SB3
    :param facts: what else the manifest says, asked at every commit
    :param extra_state: what else a resumed run continues from, asked at every commit
    :param extra_files: what else the checkpoint holds, by file name, asked at every commit
    :param save_now: asked at every rollout start; a true answer commits out of turn
    :param on_commit: called with every new checkpoint
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | Path,
        name_prefix: str = "rl_model",
        save_replay_buffer: bool = False,
        save_vecnormalize: bool = True,
        verbose: int = 0,
        *,
        facts: Callable[[], Mapping[str, Any]] = dict,
        extra_state: Callable[[], Mapping[str, Any]] = dict,
        extra_files: Callable[[], Mapping[str, bytes]] = dict,
        save_now: Callable[[], bool] = lambda: False,
        on_commit: Callable[[checkpoints.Checkpoint], None] = lambda checkpoint: None,
    ):
        super().__init__(save_freq, verbose)
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.name_prefix = name_prefix
        self.save_replay_buffer = save_replay_buffer
        self.save_vecnormalize = save_vecnormalize
        self.facts = facts
        self.extra_state = extra_state
        self.extra_files = extra_files
        self.save_now = save_now
        self.on_commit = on_commit
        self.ended: bool | None = None
        self.remark: str | None = None  # what a resume from here will not continue
        self.newest: checkpoints.Checkpoint | None = None  # whose replay segments the next one shares

    def _on_rollout_start(self) -> None:
        if self._clock.due(self.model) or self.save_now():
            self._act()

    def _on_training_end(self) -> None:
        self.ended = True
        self.commit()

    def _act(self) -> None:
        self._clock.done(self.model)
        self.commit()

    def commit(self) -> checkpoints.Checkpoint:
        """Commit now."""
        files, resume = snapshot.capture(self.model, self.extra_state())
        if not self.save_vecnormalize:
            files.pop(NORMALIZER, None)
        reasons = "; ".join(filter(None, [resume.pop("resume_reason", None), self.remark]))
        resume = {**resume, **({"resume_reason": reasons} if reasons else {})}
        facts = {"name": self.name_prefix, "ended": self.ended, **resume, **self.facts()}
        before = () if self.newest is None else self.newest.segments
        reused = replay_buffer.segments_to_reuse(self.model, before)
        self.newest = checkpoints.commit(
            self.save_path,
            self.model.num_timesteps,
            {**files, **self.extra_files()},
            facts,
            reused={name: self.newest.manifest.shared[name] for name in reused} if self.newest else {},
            segments=replay_buffer.new_segments(self.model, reused),
        )
        self.on_commit(self.newest)
        return self.newest


class VideoRecorderCallback(_Periodic):
    """Film the policy every `render_freq` environment steps, between rollouts.

    An environment that fails to draw costs the film and a warning.

    :param eval_env: an environment apart from training's, with ``render_mode="rgb_array"``
    :param render_freq: environment steps between films; 0: none
    :param n_eval_episodes: episodes per film
    :param deterministic: act by the mode of the policy
    :param max_steps: longest episode that is filmed, in environment steps
    :param log_video: takes a metric name, the frames (T, H, W, C) uint8, frames per second and the step
    :param stop: asked after every step; a true answer abandons the film
    """

    def __init__(
        self,
        eval_env: gym.Env[Any, Any] | VecEnv,
        render_freq: int,
        n_eval_episodes: int = 1,
        deterministic: bool = True,
        *,
        max_steps: int = 1_000,
        log_video: Callable[[str, NDArray[np.uint8], float, int], None],
        stop: Callable[[], bool] = lambda: False,
    ):
        super().__init__(render_freq)
        self.eval_env = eval_env if isinstance(eval_env, VecEnv) else DummyVecEnv([lambda: eval_env])
        self.render_freq = render_freq
        self.n_eval_episodes = n_eval_episodes
        self.deterministic = deterministic
        self.max_steps = max_steps
        self.log_video = log_video
        self.stop = stop

    def _act(self) -> None:
        step = self.model.num_timesteps
        try:
            with filming():
                frames = np.concatenate([self._episode() for _ in range(self.n_eval_episodes)])
                self.log_video("eval/video", frames, frames_per_second(self.eval_env), step)
        except _Abandoned:
            return  # it stays due
        except CannotRender as error:
            _log.warning("no film at step %d: %s", step, error)
        self._clock.done(self.model)

    def _episode(self) -> NDArray[np.uint8]:
        return film_episode(self.model, self.eval_env, self.max_steps, self.deterministic, self._poll)

    def _poll(self) -> None:
        if self.stop():
            raise _Abandoned("stopped during a film")


class EvalCallback(sb3.EvalCallback):
    """SB3's `EvalCallback`, counting in environment steps.

    It adds `eval/std_reward`. The metrics are a row of their own, without another update's ``train/*``.
    ``best_model.zip`` is kept together with its ``vecnormalize.pkl``, and files are replaced atomically.

    :param eval_freq: environment steps between evaluations; 0: none
    :param at_rollout_start: evaluate only between rollouts, where parameters have just changed
    :param on_scores: called with the `Scores` and the step after every evaluation
    :param stop: asked after every step; a true answer abandons the evaluation without a record

    The others are SB3's; `verbose` changes nothing. A child callback's answer to stop ends training at
    the step that follows.
    """

    def __init__(
        self,
        *args: Any,
        at_rollout_start: bool = False,
        on_scores: Callable[[Scores, int], None] = lambda scores, step: None,
        stop: Callable[[], bool] = lambda: False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.at_rollout_start = at_rollout_start
        self.on_scores = on_scores
        self.stop = stop
        self._clock = StepClock(self.eval_freq)
        self._go_on = True
        self._successes: list[bool] = []

    def _init_callback(self) -> None:
        with warnings.catch_warnings():
            if isinstance(self.training_env.unwrapped, SubprocVecEnv):  # ours play their episodes in this process
                warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
            super()._init_callback()
        if self.best_model_save_path is not None:  # which SB3 has made; it comes with its first model
            with suppress(OSError):
                Path(self.best_model_save_path).rmdir()

    def _on_training_start(self) -> None:
        super()._on_training_start()  # SB3 passes it on to `callback_after_eval`
        self._clock.start(self.model)
        self._go_on = True

    def _on_step(self) -> bool:
        if not self.at_rollout_start:
            return not self._clock.due(self.model) or self._evaluate()
        go_on, self._go_on = self._go_on, True
        return go_on

    def _on_rollout_start(self) -> None:
        if self.at_rollout_start and self._clock.due(self.model):
            self._go_on = self._evaluate()  # SB3 asks for an answer only after a step

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def is_due(self) -> bool:
        """Return whether an evaluation is due that has not been played, or has been abandoned."""
        return self._clock.due(self.model)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run continues from: the history, the best score, the last trigger."""
        return {"last": self._clock.last, **{name: getattr(self, name) for name in _HISTORY}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._clock.resume(state["last"])
        for name in _HISTORY:
            setattr(self, name, state[name])

    def _evaluate(self) -> bool:
        scores = self._play()
        if scores is None:
            return True
        self._clock.done(self.model)
        step = self.model.num_timesteps
        self.last_mean_reward = scores.mean
        values = {
            "eval/mean_reward": scores.mean,
            "eval/std_reward": scores.std,
            "eval/mean_ep_length": float(np.mean(scores.lengths)),
        }
        if self._successes:
            values["eval/success_rate"] = float(np.mean(self._successes))
        self._keep_history(scores, step)
        write_row(self.model.logger, values, step)
        self.on_scores(scores, step)
        go_on = True
        if scores.mean > self.best_mean_reward:
            self.best_mean_reward = scores.mean
            self._keep_best()
            if self.callback_on_new_best is not None:
                go_on = self.callback_on_new_best.on_step()
        return go_on and (self.callback is None or self.callback.on_step())

    def _play(self) -> Scores | None:
        self._successes = []
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        try:
            with warnings.catch_warnings():
                if not self.warn:
                    warnings.filterwarnings("ignore", message=".*``Monitor`` wrapper")
                series = (self.n_eval_episodes, self._first_seed(), self.deterministic)
                return evaluate(self.model, self.eval_env, *series, self._poll, self._note_success)
        except _Abandoned:
            return None

    def _poll(self) -> None:
        if self.render:
            self.eval_env.render("human")
        if self.stop():
            raise _Abandoned("stopped during an evaluation")

    def _note_success(self, info: Mapping[str, Any]) -> None:
        if (success := info.get("is_success")) is not None:
            self._successes.append(success)

    def _first_seed(self) -> int:
        return min(self.eval_env.get_attr("first")) if self.eval_env.has_attr("first") else 0

    def _keep_history(self, scores: Scores, step: int) -> None:
        self.evaluations_timesteps.append(step)
        self.evaluations_results.append(list(scores.returns))
        self.evaluations_length.append(list(scores.lengths))
        if self._successes:
            self.evaluations_successes.append(self._successes)
        if self.log_path is not None:
            arrays: dict[str, Any] = {
                "timesteps": self.evaluations_timesteps,
                "results": self.evaluations_results,
                "ep_lengths": self.evaluations_length,
                "successes": self.evaluations_successes,
            }
            out = io.BytesIO()
            np.savez(out, **{name: values for name, values in arrays.items() if values})
            write_atomically(Path(f"{self.log_path}.npz"), out.getvalue())

    def keep_any(self) -> None:
        """Keep the model as it is now as the best one if no evaluation has found one yet."""
        if self.best_model_save_path is not None and not Path(self.best_model_save_path, "best_model.zip").exists():
            self._keep_best()

    def _keep_best(self) -> None:
        if self.best_model_save_path is not None:
            files = policy_files(self.model)
            folder = Path(self.best_model_save_path)
            if NORMALIZER in files:
                write_atomically(folder / NORMALIZER, files[NORMALIZER])
            write_atomically(folder / "best_model.zip", files[MODEL])


class ProgressCallback(BaseCallback):
    """Report the steps done of *total* to *on_progress*, and show them on standard error.

    A terminal gets a bar, anything else a plain line every ten seconds.
    """

    def __init__(self, total: int, label: str, on_progress: Callable[[int, int], None]):
        super().__init__()
        self.total = total
        self.label = label
        self.on_progress = on_progress
        self._bar: tqdm[None] | None = None
        self._last_line = time.monotonic()

    def _on_training_start(self) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            done = self.model.num_timesteps
            self._bar = tqdm(
                desc=self.label, total=self.total, initial=done, unit="step", unit_scale=True, dynamic_ncols=True
            )
        self._show()

    def _on_rollout_start(self) -> None:
        self._show()

    def _on_training_end(self) -> None:
        self._last_line = 0.0
        self._show()
        self.close()

    def close(self) -> None:
        """Leave the terminal tidy, also after an error."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()
            self._bar = None

    def _show(self) -> None:
        step = self.model.num_timesteps
        self.on_progress(step, self.total)
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        score = f"mean return {sum(returns) / len(returns):.1f}" if returns else ""
        if self._bar is not None:
            with suppress(OSError):  # the terminal has been closed; the run goes on
                self._bar.update(step - self._bar.n)
                self._bar.set_postfix_str(score, refresh=False)
        elif time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            _log.info("%s: %d of %d steps%s", self.label, step, self.total, score and f", {score}")
