"""One run: its folder, its lease, its logger, and the record of what it has come to."""

import itertools
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config, Experiment, code_of
from rl_research.errors import ConfigError, Interrupted, StorageError, in_a_line
from rl_research.runs.description import check_same_experiment, described, shown_overrides, write_description
from rl_research.runs.lease import LEASE, leased_folder, leased_store
from rl_research.runs.record import RECORD, RunRecord, read_record, utc_now
from rl_research.storage import RunLease, is_transient
from rl_research.system import Overdue, StopRequest, listening, raise_if_refused
from rl_research.tracking import ExperimentLogger, current_flow_run, git_state, package_versions

_log = logging.getLogger(__name__)

_RESERVE = 5.0  # seconds of the deadline for what comes after the W&B run
_UNFINISHED = (".writing-", ".report-", ".probe-")


class Run:
    """One execution of an experiment by this process; `open_run` makes it."""

    def __init__(
        self,
        experiment: Experiment,
        logger: ExperimentLogger,
        stop: StopRequest,
        lease: IO[str],
        store_lease: RunLease | None,
    ):
        self.experiment = experiment
        self.config = experiment.config
        self._lease = lease
        self.store_lease = store_lease
        self.dir = experiment.config.run_dir
        self.logger = logger
        self.stop = stop
        self.record = read_record(self.dir) or RunRecord()
        self._began = time.monotonic() - self.record.seconds  # as if the earlier segments had ended just now
        self._cpu_began = time.process_time() - self.record.cpu_seconds

    def check_lease(self) -> None:
        """Raise `StorageError` if the run is no longer this process's, in its folder or in its store."""
        if self.store_lease is not None:
            self.store_lease.check()
        try:
            same = os.path.samestat(os.fstat(self._lease.fileno()), (self.dir / LEASE).stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise StorageError(
                f"{self.dir}: the run folder was removed or replaced while the run was going on; "
                "what it held is lost. Start the run again."
            )

    def confirm_lease(self) -> None:
        """Ask the run's store, if there is one, whether the lease is still ours; see `RunLease.confirm`."""
        if self.store_lease is not None:
            self.store_lease.confirm()

    def finish(self) -> None:
        """Record that everything has been done."""
        self.save(status="finished", finished_at=utc_now())

    def close(self, exit_code: int = 0) -> None:
        """Finish the W&B run, within what is left of ``checkpoint.deadline`` if a stop is asked for."""
        try:
            self.logger.finish(exit_code, seconds_left=self._seconds_to_close)
        finally:
            self.save(wandb=self.logger.record)

    def _seconds_to_close(self) -> float:
        return self.stop.seconds_left() - _RESERVE if self.stop else math.inf

    def save(self, **facts: Any) -> None:
        """Set *facts*, fields of `RunRecord`, and write the run's record to disk."""
        for name, value in facts.items():
            setattr(self.record, name, value)
        self.record.seconds = round(time.monotonic() - self._began, 3)
        self.record.cpu_seconds = round(time.process_time() - self._cpu_began, 3)
        self.record.saved_at = utc_now()
        self.record.write(self.dir)

    def begin(self) -> None:
        """Record what this process is about to do, and that it has taken the run up."""
        config, record, flow = self.config, self.record, current_flow_run()
        trained = (record.global_step or 0) >= config.experiment.total_timesteps
        published = config.experiment.published
        record.begin_segment(flow.get("flow_run_id"), config.experiment.total_timesteps)
        code = code_of([*config.plugins, *config.env.id.split(":")[:-1]])
        if changed := sorted(name for name in code.keys() & record.code.keys() if code[name] != record.code[name]):
            _log.warning("%s has changed since this run began; it goes on with the new code", ", ".join(changed))
        self.save(
            run_id=config.run_id,
            run_dir=str(self.dir),
            status="running",
            error=None,
            name=config.name,
            algorithm=config.algorithm.name,
            env=config.env.id,
            seed=config.experiment.seed,
            total_timesteps=config.experiment.total_timesteps,
            published=None if published is None else published.model_dump(),
            wandb=self.logger.record,
            flow_run_id=flow.get("flow_run_id"),
            flow_run_url=flow.get("ui_url"),
            versions=package_versions(),
            code=code,
            git=git_state(),
            started_at=record.started_at or utc_now(),
            finished_at=None,
            scores=record.scores if trained else None,
        )
        self.logger.log_config({"flow_run_ids": record.flow_run_ids})

    def manifest_facts(self) -> Mapping[str, Any]:
        """Return what every manifest of the run says besides its files."""
        return {
            "run_id": self.config.run_id,
            "created_at": utc_now(),
            "config": described(self.config),
            "overrides": shown_overrides(self.experiment),
            "versions": package_versions(),
            "git": git_state(),
            "wandb_run_id": self.logger.run_id,
            "wandb_path": self.logger.path,
            "flow_run_id": self.record.flow_run_id,
            **({"extensions": extensions} if (extensions := self.record.extensions) else {}),
        }


@contextmanager
def open_run(experiment: Experiment) -> Iterator[Run]:
    """Open the run of *experiment*, alone; close its logger and its record whatever happens.

    *experiment* must have a ``run_id``.
    Raises `ConfigError` if another process has the run open or its folder cannot be written.
    """
    config, folder = experiment.config, experiment.config.run_dir
    if config.resume == "never":
        _start_afresh(config)
    _check_same_experiment(config, _stored_checkpoints(config))
    make_folder(folder)
    with (
        leased_folder(folder) as lease,
        listening(config.checkpoint.deadline) as stop,
        leased_store(config, stop) as store_lease,
    ):
        _check_same_experiment(config, checkpoints.local_checkpoints(folder))
        for left in unfinished_files(folder):
            left.unlink()
        write_description(experiment)
        run = Run(experiment, ExperimentLogger(config, run_dir=folder), stop, lease, store_lease)
        try:
            yield from _opened(run)
        except BaseException:
            run.close(exit_code=1)
            raise
        run.close()
        run.finish()


def _opened(run: Run) -> Iterator[Run]:
    """Yield *run*, and record how the block ended if not well."""
    run.begin()
    _log.info("%s: run %s in %s", run.config.name, run.config.run_id, run.dir)
    try:
        yield run
    except Overdue as late:
        run.save(status="interrupted", finished_at=utc_now())
        raise Interrupted(str(late)) from None
    except BaseException as error:
        run.stop.disarm()
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        said = None if stopped else in_a_line(error)
        run.save(status="interrupted" if stopped else "failed", error=said, finished_at=utc_now())
        raise


def unfinished_files(folder: Path) -> list[Path]:
    """Return the temporary files that a killed process has left in *folder*."""
    return [
        left
        for left in folder.rglob(".*")
        if left.is_file() and (left.suffix == ".tmp" or left.name.startswith(_UNFINISHED))
    ]


def make_folder(folder: Path) -> None:
    """Make *folder* and check that files can be written there; raise `ConfigError` if not."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        try:
            raise_if_refused(error, folder)
        except StorageError as refusal:
            raise ConfigError(f"runs_dir: {refusal}") from None
        raise ConfigError(f"runs_dir: cannot write in {folder}: {error.strerror}.") from None


def _check_same_experiment(config: Config, found: Sequence[Checkpoint]) -> None:
    """Raise `ConfigError` if the checkpoints of the run are another experiment's; nothing has been written yet."""
    if found:
        check_same_experiment(config, found[-1].manifest.config)


def _stored_checkpoints(config: Config) -> list[Checkpoint]:
    """Return the run's checkpoints in ``storage.url``; none where that cannot be reached, or the folder has some."""
    if checkpoints.local_checkpoints(config.run_dir):
        return []
    try:
        store = checkpoints.store_of(config)
        return [] if store is None else checkpoints.list_checkpoints(store)
    except Exception as error:
        if not is_transient(error):
            raise
        return []


def _start_afresh(config: Config) -> None:
    """Rename the folder of a former run of the same id, unless this flow run has begun that run."""
    folder = config.run_dir
    record = read_record(folder)
    if record is not None and record.is_of_flow_run(current_flow_run().get("flow_run_id")):
        return
    store = checkpoints.store_of(config)
    if store is not None and checkpoints.list_checkpoints(store):
        raise ConfigError(
            f"resume=never: {store.url} holds checkpoints of run_id={config.run_id}, which a later "
            "start would go on from. Remove them, or choose another run_id."
        )
    if (folder / RECORD).exists():
        with leased_folder(folder):
            names = (f"{folder.name}.replaced-{number}" for number in itertools.count(1))
            former = next(path for path in map(folder.with_name, names) if not path.exists())
            folder.rename(former)
        _log.info("the former run is kept as %s", former)
