"""The whole training state, committed between rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl_research import checkpoints
from rl_research.tracking import BaseCallback, StepClock, policy_zip
from rl_research.training import replay_buffer, snapshot


class CheckpointCallback(BaseCallback):
    """Commit a checkpoint every `save_freq` environment steps, at the next rollout start.

    There the parameters have just been updated and no transition is in flight. Each checkpoint is a
    folder ``{save_path}/checkpoints/step-…/`` with SB3's files and a manifest that vouches for them.

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
        super().__init__(verbose)
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
        self.newest: checkpoints.Checkpoint | None = None  # whose replay segments the next one shares
        self._clock = StepClock(save_freq)

    def _on_training_start(self) -> None:
        self._clock.start(self.model)

    def _on_rollout_start(self) -> None:
        if self._clock.due(self.model) or self.save_now():
            self._clock.done(self.model)
            self.commit()

    def _on_training_end(self) -> None:
        self.commit()

    def commit(self) -> checkpoints.Checkpoint:
        """Commit now."""
        files, reason = snapshot.capture(self.model, self.extra_state())
        if not self.save_vecnormalize:
            files.pop(policy_zip.NORMALIZER, None)
        mode = {"resume_mode": "exact"} if reason is None else {
            "resume_mode": "boundary", "resume_reason": reason,
        }  # fmt: skip
        facts = {"name": self.name_prefix, **mode, **self.facts()}
        step = self.model.num_timesteps
        before = () if self.newest is None else self.newest.segments
        reused = replay_buffer.segments_to_reuse(self.model, before)
        self.newest = checkpoints.commit(
            self.save_path,
            step,
            {**files, **self.extra_files()},
            facts,
            reused={name: self.newest.shared[name] for name in reused} if self.newest else {},
            segments=replay_buffer.new_segments(self.model, reused),
        )
        self.on_commit(self.newest)
        return self.newest
