"""The policy's score while it trains, and the best policy so far."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.vec_env import sync_envs_normalization

from rl_research.errors import Interrupted
from rl_research.system import write_atomically
from rl_research.tracking import StepClock, policy_zip, write_row
from rl_research.training.evaluation import Scores, evaluate


class _Abandoned(Interrupted):
    """Raised by the callback's own poll; an `Interrupted` from elsewhere is not for it to catch."""


class EvalCallback(sb3.EvalCallback):
    """SB3's `EvalCallback`, counting in environment steps.

    What it adds: `eval/std_reward`; the metrics are a row of their own, without another update's
    ``train/*``; ``best_model.zip`` is kept together with its ``vecnormalize.pkl``; files are replaced
    atomically; no random generator of training is touched.

    :param eval_freq: environment steps between evaluations; 0: none
    :param at_rollout_start: evaluate only between rollouts, where parameters have just changed
    :param on_scores: called with the `Scores` and the step after every evaluation
    :param stop: asked after every step; a true answer abandons the evaluation without a record

    The others are SB3's; `verbose` changes nothing. A child callback's answer to stop ends
    training at the step that follows.
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

    def _on_training_start(self) -> None:
        super()._on_training_start()  # SB3 tells `callback_after_eval`
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
        """Whether an evaluation is due that has not been played, or has been abandoned."""
        return self._clock.due(self.model)

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from: the history, the best score, the last trigger."""
        return {
            "last": self._clock.last,
            "best_mean_reward": self.best_mean_reward,
            "evaluations_timesteps": self.evaluations_timesteps,
            "evaluations_results": self.evaluations_results,
            "evaluations_length": self.evaluations_length,
            "evaluations_successes": self.evaluations_successes,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._clock.resume(state["last"])
        for name in state.keys() - {"last"}:
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
        if self._is_success_buffer:
            values["eval/success_rate"] = float(np.mean(self._is_success_buffer))
        self._keep_history(scores, step)
        write_row(self.model.logger, values, step)
        self.on_scores(scores, step)
        go_on = True
        if scores.mean > self.best_mean_reward:
            self.best_mean_reward = scores.mean
            self._keep_best()
            if self.callback_on_new_best is not None:
                go_on = self.callback_on_new_best.on_step()
        return go_on and (self.callback is None or self._on_event())

    def _play(self) -> Scores | None:
        self._is_success_buffer = []
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        try:
            with warnings.catch_warnings():
                if not self.warn:
                    warnings.filterwarnings("ignore", message=".*``Monitor`` wrapper")
                return evaluate(
                    self.model,
                    self.eval_env,
                    episodes=self.n_eval_episodes,
                    first_seed=self._first_seed(),
                    deterministic=self.deterministic,
                    on_step=self._poll,
                    on_info=self._log_success_callback,
                )
        except _Abandoned:
            return None

    def _poll(self) -> None:
        if self.render:
            self.eval_env.render("human")
        if self.stop():
            raise _Abandoned("stopped during an evaluation")

    def _first_seed(self) -> int:
        return min(self.eval_env.get_attr("first")) if self.eval_env.has_attr("first") else 0

    def _keep_history(self, scores: Scores, step: int) -> None:
        self.evaluations_timesteps.append(step)
        self.evaluations_results.append(list(scores.returns))
        self.evaluations_length.append(list(scores.lengths))
        if self._is_success_buffer:
            self.evaluations_successes.append(self._is_success_buffer)
        if self.log_path is not None:
            arrays: dict[str, Any] = {
                "timesteps": self.evaluations_timesteps,
                "results": self.evaluations_results,
                "ep_lengths": self.evaluations_length,
            }
            if self.evaluations_successes:
                arrays["successes"] = self.evaluations_successes
            out = io.BytesIO()
            np.savez(out, **arrays)
            write_atomically(Path(f"{self.log_path}.npz"), out.getvalue())

    def _keep_best(self) -> None:
        if self.best_model_save_path is not None:
            files = policy_zip.policy_files(self.model)
            folder = Path(self.best_model_save_path)
            if policy_zip.NORMALIZER in files:
                write_atomically(folder / policy_zip.NORMALIZER, files[policy_zip.NORMALIZER])
            write_atomically(folder / "best_model.zip", files[policy_zip.MODEL])
