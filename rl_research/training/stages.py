"""Stages of a run, a function each: the tasks of a flow call them.

train -> score -> film -> announce -> report, with uploads beside them (`rl_research.uploads`);
`run_all_stages` calls them where there is no flow.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint, Scores
from rl_research.config import Experiment
from rl_research.errors import CannotRender, EnvironmentFailed
from rl_research.report import write_report
from rl_research.runs import SCORES, Run, open_run
from rl_research.system import write_atomically
from rl_research.training import envs, evaluation
from rl_research.training.evaluation import film_episode, filming, frames_per_second
from rl_research.training.preparation import Prepared
from rl_research.training.resume import find_resume_point
from rl_research.training.trainer import train_run
from rl_research.uploads import announce, background_uploads

_log = logging.getLogger(__name__)


def run_all_stages(
    experiment: Experiment, prepared: Prepared | None = None, callbacks: Sequence[BaseCallback] = ()
) -> Run:
    """Take the run of *experiment* through every stage, here and now; the others are for `train_run`."""
    return with_restarts(experiment, lambda failure: _run_all_stages(experiment, prepared, callbacks, failure))


def with_restarts(experiment: Experiment, attempt: Callable[[str | None], Run]) -> Run:
    """Return the run that *attempt* makes; make it again, as often as ``env.restarts``, if an environment fails.

    *attempt* opens the run, which gives it a logger and a segment of its own, as a new process would. It is called
    with the line of the failure before.
    """
    failure = None
    for left in reversed(range(experiment.config.env.restarts + 1)):
        try:
            return attempt(failure)
        except EnvironmentFailed as error:
            if not left:
                raise
            failure = str(error)
            _log.warning("%s The run goes on from its last checkpoint; %d more restarts are allowed.", error, left - 1)
    raise AssertionError("the last try returns or raises")


def _run_all_stages(
    experiment: Experiment, prepared: Prepared | None, callbacks: Sequence[BaseCallback], failure: str | None
) -> Run:
    with open_run(experiment) as run:
        with background_uploads(run) as uploads:
            point = find_resume_point(run, failure)
            checkpoint = train_run(run, lambda *_: None, uploads, prepared, point, callbacks)
            if score_checkpoint(run, checkpoint) is not None:
                uploads.add(checkpoint)  # the manifest alone is sent again, with the score
            film_checkpoint(run, checkpoint)
        if run.config.storage.url is None:
            announce_checkpoint(run, checkpoint)
        report_run(run)
    return run


def score_checkpoint(run: Run, checkpoint: Checkpoint) -> Scores | None:
    """Return the final score of *checkpoint* on held-out seeds; None if the configuration asks for none."""
    section = run.config.evaluation
    if not (section.enabled and section.final_episodes):
        return None
    scores = evaluation.evaluate_checkpoint(checkpoint, trust_env=True, on_step=run.stop.raise_if_requested)
    record = scores.model_copy(update={"checkpoint": checkpoint.address}).model_dump()
    write_atomically(run.dir / SCORES, (json.dumps(record) + "\n").encode())
    checkpoints.add_facts(checkpoint, final_scores=scores)
    run.save(scores=scores.summary())
    names = {"mean": "final/mean_reward", "std": "final/std_reward", "episodes": "final/episodes"}
    run.logger.log_summary({names[key]: value for key, value in scores.summary().items()})
    return scores


def film_checkpoint(run: Run, checkpoint: Checkpoint) -> bool:
    """Film one episode of *checkpoint*; a warning says why not where the environment cannot be filmed."""
    config, step = run.config, checkpoint.global_step
    if not config.video.enabled:
        return False
    if (filmed := run.dir / f"videos/final/video-{step}.mp4").exists():  # before a kill
        run.logger.log_video("final/video", filmed, step=step)
        return True
    try:
        with (
            evaluation.loaded_policy(checkpoint, config) as model,
            filming(),
            closing(envs.film_env(config, config.evaluation.seed)) as env,
        ):
            how = (config.video.max_steps, config.evaluation.deterministic)
            frames = film_episode(model, env, *how, on_step=run.stop.raise_if_requested)
            run.logger.log_video("final/video", frames, fps=frames_per_second(env), step=step)
    except CannotRender as error:
        _log.warning("no film: %s", error)
        return False
    return True


def announce_checkpoint(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """Log *checkpoint* of the run folder to the W&B run, and return it as it is now.

    A checkpoint that goes to ``storage.url`` is logged when it has arrived there.
    """
    checkpoint = checkpoints.find(checkpoint.address)
    announce(run, checkpoint)
    return checkpoint


def report_run(run: Run) -> Path:
    """Write the run's page as it will be true when the run is closed a moment later, and return its path."""
    run.save()
    return write_report(run.dir, status="finished")
