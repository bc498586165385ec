"""Checkpoints of a run: the facts in their manifests, and the steps that follow a commit."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any

from rl_research import checkpoints
from rl_research.checkpoints import Scores
from rl_research.runs import Run
from rl_research.training import models
from rl_research.training.callbacks import raise_if_diverged
from rl_research.training.restorable import recall_of

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from rl_research.uploads import UploadQueue


class Commits:
    """Checkpoints that one segment adds to *run*; each new one is handed to *uploads*."""

    def __init__(self, run: Run, uploads: UploadQueue | None):
        self.run = run
        self.uploads = uploads
        self.total = run.config.experiment.total_timesteps
        self.newest: checkpoints.Checkpoint | None = None
        self.segment = 0
        self._resumed_from: str | None = None  # kept as long as this segment is under way
        self._scores: dict[int, Scores] = {}

    def continue_from(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Begin another segment at *checkpoint*."""
        self.newest = checkpoint
        self.segment = checkpoint.manifest.segment + 1
        self._resumed_from = checkpoint.name
        self._record(checkpoint)  # which another machine may have committed

    def choose_recall(self, env: VecEnv) -> None:
        """Decide how *env*'s state is brought back after a kill, and say so where it cannot be pickled."""
        if (recall := recall_of(env)) is None or recall.reason:
            return
        env.env_method("record", recall.choose())
        if recall.reason:
            how = {"resume_mode": "replay" if recall.method else "boundary", "resume_reason": recall.reason}
            self.run.logger.log_config({"resume": how})
            self.run.save(**how)

    def describe_resume(self, step: int, failure: str | None) -> None:
        """Say in the W&B run and in the record how this segment continues from *step*; *failure*: after which."""
        assert self.newest is not None
        mode = "boundary" if failure else self.newest.manifest.resume_mode
        how = {
            "resume_mode": mode,
            "resume_reason": failure or self.newest.manifest.resume_reason,
            "resumed_at": step,
            "segment": self.segment,
        }
        self.run.logger.log_config({"resume": how})
        self.run.logger.log_summary({"resume_mode": mode, "segment": self.segment})
        self.run.save(resume=[*self.run.record.resume, how])

    def facts(self, model: BaseAlgorithm) -> Mapping[str, Any]:
        """Return what the next manifest says besides its files; raise rather than commit a run that is lost.

        Raises `StorageError` if the run is no longer this process's, and `Diverged`.
        """
        self.run.check_lease()
        raise_if_diverged(model)
        step = model.num_timesteps
        return {
            **self.run.manifest_facts(),
            "parameters_sha256": models.parameters_sha256(model),
            "scores": self._scores.get(step),
            "segment": self.segment,
            "parent": None if self.newest is None else self.newest.name,
            "resumed_from": self._resumed_from if step < self.total else None,
        }

    def add_scores(self, scores: Scores, step: int) -> None:
        """Keep the *scores* of *step* for its manifest, or add them to the one that is there already."""
        self._scores[step] = scores
        if self.newest is not None and self.newest.global_step == step:
            # Committed because of a stop, before its evaluation could be played.
            self.newest = checkpoints.add_facts(self.newest, scores=scores)
            if self.uploads is not None:
                self.uploads.add(self.newest)

    def add(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Upload *checkpoint*, remove those that retention gives up, and note it in the record."""
        self.newest = checkpoint
        in_use: Set[str] = frozenset()
        if self.uploads is not None:
            self.uploads.add(checkpoint)
            in_use = self.uploads.in_use()
        checkpoints.prune(self.run.dir, checkpoints.Retention.of(self.run.config), in_use)
        self._record(checkpoint)

    def _record(self, checkpoint: checkpoints.Checkpoint) -> None:
        self.run.save(
            global_step=checkpoint.global_step,
            ended=checkpoint.manifest.ended,
            checkpoint=checkpoint.address,
            local_checkpoint=checkpoint.address,
            parameters_sha256=checkpoint.manifest.parameters_sha256,
            resume_mode=checkpoint.manifest.resume_mode,
            resume_reason=checkpoint.manifest.resume_reason,
        )
