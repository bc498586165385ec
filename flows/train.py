"""Train one experiment, keep its checkpoint, score it and write its page.

rl-research train experiment=cartpole_ppo experiment.seed=1
prefect deployment run train/nightly -p 'overrides=["experiment=cartpole_ppo"]'
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State

from rl_research import orchestration, training
from rl_research.checkpoints import Checkpoint, Scores
from rl_research.config import Config, Experiment
from rl_research.errors import Interrupted, RLResearchError, RunTakenOver
from rl_research.orchestration import NO_RETRIES, RETRY_TRANSIENT, Progress, UploadByTask
from rl_research.runs import Run, RunRecord, open_run, read_record
from rl_research.uploads import RunStorage, UploadQueue, background_uploads

Step = Callable[[Run, Checkpoint], object]


@flow(name="train", flow_run_name=orchestration.name_from_overrides, on_crashed=[orchestration.reschedule_if_preempted])
def train(overrides: Sequence[str] = ()) -> dict[str, Any] | State[object]:
    """Run the experiment that *overrides* describe and return what it came to.

    Asked to stop, it ends as `Preempted`; where a deployment started it, the same flow run is
    scheduled again and goes on from its checkpoint. A mistake of the user's ends it as `Failed`, with
    the line that names it. `orchestration.reschedule_if_preempted` says what is scheduled again and when.
    """
    return train_then(overrides)


def train_then(overrides: Sequence[str], *steps: Step) -> dict[str, Any] | State[object]:
    """Do in the current flow run what `train` does, and *steps* besides: the body of flows of one's own.

    Each step is called with the run and its scored checkpoint before the page is written, and again where the run is
    stopped in one and goes on. A run that is finished is not trained again, and its steps are not called again.
    """
    flow_run_id = str(runtime.flow_run.id)
    try:
        experiment = orchestration.experiment_of(tuple(overrides), flow_run_id)
        if (done := training.finished_result(experiment.config, flow_run_id)) is not None:
            return _with_pending_uploads(experiment.config, done).result
        try:
            run = training.with_restarts(experiment, lambda failure: _run_stages(experiment, failure, steps))
        except Interrupted as interruption:
            record = read_record(experiment.config.run_dir) or RunRecord()
            return orchestration.stopped_state(interruption, record.global_step or 0)
    except RunTakenOver as error:
        return orchestration.taken_over_state(error)
    except RLResearchError as error:
        return orchestration.failed_state(error)
    orchestration.publish_summary(run)
    return run.record.result


def _with_pending_uploads(config: Config, record: RunRecord) -> RunRecord:
    """Return the finished run's record, after another try to upload what it says has not arrived."""
    if record.not_uploaded and config.storage.url is not None:
        orchestration.upload_pending(RunStorage(config.run_dir, config))
    return read_record(config.run_dir) or record


def _run_stages(experiment: Experiment, failure: str | None, steps: Sequence[Step]) -> Run:
    retry_for = experiment.config.storage.retry_for
    with open_run(experiment) as run, orchestration.linked_to_flow_run(run):
        with UploadByTask(retry_for) as by_task, background_uploads(run, by_task) as uploads:
            find_with_retries = find_checkpoint.with_options(**orchestration.retry_for(retry_for))
            checkpoint = train_policy(run, uploads, find_with_retries(run, failure))
            if score_policy(run, checkpoint) is not None:
                uploads.add(checkpoint)  # the manifest alone is sent again, with the score
            film_policy(run, checkpoint)
            for step in steps:
                step(run, checkpoint)
        report_run(run, checkpoint)
    return run


@task(task_run_name="find the checkpoint of {run.config.name}", **RETRY_TRANSIENT)
def find_checkpoint(run: Run, failure: str | None) -> training.ResumePoint:
    """Find where the run goes on, and fetch that checkpoint if it lies in storage alone."""
    return training.find_resume_point(run, failure)


@task(task_run_name="train {run.config.name}", **NO_RETRIES)
def train_policy(run: Run, uploads: UploadQueue, resume_point: training.ResumePoint) -> Checkpoint:
    """Train to the end of the budget; nothing in it meets a network, so that no failure is one that waiting mends."""
    prepared = orchestration.handed_over(training.Prepared)
    with Progress(run) as progress:
        return training.train_run(run, progress.set, uploads, prepared, resume_point)


@task(task_run_name="score {run.config.name}", **NO_RETRIES)
def score_policy(run: Run, checkpoint: Checkpoint) -> Scores | None:
    """Score the policy on held-out seeds."""
    return training.score_checkpoint(run, checkpoint)


@task(task_run_name="film {run.config.name}", **NO_RETRIES)
def film_policy(run: Run, checkpoint: Checkpoint) -> bool:
    """Film one episode."""
    return training.film_checkpoint(run, checkpoint)


@task(task_run_name="report {run.config.name}", **NO_RETRIES)
def report_run(run: Run, checkpoint: Checkpoint) -> Path:
    """Tell the W&B run where the checkpoint lies, and write the run's page."""
    if run.config.storage.url is None:
        orchestration.publish_checkpoint(training.announce_checkpoint(run, checkpoint))
    return training.report_run(run)
