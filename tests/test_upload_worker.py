"""Promises of the process that uploads beside training: it brings the same, fails alike, outlives nobody."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import Faults, faults_before
from helpers import children, environment, lives, tiny
from servers import Server

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config, load_config
from rl_research.errors import CheckpointMissing, RunTakenOver, StorageError
from rl_research.storage import Store, is_transient
from rl_research.storage.lease import FILE, RunLease
from rl_research.uploads import worker as worker_module
from rl_research.uploads.run_storage import RunStorage
from rl_research.uploads.worker import UploadWorker

PREFIX = "boten/läufe mit leerzeichen"
BIG = 3 << 20  # bytes, at a megabyte a second


@pytest.fixture
def faults(s3: Server) -> Iterator[Faults]:
    """A proxy before the S3 server."""
    s3.bucket("boten")
    with faults_before(s3) as found:
        yield found


@pytest.fixture
def storage(tmp_path: Path, faults: Faults) -> RunStorage:
    """A run folder whose checkpoints go to the S3 server."""
    config = _config(tmp_path, faults)
    config.run_dir.mkdir(parents=True)
    return RunStorage(config.run_dir, config)


@pytest.fixture
def worker(storage: RunStorage) -> Iterator[UploadWorker]:
    """The process for that folder, with nobody else to fear."""
    made = UploadWorker(storage, None)
    yield made
    made.end()


def _config(tmp_path: Path, faults: Faults, *overrides: str) -> Config:
    through = faults.server.at(faults.port)
    prefix = f"{PREFIX}/{tmp_path.name}"
    words = tiny(tmp_path / "runs", "mine", "wandb=disabled", *through.overrides(prefix))
    return load_config([*words, *overrides])


def _made(storage: RunStorage, step: int, size: int = 1000, mean: float = 1.0) -> Checkpoint:
    facts = {"scores": {"mean": mean, "std": 0.0, "episodes": 1}}
    return checkpoints.commit(storage.folder, step, {"a.bin": os.urandom(size)}, facts)


def _children() -> list[int]:
    return children(os.getpid())


def _until(happens: Callable[[], object], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_it_brings_is_whole_and_noted(storage: RunStorage, worker: UploadWorker) -> None:
    """A checkpoint arrives with every byte and word, and the run folder notes it, as without a process."""
    before = _made(storage, 1, mean=9.0)
    worker.upload(before)
    assert storage.ledger().entry(before).best_kept == 9.0
    arrived = worker.upload(_made(storage, 2, mean=5.0))
    assert arrived.address.endswith("mine/checkpoints/step-000000002")
    assert storage.ledger().entry(arrived).best_kept == 9.0
    stored = checkpoints.list_checkpoints(storage.store())
    for checkpoint, local in zip(stored, checkpoints.local_checkpoints(storage.folder), strict=True):
        checkpoint.verify()
        assert checkpoint.manifest == local.manifest
        assert storage.ledger().arrived(local)


def test_one_process_does_it_for_a_whole_run(storage: RunStorage, worker: UploadWorker) -> None:
    """The process is started once, is nobody's leftover when it ends, and is not started again."""
    before = set(_children())
    worker.start()
    started = set(_children()) - before
    for step in (1, 2, 3):
        worker.upload(_made(storage, step))
    assert set(_children()) - before == started
    assert len(started) == 1
    worker.end()
    assert set(_children()) <= before
    with pytest.raises(ConnectionError, match="the run has ended"):
        worker.upload(_made(storage, 4))
    assert set(_children()) <= before


@pytest.mark.parametrize("url", ["memory://workers", "{folder}/store"])
def test_what_crosses_no_network_needs_no_process(tmp_path: Path, url: str) -> None:
    """A folder, or a store that lives in this very process, is written by the thread that asks."""
    words = [*tiny(tmp_path, "mine"), f"storage.url='{url.format(folder=tmp_path)}'"]
    storage = RunStorage(tmp_path / "mine", load_config(words))
    storage.folder.mkdir()
    worker, before = UploadWorker(storage, None), set(_children())
    worker.start()
    arrived = worker.upload(_made(storage, 1))
    assert set(_children()) <= before
    arrived.verify()
    worker.end()


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchBucket"), (507, "XMinioStorageFull")])
def test_refusals_say_the_same_line(
    storage: RunStorage, worker: UploadWorker, faults: Faults, status: int, code: str
) -> None:
    """What waiting does not mend is the same `StorageError` from the process as from the thread."""
    made = _made(storage, 1)
    faults.fail("status", status=status, code=code)
    with pytest.raises(StorageError) as here:
        storage.upload(made, lambda: None)
    with pytest.raises(StorageError) as there:
        worker.upload(made)
    assert str(there.value) == str(here.value)
    faults.clear()
    worker.upload(made)


