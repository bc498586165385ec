"""Train the experiment of a run, or go on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.logger import Logger

from rl_research import checkpoints
from rl_research.checkpoints import Scores
from rl_research.errors import CannotRender, Interrupted
from rl_research.runs import PROGRESS, Run, check_same_experiment
from rl_research.tracking import STEP, ProgressFile, RowWriter, values_of_row
from rl_research.training import callbacks, envs, evaluation, previous_segments, resume
from rl_research.training.commits import Commits
from rl_research.training.own_parts import OwnCallbacks, OwnSink
from rl_research.training.preparation import Prepared, build
from rl_research.training.resume import ResumePoint
from rl_research.training.snapshot import Snapshot

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv

    from rl_research.uploads import UploadQueue

_log = logging.getLogger(__name__)

_Stateful = callbacks.LogRows | callbacks.EvalCallback | callbacks.VideoRecorderCallback
_PENDING = ("name_to_value", "name_to_count", "name_to_excluded")  # what SB3's logger has yet to dump


def train_run(
    run: Run,
    on_progress: Callable[[int, int], None] = lambda step, total: None,
    uploads: UploadQueue | None = None,
    prepared: Prepared | None = None,
    resume_point: ResumePoint | None = None,
    own_callbacks: Sequence[BaseCallback] = (),
) -> checkpoints.Checkpoint:
    """Train *run*'s experiment and return its last checkpoint.

    It goes on at *resume_point*, else where `find_resume_point` says. *prepared* is what `preflight` has
    built in this process; without one, and where it has been used already, as by the try before a restart,
    training builds its own. *on_progress* gets the steps done and their total at every rollout start. Each
    new checkpoint is handed to *uploads*. *own_callbacks* are called besides ours. Raises `Interrupted` when a
    signal has asked the run to stop: at the next rollout start, after a commit.
    """
    env, model = (prepared and prepared.take(run.config)) or build(run.config)
    with closing(env):
        run.save(reward_threshold=envs.reward_threshold(run.config))
        point = resume_point or resume.find_resume_point(run)
        with closing(Segment(run, env, model, on_progress, uploads, point, own_callbacks)) as segment:
            return segment.finish()


class Segment:
    """One process's part of a run: its algorithm, its callbacks and its rows, as the last one left them."""

    def __init__(
        self,
        run: Run,
        env: VecEnv,
        model: BaseAlgorithm,
        on_progress: Callable[[int, int], None],
        uploads: UploadQueue | None,
        resume_point: ResumePoint,
        own_callbacks: Sequence[BaseCallback] = (),
    ):
        config = run.config
        self.run = run
        self.model = model
        self.total = config.experiment.total_timesteps
        self.rows = RowWriter()
        self.commits = Commits(run, uploads)
        self.logs = callbacks.LogRows(config.experiment.log_every)
        self.evaluations = _evaluations(run, self.commits.add_scores) if config.evaluation.enabled else None
        self.films = _films(run) if config.video.enabled and config.video.every else None
        self.checkpoints = callbacks.CheckpointCallback(
            config.checkpoint.every,
            run.dir,
            name_prefix=config.name,
            facts=lambda: self.commits.facts(self.model),
            extra_state=self._state,
            extra_files=lambda: resume.files_to_keep(run.dir),
            save_now=lambda: bool(run.stop),
            on_commit=self._committed,
        )
        self.own = OwnCallbacks(config, run.dir, own_callbacks)
        self.checkpoints.remark = self.own.remark
        self.progress = callbacks.ProgressCallback(self.total, config.name, on_progress)
        self._first: list[BaseCallback] = []
        self._pending: Mapping[str, Any] = {}
        had = {int(row[STEP]) for row in ProgressFile(run.dir / PROGRESS).rows}  # before a kill, maybe
        if resume_point.checkpoint is not None:
            self._continue_from(resume_point.checkpoint, env, resume_point.failure)
        elif resume_point.failure is not None:
            env.seed(self._seed_of_segment(resume_point.failure))
        if resume_point.checkpoint is None:
            self.commits.choose_recall(env)
        self._open_rows(resume_point.checkpoint, had)

    def finish(self) -> checkpoints.Checkpoint:
        """Train to the end of the budget, unless that has been done, and return the last checkpoint."""
        self.model.set_logger(Logger(None, [self.rows]))
        for name, values in self._pending.items():
            getattr(self.model.logger, name).update(values)
        newest = self.commits.newest
        if newest is None or not self._is_over(newest):
            self._learn(fresh=newest is None)
        elif self.evaluations is not None:  # what a stop or a kill just before the end has left undone
            self.evaluations.init_callback(self.model)
            self.evaluations.on_rollout_start()
        if self.evaluations is not None:
            self.evaluations.keep_any()
        self.rows.flush()
        assert self.commits.newest is not None
        return self.commits.newest

    def _is_over(self, newest: checkpoints.Checkpoint) -> bool:
        """Return whether the budget is used up, or a callback has ended training before, with the same budget."""
        budget = newest.manifest.config["experiment"]["total_timesteps"]
        return self.model.num_timesteps >= self.total or bool(newest.manifest.ended and budget >= self.total)

    def close(self) -> None:
        """Close the environments that are not the training's own, and the user's own sinks."""
        for sink in self.sinks:
            sink.close()
        for callback in (self.evaluations, self.films):
            if callback is not None:
                callback.eval_env.close()

    def _learn(self, fresh: bool) -> None:
        diverged = callbacks.DivergenceCallback(self.run.config.experiment.log_every)
        # The user's own come after the checkpoint, so that a resume at it calls them for this rollout again.
        called = [diverged, self.logs, self.evaluations, self.films, self.checkpoints, *self.own.all, self.progress]
        try:
            self.model.learn(
                self.total - self.model.num_timesteps,
                callback=[*self._first, *(callback for callback in called if callback is not None)],
                log_interval=None,  # type: ignore[arg-type]  # None is documented: rows are ours to dump
                reset_num_timesteps=fresh,
            )
        except ValueError:  # with which torch's distributions refuse NaN
            callbacks.raise_if_diverged(self.model)
            raise
        finally:
            self.progress.close()

    def _committed(self, checkpoint: checkpoints.Checkpoint) -> None:
        self.commits.add(checkpoint)
        stop, step = self.run.stop, checkpoint.global_step
        undone = self.evaluations is not None and self.evaluations.is_due()
        if stop and (step < self.total or undone):
            assert stop.by is not None
            stop.disarm()
            raise Interrupted(
                f"{stop.by.name}: stopped and committed at step {step} of {self.total}; "
                f"the same command with run_id={self.run.config.run_id} goes on from there."
            )

    def _stateful(self) -> dict[str, _Stateful | None]:
        """Return the callbacks that a snapshot keeps, by their name in it; None for what is switched off."""
        return {"logs": self.logs, "evaluations": self.evaluations, "films": self.films}

    def _state(self) -> Mapping[str, Any]:
        states = {name: callback and callback.state() for name, callback in self._stateful().items()}
        pending = {name: dict(getattr(self.model.logger, name)) for name in _PENDING}
        return {**states, "own": self.own.state(), "row": (dict(self.rows.row), self.rows.step), "pending": pending}

    def _continue_from(self, newest: checkpoints.Checkpoint, env: VecEnv, failure: str | None) -> None:
        check_same_experiment(self.run.config, newest.manifest.config)
        self.commits.continue_from(newest)
        snapshot = Snapshot(newest.read, newest.segments, anew=failure is not None)
        self.model = snapshot.into(self.model, env, self._seed_of_segment(failure))
        self._first = [snapshot.at_first_rollout()]
        # A boundary resume has marked a row, so its replay segments are written anew.
        self.checkpoints.newest = newest if snapshot.exact else None
        if not snapshot.exact:
            self.commits.choose_recall(env)
        self.commits.describe_resume(self.model.num_timesteps, failure or snapshot.differs)
        for name, callback in self._stateful().items():
            if callback is not None and snapshot.callbacks[name] is not None:
                callback.restore(snapshot.callbacks[name])
        self.own.restore(snapshot.callbacks.get("own", {}))
        self.rows.row, self.rows.step = snapshot.callbacks["row"]
        self._pending = snapshot.callbacks.get("pending", {})
        resume.restore_files(newest, self.run.dir)
        if not snapshot.exact:
            previous_segments.forget_relived(self.run, self.rows.step, newest.global_step)
        _log.info("resuming at step %d from %s", self.model.num_timesteps, newest.address)

    def _seed_of_segment(self, failure: str | None) -> int:
        """Return a seed for environments that begin anew; after a *failure* none that has led to one."""
        entropy = [self.run.config.experiment.seed, self.commits.segment]
        entropy += [] if failure is None else [len(self.run.record.segments)]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1

    def _open_rows(self, newest: checkpoints.Checkpoint | None, had: Set[int]) -> None:
        """Take back the rows that are lived again, and give W&B those that it does not have.

        The user's own sinks have got those of the steps *had*.
        """
        config, run_dir = self.run.config, self.run.dir
        self.sinks = [OwnSink(part, run_dir, self.rows.step, had) for part in config.sinks]
        progress = ProgressFile(self.run.dir / PROGRESS)
        progress.rewind(self.rows.step)
        self.run.logger.leave_out(previous_segments.logged_before(self.run, newest, progress))
        for row in progress.rows:
            self.run.logger.log_metrics(*values_of_row(row))
        # progress.csv after the user's own: what it has, they have got.
        self.rows.sinks = (*self.sinks, progress, self.run.logger.log_metrics)


def _evaluations(run: Run, on_scores: Callable[[Scores, int], None]) -> callbacks.EvalCallback:
    config, section = run.config, run.config.evaluation
    first_seed = section.seed + section.final_episodes  # the final score's seeds stay unseen
    return callbacks.EvalCallback(
        envs.evaluation_env(config, first_seed, min(evaluation.COPIES, section.episodes)),
        n_eval_episodes=section.episodes,
        eval_freq=section.every,
        deterministic=section.deterministic,
        log_path=str(run.dir),
        best_model_save_path=str(run.dir / "best_model"),
        at_rollout_start=True,
        on_scores=on_scores,
        stop=lambda: bool(run.stop),
    )


def _films(run: Run) -> callbacks.VideoRecorderCallback | None:
    config = run.config
    try:
        with evaluation.filming():
            env = envs.film_env(config, config.evaluation.seed)
    except CannotRender as error:
        _log.warning("no films: %s", error)
        return None
    return callbacks.VideoRecorderCallback(
        env,
        config.video.every,
        deterministic=config.evaluation.deterministic,
        max_steps=config.video.max_steps,
        log_video=lambda name, frames, fps, step: run.logger.log_video(name, frames, fps=fps, step=step),
        stop=lambda: bool(run.stop),
    )
