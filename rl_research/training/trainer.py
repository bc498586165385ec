"""Train the experiment of a run, or go on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.logger import Logger

from rl_research import checkpoints
from rl_research.errors import Interrupted
from rl_research.runs import PROGRESS, Run, check_same_experiment, manifest_facts
from rl_research.tracking import ProgressFile, RowWriter, numbers
from rl_research.training import divergence, envs, models, previous_segments, resume
from rl_research.training.checkpoint_callback import CheckpointCallback
from rl_research.training.evaluation import Scores
from rl_research.training.evaluation_callback import EvalCallback
from rl_research.training.log_rows import LogRows
from rl_research.training.progress import ProgressCallback
from rl_research.training.snapshot import Snapshot
from rl_research.training.video_callback import VideoRecorderCallback

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from rl_research.uploads import Uploads

_log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]


def train_run(
    run: Run, on_progress: OnProgress = lambda step, total: None, uploads: Uploads | None = None
) -> checkpoints.Checkpoint:
    """Train *run*'s experiment and return its last checkpoint.

    A run that has checkpoints goes on from the newest that is valid. A signal is obeyed at the next
    rollout start: the run is committed and `Interrupted` is raised. Each new checkpoint is handed to
    *uploads*.
    """
    env = envs.training_env(run.config)
    try:
        run.save(reward_threshold=envs.reward_threshold(run.config))
        training = _Training(run, env, on_progress, uploads)
        try:
            return training.finish()
        finally:
            training.close()
    finally:
        env.close()


class _Training:
    """The pieces of one segment, put together."""

    def __init__(self, run: Run, env: VecEnv, on_progress: OnProgress, uploads: Uploads | None):
        config = run.config
        self.run = run
        self.uploads = uploads
        self.total = config.experiment.total_timesteps
        self.rows = RowWriter()
        self.model = models.build(config, env)
        self.scores: dict[int, dict[str, Any]] = {}
        self.logs = LogRows(config.experiment.log_every)
        self.evaluations = self._evaluations() if config.evaluation.enabled else None
        self.films = self._films() if config.video.enabled and config.video.every else None
        self.commits = CheckpointCallback(
            config.checkpoint.every,
            run.dir,
            name_prefix=config.name,
            facts=self._facts,
            extra_state=self._state,
            extra_files=lambda: resume.files_to_keep(run.dir),
            save_now=lambda: bool(run.stop),
            on_commit=self._committed,
        )
        self.divergence = divergence.DivergenceCallback(config.experiment.log_every)
        self.progress = ProgressCallback(self.total, config.name, on_progress)
        self.first: list[Any] = []
        self.newest: checkpoints.Checkpoint | None = None
        self.segment = 0
        self.resumed_from: str | None = None  # kept as long as this segment is under way
        self.pending: Mapping[str, Any] = {}
        self._resume(env)

    def finish(self) -> checkpoints.Checkpoint:
        """Train to the end of the budget, unless that has been done."""
        done = self.model.num_timesteps
        self.model.set_logger(Logger(None, [self.rows]))
        self._restore_pending()
        if self.newest is not None and done >= self.total:
            return self._caught_up(self.newest)
        stages = [self.divergence, self.logs, self.evaluations, self.films, self.commits, self.progress]
        callbacks = [*self.first, *(stage for stage in stages if stage is not None)]
        try:
            self.model.learn(
                self.total - done,
                callback=callbacks,
                log_interval=None,  # type: ignore[arg-type]  # None is documented: rows are ours to dump
                reset_num_timesteps=self.newest is None,
            )
        except ValueError:  # with which torch's distributions refuse NaN
            divergence.check(self.model)
            raise
        finally:
            self.progress.close()
        self.rows.flush()
        assert self.newest is not None
        return self.newest

    def _caught_up(self, last: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
        """Do what a stop or a kill just before the end has left undone."""
        if self.evaluations is not None:
            self.evaluations.init_callback(self.model)
            self.evaluations.on_rollout_start()
        self.rows.flush()
        return self.newest or last

    def close(self) -> None:
        """Close the environments that are not the training's own."""
        for stage in (self.evaluations, self.films):
            if stage is not None:
                stage.eval_env.close()

    def _restore_pending(self) -> None:
        logger = self.model.logger
        for name, values in self.pending.items():
            getattr(logger, name).update(values)

    def _resume(self, env: VecEnv) -> None:
        checkpoints.sweep(self.run.dir)
        self.newest = resume.newest_valid(self.run)
        progress = ProgressFile(self.run.dir / PROGRESS)
        if self.newest is None:
            progress.rewind(0)
        else:
            check_same_experiment(self.run.config, self.newest.manifest["config"])
            snapshot = Snapshot(self.newest.read, self.newest.segments)
            self.segment = int(self.newest.manifest["segment"]) + 1
            self.resumed_from = self.newest.name
            self.model = snapshot.into(self.model, env, self._env_seed())
            self.first = [snapshot.at_first_rollout()]
            # A boundary resume has marked a row, so its segments are written anew.
            self.commits.newest = self.newest if snapshot.exact else None
            self._say_how(self.newest.manifest)
            for name, stage in self._stages().items():
                if stage is not None and snapshot.callbacks[name] is not None:
                    stage.restore(snapshot.callbacks[name])
            self.rows.row, self.rows.step = snapshot.callbacks["row"]
            self.pending = snapshot.callbacks.get("pending", {})
            resume.restore_files(self.newest, self.run.dir)
            progress = ProgressFile(self.run.dir / PROGRESS)
            progress.rewind(self.rows.step)
            if not snapshot.exact and (here := self.run.logger.wandb_dir) is not None:
                previous_segments.forget(
                    here, self.run.logger.run_id, self.rows.step, self.newest.global_step
                )
            _log.info("resuming at step %d from %s", self.model.num_timesteps, self.newest.address)
        self.run.logger.leave_out(previous_segments.logged_before(self.run, self.newest, progress))
        for row in progress.rows:
            self.run.logger.log_metrics(*numbers(row))
        self.rows.sinks = (progress, self.run.logger.log_metrics)

    def _env_seed(self) -> int:
        entropy = [self.run.config.experiment.seed, self.segment]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1

    def _say_how(self, manifest: Mapping[str, Any]) -> None:
        how = {
            "resume_mode": manifest["resume_mode"],
            "resume_reason": manifest.get("resume_reason"),
            "resumed_at": self.model.num_timesteps,
            "segment": self.segment,
        }
        self.run.logger.log_config({"resume": how})
        self.run.logger.log_summary({"resume_mode": how["resume_mode"], "segment": self.segment})
        self.run.save(resume=[*(self.run.record.get("resume") or []), how])

    def _stages(self) -> dict[str, Any]:
        return {"logs": self.logs, "evaluations": self.evaluations, "films": self.films}

    def _state(self) -> Mapping[str, Any]:
        states = {name: stage and stage.state() for name, stage in self._stages().items()}
        logger = self.model.logger
        names = ("name_to_value", "name_to_count", "name_to_excluded")
        return {
            **states,
            "row": (dict(self.rows.row), self.rows.step),
            "pending": {name: dict(getattr(logger, name)) for name in names},
        }

    def _evaluations(self) -> EvalCallback:
        config, section = self.run.config, self.run.config.evaluation
        first_seed = section.seed + section.final_episodes  # the final score's seeds stay unseen
        return EvalCallback(
            envs.evaluation_env(config, first_seed, min(8, section.episodes)),
            n_eval_episodes=section.episodes,
            eval_freq=section.every,
            deterministic=section.deterministic,
            log_path=str(self.run.dir),
            best_model_save_path=str(self.run.dir / "best_model"),
            at_rollout_start=True,
            on_scores=self._scored,
            stop=lambda: bool(self.run.stop),
        )

    def _films(self) -> VideoRecorderCallback:
        config = self.run.config
        return VideoRecorderCallback(
            envs.film_env(config, config.evaluation.seed),
            config.video.every,
            deterministic=config.evaluation.deterministic,
            max_steps=config.video.max_steps,
            log_video=lambda name, frames, fps, step: self.run.logger.log_video(
                name, frames, fps=fps, step=step
            ),
            stop=lambda: bool(self.run.stop),
        )

    def _scored(self, scores: Scores, step: int) -> None:
        self.scores[step] = described = scores.described()
        if self.newest is not None and self.newest.global_step == step:
            # Committed because of a stop, before its evaluation could be played.
            self.newest = checkpoints.add_facts(self.newest, {"scores": described})
            if self.uploads is not None:
                self.uploads.add(self.newest)

    def _facts(self) -> Mapping[str, Any]:
        self.run.check_lease()
        divergence.check(self.model)
        step = self.model.num_timesteps
        return {
            **manifest_facts(self.run),
            "parameters_sha256": models.parameters_sha256(self.model),
            "scores": self.scores.get(step),
            "segment": self.segment,
            "parent": None if self.newest is None else self.newest.name,
            "resumed_from": self.resumed_from if step < self.total else None,
        }

    def _committed(self, checkpoint: checkpoints.Checkpoint) -> None:
        self.newest = checkpoint
        in_use: Set[str] = frozenset()
        if self.uploads is not None:
            self.uploads.add(checkpoint)
            in_use = self.uploads.in_use()
        retention = checkpoints.retention_of(self.run.config)
        checkpoints.prune(self.run.dir, **retention, in_use=in_use)
        self.run.save(
            global_step=checkpoint.global_step,
            checkpoint=checkpoint.address,
            local_checkpoint=checkpoint.address,
            parameters_sha256=checkpoint.manifest["parameters_sha256"],
        )
        undone = self.evaluations is not None and self.evaluations.is_due()
        if self.run.stop and (checkpoint.global_step < self.total or undone):
            assert self.run.stop.by is not None
            self.run.stop.disarm()
            raise Interrupted(
                f"{self.run.stop.by.name}: stopped and committed at step {checkpoint.global_step} of "
                f"{self.total}; the same command with run_id={self.run.config.run_id} goes on from there."
            )