@pytest.mark.parametrize("status", [500, 503])
def test_what_waiting_may_mend_is_known_as_such(
    storage: RunStorage, worker: UploadWorker, faults: Faults, status: int
) -> None:
    """A store that fails, cuts off or is away is a connection failure, whatever class it comes as."""
    made = _made(storage, 1)
    faults.fail("status", status=status, code="InternalError")
    with pytest.raises(Exception, match=r".") as failed:
        worker.upload(made)
    assert is_transient(failed.value)
    faults.clear()
    faults.refuse()
    with pytest.raises(Exception, match=r".") as refused:
        worker.upload(made)
    assert is_transient(refused.value)
    faults.accept()
    worker.upload(made).verify()


def test_a_checkpoint_that_is_gone_is_missing(storage: RunStorage, worker: UploadWorker) -> None:
    """What retention has removed before its turn is a `CheckpointMissing`, as ever."""
    made = _made(storage, 1)
    checkpoints.prune(storage.folder, checkpoints.Retention(0, 0))
    (Path(made.address) / "manifest.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointMissing):
        worker.upload(made)


class _Uncopied(ConnectionError):
    """An error that pickle can write and not read, as some clients' are."""

    def __init__(self, first: str, second: str):
        super().__init__(first)
        self.second = second


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_Uncopied("reset", "by peer"), ConnectionError),
        (ConnectionResetError(104, "reset by peer"), ConnectionResetError),
        (StorageError("storage.url=x: no"), StorageError),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
    ],
)
def test_errors_travel_with_their_meaning(error: Exception, kind: type[Exception]) -> None:
    """Every error comes out with its line and its verdict; a bug with the place in the other process."""
    try:
        raise error
    except Exception as raised:  # noqa: BLE001  # to give it a place
        sent = pickle.dumps(worker_module._Failure.of(raised))
    found = pickle.loads(sent).error()
    assert isinstance(found, kind)
    assert is_transient(found) == is_transient(error)
    assert str(error) in str(found)
    place = "test_errors_travel_with_their_meaning"
    assert isinstance(found, OSError) or place in str(found.__cause__)


def test_what_it_logs_is_logged_here(
    storage: RunStorage, worker: UploadWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning of the process stands in the log of the run, under its own name."""
    worker.upload(_made(storage, 1))
    folder = f"{PREFIX}/{storage.folder.parent.parent.name}/mine/checkpoints/step-000000002"
    storage.store().write("step-000000002/manifest.json", b"{}")
    worker.upload(_made(storage, 3))
    said = [r for r in caplog.records if "it is left out" in r.getMessage()]
    assert said, folder
    assert said[0].name == "rl_research.checkpoints.checkpoint"
    assert said[0].levelno == logging.WARNING


# ---------------------------------------------------------------- whose run it is


def test_who_has_lost_the_run_is_told_at_once(storage: RunStorage) -> None:
    """Another machine's lease in the store ends the upload, and training hears of it without waiting."""
    lease = RunLease(storage.store, "mine", 600.0)
    lease.acquire()
    worker = UploadWorker(storage, lease)
    try:
        worker.upload(_made(storage, 1))
        theirs = json.loads(storage.store().read(FILE)) | {"token": "theirs", "machine": "another"}
        storage.store().write(FILE, json.dumps(theirs).encode())
        with pytest.raises(RunTakenOver):
            worker.upload(_made(storage, 2))
        with pytest.raises(RunTakenOver):
            lease.check()
        assert [c.global_step for c in checkpoints.list_checkpoints(storage.store())] == [1]
    finally:
        worker.end()
        lease.release()


# ---------------------------------------------------------------- kills and signals


@pytest.mark.slow
def test_one_that_dies_in_the_middle_is_replaced(storage: RunStorage, worker: UploadWorker, faults: Faults) -> None:
    """Killed while it sends, it costs a connection failure; the next try gets everything there."""
    worker.start()
    before = set(_children())
    made = _made(storage, 1, BIG)
    faults.fail("slow", rate=1e6, methods=["PUT"], path="a.bin")
    killer = threading.Thread(target=lambda: (_until(lambda: faults.sent > BIG / 3), _kill(before)), daemon=True)
    killer.start()
    with pytest.raises(ConnectionResetError, match="SIGKILL") as died:
        worker.upload(made)
    killer.join()
    assert is_transient(died.value)
    assert checkpoints.list_checkpoints(storage.store()) == []
    faults.clear()
    worker.upload(made).verify()


def _kill(processes: set[int]) -> None:
    for process in processes:
        if b"worker" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)


