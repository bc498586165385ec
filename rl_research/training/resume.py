"""Where a run goes on: its newest valid checkpoint, on this machine or in its storage."""

import logging
from dataclasses import dataclass
from pathlib import Path

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config
from rl_research.errors import CheckpointDamaged, CheckpointMissing
from rl_research.runs import PROGRESS, Run, RunRecord, check_same_experiment, read_record
from rl_research.storage import is_transient
from rl_research.system import write_atomically

_log = logging.getLogger(__name__)

#: Files beside the checkpoints in a run's folder that must be there on another machine, too.
_BESIDE = {
    PROGRESS: PROGRESS,
    "best_model/best_model.zip": "best_model.zip",
    "best_model/vecnormalize.pkl": "best_vecnormalize.pkl",
    "evaluations.npz": "evaluations.npz",
}


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on: at a *checkpoint*, None for the beginning.

    *failure* is the line of an environment that has failed. The environments are then made anew, for those in the
    checkpoint would fail at the same step again.
    """

    checkpoint: Checkpoint | None
    failure: str | None = None


def find_resume_point(run: Run, failure: str | None = None) -> ResumePoint:
    """Return where *run* goes on, after what a killed process has left half-written is removed.

    A checkpoint that lies in ``storage.url`` alone is fetched; connection failures are raised as they come.
    """
    checkpoints.sweep(run.dir)
    return ResumePoint(newest_valid(run), failure)


def newest_valid(run: Run) -> Checkpoint | None:
    """Return the newest checkpoint of *run* whose every file is what its manifest promises.

    A damaged one is reported, and the one before it is used. A checkpoint that lies in ``storage.url`` only
    is copied into the run folder first.
    """
    for checkpoint in _newest_first(run):
        try:
            if not checkpoint.store.is_at(run.dir / checkpoints.FOLDER):
                return checkpoints.download(checkpoint, run.dir)
            checkpoint.verify()
        except (CheckpointDamaged, CheckpointMissing) as error:
            _log.warning("%s; using the one before", error)
        else:
            return checkpoint
    return None


def finished_result(config: Config, flow_run_id: str | None = None) -> RunRecord | None:
    """Return the record of the run that *config* names if it is finished, None if there is something to do.

    ``resume=never`` asks for another run, unless the flow run *flow_run_id* has made this one itself.
    """
    if config.run_id is None or (record := read_record(config.run_dir)) is None:
        return None
    if config.resume == "never" and not record.is_of_flow_run(flow_run_id):
        return None
    budget = config.experiment.total_timesteps
    ended = record.ended and (record.total_timesteps or 0) >= budget  # maybe by a callback
    if not record.is_finished or not (ended or (record.global_step or 0) >= budget):
        return None
    checkpoint = record.local_checkpoint
    if checkpoint is not None and (Path(checkpoint) / checkpoints.MANIFEST).exists():
        check_same_experiment(config, checkpoints.find(checkpoint).manifest.config)
    return record


def trained_steps(config: Config) -> int:
    """Return the step of the newest checkpoint of the run that *config* names, here or in its storage."""
    found = checkpoints.local_checkpoints(config.run_dir)
    if not found and (store := checkpoints.store_of(config)) is not None:
        found = checkpoints.list_checkpoints(store)
    return max((checkpoint.global_step for checkpoint in found), default=0)


def files_to_keep(run_dir: Path) -> dict[str, bytes]:
    """Return the files that a checkpoint takes along from the run folder, by their name in the checkpoint."""
    found = {name: run_dir / path for path, name in _BESIDE.items()}
    return {name: path.read_bytes() for name, path in found.items() if path.exists()}


def restore_files(checkpoint: Checkpoint, run_dir: Path) -> None:
    """Put the files that `files_to_keep` took back where they lay, as they were then."""
    for path, name in _BESIDE.items():
        if name in checkpoint.files:
            write_atomically(run_dir / path, checkpoint.read(name))
        elif path != PROGRESS:
            (run_dir / path).unlink(missing_ok=True)


def _newest_first(run: Run) -> list[Checkpoint]:
    """Return those of the run folder and of ``storage.url``; of two at one step the local one first."""
    found = checkpoints.local_checkpoints(run.dir)
    try:
        store = checkpoints.store_of(run.config)
        remote = [] if store is None else checkpoints.list_checkpoints(store)
    except Exception as error:
        if not (found and is_transient(error)):
            raise
        _log.warning("storage.url cannot be reached, the run folder is used: %s", error)
        remote = []
    return sorted([*found, *remote], key=lambda c: c.global_step, reverse=True)
