"""Train one experiment, keep its checkpoint, score it and write its page.

rl-research train experiment=cartpole_ppo experiment.seed=1
prefect deployment run train/nightly -p 'overrides=["experiment=cartpole_ppo"]'
"""

# No `from __future__ import annotations`: `serve` sends the flow to its process by value, without
# the names that annotations in quotes would need there.

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State

from rl_research import training
from rl_research.checkpoints import Checkpoint, Scores
from rl_research.config import Config, Experiment
from rl_research.errors import Interrupted, RLResearchError, RunTakenOver
from rl_research.flows.upload import upload_pending
from rl_research.orchestration import (
    ByTask,
    Progress,
    beside,
    introduce,
    pipeline,
    publish_checkpoint,
    publish_summary,
    recovery,
)
from rl_research.runs import Run, RunRecord, open_run, read_record
from rl_research.training import finished_result
from rl_research.uploads import RunStorage, UploadQueue, background_uploads


@flow(
    name="train", flow_run_name=pipeline.named_after_overrides, on_crashed=[recovery.reschedule_if_preempted]
)
def train(overrides: Sequence[str] = ()) -> dict[str, Any] | State[Any]:
    """Run the experiment that *overrides* describe and return what it came to.

    Asked to stop, it ends as `Preempted`; where a deployment started it, the same flow run is
    scheduled again and goes on from its checkpoint. A mistake of the user's ends it as `Failed`, with
    the line that names it; what is scheduled again and when says `recovery.reschedule_if_preempted`.
    """
    return pipeline.told(_outcome(overrides))


def _outcome(overrides: Sequence[str]) -> dict[str, Any] | State[Any]:
    try:
        experiment = pipeline.experiment_of_this_run(overrides)
        config = experiment.config
        if (done := finished_result(config, runtime.flow_run.id)) is not None:
            return _with_its_leftovers(config, done).result
        try:
            run = _take_through_the_stages(experiment)
        except Interrupted as interruption:
            record = read_record(config.run_dir) or RunRecord()
            return recovery.stopped(interruption, record.global_step or 0)
    except RunTakenOver as error:
        return pipeline.left_to_another(error)
    except RLResearchError as error:
        return pipeline.refused(error)
    publish_summary(run)
    return run.record.result


def _with_its_leftovers(config: Config, record: RunRecord) -> RunRecord:
    """The finished run's record, after another try to deliver what it says has not arrived."""
    if record.not_uploaded and config.storage.url is not None:
        upload_pending(RunStorage(config.run_dir, config))
    return read_record(config.run_dir) or record


def _take_through_the_stages(experiment: Experiment) -> Run:
    config = experiment.config
    with open_run(experiment) as run, beside(introduce, run):
        with ByTask(config.storage.retry_for) as task, background_uploads(run, task) as uploads:
            retries = pipeline.retried_for(config.storage.retry_for)
            checkpoint = train_policy.with_options(**retries)(run, uploads)
            if score_policy(run, checkpoint) is not None:
                uploads.add(checkpoint)  # the manifest alone is sent again, with the score
            film_policy(run, checkpoint)
        report_run(run, checkpoint)
    return run


@task(task_run_name="train {run.config.name}", **pipeline.RETRIED)
def train_policy(run: Run, uploads: UploadQueue) -> Checkpoint:
    """Train to the end of the budget, from the newest checkpoint if there is one."""
    with Progress(run) as progress:
        return training.train_run(run, progress.set, uploads)


@task(task_run_name="score {run.config.name}", **pipeline.ONCE)
def score_policy(run: Run, checkpoint: Checkpoint) -> Scores | None:
    """Score the policy on held-out seeds."""
    return training.score_checkpoint(run, checkpoint)


@task(task_run_name="film {run.config.name}", **pipeline.ONCE)
def film_policy(run: Run, checkpoint: Checkpoint) -> bool:
    """Film one episode."""
    return training.film_checkpoint(run, checkpoint)


@task(task_run_name="report {run.config.name}", **pipeline.ONCE)
def report_run(run: Run, checkpoint: Checkpoint) -> Path:
    """Tell the W&B run where the checkpoint lies, and write the run's page."""
    if run.config.storage.url is None:
        publish_checkpoint(training.announce_checkpoint(run, checkpoint))
    return training.report_run(run)