def test_signals_that_are_for_the_run_leave_it_alone(storage: RunStorage, worker: UploadWorker) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach every process of the group; this one goes on uploading."""
    before = set(_children())
    worker.start()
    worker.upload(_made(storage, 1))
    (process,) = set(_children()) - before
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(process, number)
    worker.upload(_made(storage, 2))
    assert set(_children()) - before == {process}


_TRAINER = """
import sys, os, threading, time
from pathlib import Path
from rl_research import checkpoints
from rl_research.config import load_config
from rl_research.uploads.worker import UploadWorker
from rl_research.uploads.run_storage import RunStorage

config = load_config(sys.argv[2:])
config.run_dir.mkdir(parents=True)
storage = RunStorage(config.run_dir, config)
made = checkpoints.commit(storage.folder, 1, {"a.bin": os.urandom(3 << 20)}, {})
worker = UploadWorker(storage, None)
worker.start()
if sys.argv[1] == "leaves a child that holds the line":
    os.set_inheritable(worker._connection.fileno(), True)
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
worker.upload(made)
"""


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["dies alone", "leaves a child that holds the line"])
def test_it_does_not_outlive_the_run(tmp_path: Path, faults: Faults, manner: str) -> None:
    """Where the training process is killed with SIGKILL, nothing more is sent, and nothing is published."""
    config = _config(tmp_path, faults)
    words = [f"runs_dir='{tmp_path / 'runs'}'", "run_id=mine", "wandb=disabled"]
    through = faults.server.at(faults.port)
    words += through.overrides(f"{PREFIX}/{tmp_path.name}")
    faults.fail("slow", rate=1e6, methods=["PUT"], path="a.bin")
    trainer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(_TRAINER), manner, *words], env=environment())
    _until(lambda: faults.sent > BIG / 3, 60)
    below = children(trainer.pid)
    workers = [p for p in below if b"worker.serve" in Path(f"/proc/{p}/cmdline").read_bytes()]
    others = [p for p in below if p not in workers]
    trainer.kill()
    trainer.wait()
    try:
        _until(lambda: not any(map(lives, workers)), 5)
        assert len(workers) == 1
        store = RunStorage(config.run_dir, config).store()
        faults.clear()
        assert checkpoints.list_checkpoints(store) == []
    finally:
        for process in others:
            os.kill(process, signal.SIGKILL)


def test_storage_options_travel_by_the_socket_alone(tmp_path: Path, faults: Faults) -> None:
    """No option of the store stands in the process's arguments, which every user of a machine can read."""
    config = _config(tmp_path, faults, "storage.options.secret=geheim", "storage.options.key=offen")
    config.run_dir.mkdir(parents=True)
    worker, before = UploadWorker(RunStorage(config.run_dir, config), None), set(_children())
    worker.start()
    try:
        (process,) = set(_children()) - before
        _until(lambda: b"worker" in Path(f"/proc/{process}/cmdline").read_bytes())
        shown = Path(f"/proc/{process}/cmdline").read_bytes()
        assert b"geheim" not in shown
        assert b"offen" not in shown
        assert isinstance(RunStorage(config.run_dir, config).store(), Store)
    finally:
        worker.end()
