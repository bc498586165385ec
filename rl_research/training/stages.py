"""What happens to a run, a function each: what the tasks of a flow call.

train -> score -> film -> announce -> report, with uploads beside them (`rl_research.uploads.queue`);
`run_all_stages` calls them where there is no flow.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Experiment
from rl_research.errors import CannotRender
from rl_research.report import write_report
from rl_research.runs import SCORES, Run, open_run
from rl_research.system import write_atomically
from rl_research.training import envs, evaluation
from rl_research.training.evaluation import Scores
from rl_research.training.film import film_episode, frames_per_second
from rl_research.training.preparation import Prepared
from rl_research.training.trainer import train_run
from rl_research.uploads import delivery, uploads_of

_log = logging.getLogger(__name__)


def run_all_stages(experiment: Experiment, prepared: Prepared | None = None) -> Run:
    """Take the run of *experiment* through every stage, here and now; *prepared* is for `train_run`."""
    with open_run(experiment) as run:
        with uploads_of(run) as uploads:
            checkpoint = train_run(run, uploads=uploads, prepared=prepared)
            if score_checkpoint(run, checkpoint) is not None:
                uploads.add(checkpoint)  # the manifest alone is sent again, with the score
            film_checkpoint(run, checkpoint)
        if run.config.storage.url is None:
            announce_checkpoint(run, checkpoint)
        report_run(run)
    return run


def upload_checkpoint(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """Copy *checkpoint* to ``storage.url`` here and now; where there is none, the run folder is its home.

    Connection failures leave as they came; `rl_research.uploads.queue` does it beside training.
    """
    uploaded = delivery.deliver(run, checkpoint)
    run.save(checkpoint=uploaded.address)
    return uploaded


def score_checkpoint(run: Run, checkpoint: Checkpoint) -> Scores | None:
    """The final score of *checkpoint*, on held-out seeds; None if the configuration asks for none."""
    section = run.config.evaluation
    if not (section.enabled and section.final_episodes):
        return None
    scores = evaluation.evaluate_checkpoint(checkpoint, trust_env=True, on_step=run.stop.raise_if_requested)
    record = {**scores.record(), "checkpoint": checkpoint.address}
    write_atomically(run.dir / SCORES, (json.dumps(record) + "\n").encode())
    checkpoints.add_facts(checkpoint, {"final_scores": scores.described()})
    run.save(scores=scores.summary())
    run.logger.log_summary(
        {
            "final/mean_reward": scores.mean,
            "final/std_reward": scores.std,
            "final/episodes": len(scores.returns),
        }
    )
    return scores


def film_checkpoint(run: Run, checkpoint: Checkpoint) -> bool:
    """Film one episode of *checkpoint*; say why not where the environment cannot be filmed."""
    config = run.config
    if not config.video.enabled:
        return False
    if not envs.can_film(config):
        _log.warning("no film: %s does not render to arrays", config.env.id)
        return False
    step = checkpoint.global_step
    if (there := run.dir / f"videos/final/video-{step}.mp4").exists():  # filmed before a kill
        run.logger.log_video("final/video", there, step=step)
        return True
    model = evaluation.load_policy(checkpoint, config)
    env = envs.film_env(config, config.evaluation.seed)
    try:
        frames = film_episode(
            model,
            env,
            max_steps=config.video.max_steps,
            deterministic=config.evaluation.deterministic,
            on_step=run.stop.raise_if_requested,
        )
        fps = frames_per_second(env)
    except CannotRender as error:
        _log.warning("no film: %s", error)
        return False
    finally:
        env.close()
        evaluation.close(model)
    run.logger.log_video("final/video", frames, fps=fps, step=step)
    return True


def announce_checkpoint(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """Tell the W&B run of *checkpoint* in the run folder; it, as it is now.

    What goes to ``storage.url`` is told of when it has arrived there.
    """
    checkpoint = checkpoints.find(checkpoint.address)
    delivery.announce(run, checkpoint)
    return checkpoint


def report_run(run: Run) -> Path:
    """The run's page, as it will be true when the run is closed a moment later."""
    run.save()
    return write_report(run.dir, status="finished")
